"""What a profile holds at the latent sizes of Wan2.1-1.3B and FLUX: random tensors in place of the denoiser's work.

Run by hand: `python benchmarks/memory.py`. Every case is counted twice: as `RunStats` reports it, and as the storages
of all tensors alive after each step, less those of the uncached run. Rewrites benchmarks/results/memory.json and the
table in docs/how-it-works.md.
"""

import argparse
import functools
import gc
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from torch import Tensor, nn

from ertacache.calibration.prompts import Prompts
from ertacache.core.history import storage_bytes
from ertacache.core.predictor import Predictor
from ertacache.core.schedule import Schedule
from ertacache.evaluation.row_figures import header
from ertacache.profile.profile import Profile, Provenance, Site
from ertacache.runtime.hooks import attached
from ertacache.runtime.identity import identity_of
from ertacache.runtime.player import Offload, Player
from ertacache.runtime.run import Controller
from ertacache.runtime.run_stats import RunStats

ROOT = Path(__file__).parent.parent
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "memory.json", ROOT / "docs" / "how-it-works.md"
#: Three outputs are held at the steps 3, 4 and 6.
SCHEDULE = Schedule.from_mask("###..#.#")
GUIDANCE = 5.0


@dataclass(frozen=True)
class Size:
    """A model's tensors in one run of one prompt.

    Attributes:
        latent: shape of what the solver integrates, without the batch axis.
        dtype: of the latent.
        contexts: calls of a step.
        hidden: [tokens, width] of its blocks.
    """

    model: str
    latent: tuple[int, ...]
    dtype: torch.dtype
    contexts: tuple[str, ...]
    hidden: tuple[int, int]


#: Outputs are bfloat16 in both; WanPipeline integrates in float32. Wan: 81 frames of 480 × 832; FLUX: 1024 × 1024.
WAN = Size("Wan2.1-1.3B", (16, 21, 60, 104), torch.float32, ("cond", "uncond"), (21 * 30 * 52, 1536))
FLUX = Size("FLUX.1-dev", (4096, 64), torch.bfloat16, ("cond",), (4096, 3072))


class RandomOutput(nn.Module, CacheMixin):
    """A denoiser that gives the same random tensor, scaled by the timestep."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.config = {"size": size.model}
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("noise", torch.randn(1, *size.latent, generator=generator).bfloat16())

    def forward(self, hidden_states: Tensor, timestep: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        return (self.noise * (timestep.view(-1, *[1] * (self.noise.ndim - 1)) / 1000),)


class RandomBlocks(RandomOutput):
    """And one block that does little, at the width of the model; subclasses have the names that site `hidden` knows.

    Args:
        block: of the model's class, so that its arguments are known.
        lists: names of the lists of blocks; the last one gets the block.
    """

    def __init__(self, size: Size, block: nn.Module, *lists: str) -> None:
        super().__init__(size)
        self.register_buffer("entry", torch.ones(1, *size.hidden, dtype=torch.bfloat16))
        for part in list(block._modules):
            delattr(block, part)
        block.forward = lambda hidden_states, encoder_hidden_states: (
            (encoder_hidden_states, hidden_states * 1.5) if size is FLUX else hidden_states * 1.5
        )
        for name in lists:
            setattr(self, name, nn.ModuleList([block] if name == lists[-1] else []))
        self.block = block

    def forward(self, hidden_states: Tensor, timestep: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        hidden = self.block(hidden_states=self.entry, encoder_hidden_states=self.noise)
        scale = (hidden[1] if isinstance(hidden, tuple) else hidden)[0, 0, 0]
        return (super().forward(hidden_states, timestep)[0] * scale,)


class WanTransformer3DModel(RandomBlocks):
    def __init__(self) -> None:
        super().__init__(WAN, WanTransformerBlock(dim=8, ffn_dim=8, num_heads=1), "blocks")


class FluxTransformer2DModel(RandomBlocks):
    def __init__(self) -> None:
        block = FluxSingleTransformerBlock(dim=8, num_attention_heads=1, attention_head_dim=8)
        super().__init__(FLUX, block, "transformer_blocks", "single_transformer_blocks")


class RandomPipeline:
    """The denoising loop of WanPipeline and FluxPipeline: the latent in its dtype, the denoiser in bfloat16."""

    def __init__(self, size: Size, denoiser: nn.Module) -> None:
        self.size, self.transformer = size, denoiser
        self.uncached: list[int] = []
        self.scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=3.0)
        if size.dtype == torch.float32:
            self.scheduler = UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            )

    @torch.no_grad()
    def __call__(self, after_step: Callable[[], None] = lambda: None) -> Tensor:
        x = torch.randn(1, *self.size.latent, generator=torch.Generator().manual_seed(0)).to(self.size.dtype)
        self.scheduler.set_timesteps(SCHEDULE.T)
        for t in self.scheduler.timesteps:
            x = self.scheduler.step(self._guided(x.bfloat16(), t), t, x, return_dict=False)[0]
            after_step()
        return x

    def _guided(self, x: Tensor, t: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        for context in self.size.contexts:
            with self.transformer.cache_context(context):
                outputs.append(self.transformer(hidden_states=x, timestep=t.expand(1).bfloat16())[0])
        return outputs[0] if len(outputs) == 1 else outputs[1] + GUIDANCE * (outputs[0] - outputs[1])


@dataclass(frozen=True)
class Case:
    """One method at one site.

    Attributes:
        p: outputs that its predictor reaches back.
        both: whether it uses the outputs of both branches for what the solver receives.
    """

    size: Size
    method: str
    site: Site
    p: int
    both: bool = False

    def predictor(self) -> Predictor:
        """Scalar coefficients; fitted ones take the place of a calibration's by being there at all."""
        contexts = self.size.contexts
        targets = ("guided",) if self.site == "guided" else contexts
        if self.method == "reuse":
            return Predictor.plain_reuse(SCHEDULE, targets)
        plain = Predictor.residual_reuse(SCHEDULE, targets)
        if self.method == "residual reuse":
            return plain
        sources = (*targets, *contexts) if self.both else targets
        a = torch.zeros(SCHEDULE.T, len(targets), len(sources), self.p)
        a[:, :, : len(targets), :1] = plain.a
        for i in SCHEDULE.predicted_steps:
            for m, target in enumerate(targets):
                for source in contexts if self.both else (target,):
                    a[i, m, sources.index(source)] += 0.1 / self.p
        return Predictor(targets, sources, a, plain.d, plain.b)

    @property
    def bound(self) -> int:
        """Bytes of p outputs and one input for each call; at site hidden, of p residuals."""
        count, numel = len(self.size.contexts), torch.Size(self.size.latent).numel()
        if self.site == "hidden":
            return count * self.p * self.size.hidden[0] * self.size.hidden[1] * 2
        return count * numel * (2 * self.p + (self.size.dtype.itemsize if self.site == "guided" else 2))


def cases() -> list[Case]:
    """Those of the table."""
    found: list[Case] = []
    for size in (WAN, FLUX):
        found += [Case(size, "reuse", "output", 1)]
        found += [Case(size, "residual reuse", site, 1) for site in ("output", "guided")]
        found += [Case(size, "fitted", site, p) for site in ("output", "guided") for p in (1, 2, 3)]
        found += [Case(size, "fitted, both branches", "guided", p, True) for p in (1, 2, 3) if len(size.contexts) > 1]
        found += [Case(size, "reuse", "hidden", 1)]
    return found


@functools.cache
def pipeline(size: Size, hidden: bool) -> RandomPipeline:
    """The pipeline that cases of a size run in, of which the uncached run is counted once."""
    if not hidden:
        return RandomPipeline(size, RandomOutput(size))
    return RandomPipeline(size, WanTransformer3DModel() if size is WAN else FluxTransformer2DModel())


def profile(case: Case, pipe: RandomPipeline) -> Profile:
    """The profile of a case, made without calibration."""
    pipe.scheduler.set_timesteps(SCHEDULE.T)
    sigmas = pipe.scheduler.sigmas.float().clone()
    facts = Provenance(
        **identity_of(pipe),
        num_inference_steps=SCHEDULE.T,
        contexts=case.size.contexts,
        guidance_weight=None, embedded_guidance=None, call={},
        latent_shape=case.size.latent,
        channel_axis=-1 if case.size is FLUX else 1,
        dtype="torch.bfloat16",
        prompt_count=1, prompt_hash="0" * 16, holdout_count=0, seed=0, method={}, versions={}, heldout={},
    )  # fmt: skip
    return Profile(SCHEDULE, case.site, case.predictor(), sigmas, sigmas, None, facts)


def alive() -> int:
    """Bytes of the storages of every tensor that the garbage collector knows."""
    gc.collect()
    return storage_bytes(found for found in gc.get_objects() if issubclass(type(found), Tensor) and not found.is_meta)


def count(pipe: RandomPipeline, controller: Controller, hidden: bool = False) -> list[int]:
    """Bytes of the tensors made in one run that are alive after each step."""
    counts: list[int] = []
    gc.collect()
    gc.freeze()  # what is there already is not looked through again
    try:
        with attached(pipe, controller, hidden):
            pipe(lambda: counts.append(alive()))
    finally:
        gc.unfreeze()
    return counts


def measure(case: Case, offload_history: Offload = None) -> dict[str, Any]:
    """A row of the table.

    Returns:
        `extra_bytes` and `host_bytes` of the run's stats; `counted`: the most that was alive after a step beyond
        what was alive there in the uncached run.
    """
    pipe = pipeline(case.size, case.site == "hidden")
    player = Player(profile(case, pipe), RunStats(), offload_history)
    pipe.uncached = pipe.uncached or count(pipe, Controller())
    cached = count(pipe, player, case.site == "hidden")
    counted = max(after - before for before, after in zip(pipe.uncached, cached, strict=True))
    facts = {"model": case.size.model, "contexts": len(case.size.contexts), "method": case.method, "site": case.site}
    held = {"extra_bytes": player.stats.extra_bytes, "host_bytes": player.stats.host_bytes, "counted": counted}
    return {**facts, "p": case.p, **held, "bound": case.bound}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown; a latent is one bfloat16 output, at site hidden one residual of the blocks."""
    lines = [
        "| model, calls of a step | method | site | p | held | in outputs | offloaded, in the host |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        size = WAN if row["model"] == WAN.model else FLUX
        unit = 2 * torch.Size(size.hidden if row["site"] == "hidden" else size.latent).numel()
        held, host = (f"{row[name] / 2**20:.1f} MiB" for name in ("extra_bytes", "offloaded_host_bytes"))
        name = f"{row['model']}, {row['contexts']}"
        cells = (name, row["method"], f"`{row['site']}`", row["p"], held, f"{row['extra_bytes'] / unit:g}", host)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def updated(page: str, rows: Sequence[dict[str, Any]]) -> str:
    """The page with its table renewed."""
    mark = re.compile(r"(<!-- memory -->\n).*?(<!-- /memory -->)", re.DOTALL)
    return mark.sub(lambda found: f"{found[1]}{table(rows)}\n{found[2]}", page)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    rows: list[dict[str, Any]] = []
    for case in cases():
        moved = measure(case, "cpu")
        offloaded = {f"offloaded_{name}": moved[name] for name in ("extra_bytes", "host_bytes")}
        rows.append({**measure(case), **offloaded})
        print(rows[-1], flush=True)
    facts = header(f"{WAN.model}, {FLUX.model}: sizes only", Prompts(("",), 0), {}, SCHEDULE.T)
    head = {"command": " ".join(["python", *sys.argv]), "schedule": str(SCHEDULE), **facts}
    RESULTS.write_text(json.dumps({"header": head, "rows": rows}, indent=2) + "\n")
    PAGE.write_text(updated(PAGE.read_text(), rows))


if __name__ == "__main__":
    main()
