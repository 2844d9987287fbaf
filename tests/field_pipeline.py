"""A pipeline around a denoiser of one line, to be subclassed for the ways in which pipelines call theirs."""

from typing import Any

import torch
from torch import Tensor, nn

import ertacache.runtime.apply as ertacache
from dummy_pipeline import DummyPipeline
from ertacache.core.predictor import Predictor
from ertacache.core.schedule import Schedule
from ertacache.pipelines.solvers import read_grid
from ertacache.profile.profile import Profile, Provenance, Site
from ertacache.runtime.identity import identity_of

T, MASK = 8, "#.#..#.#"
CALL: dict[str, Any] = {"num_inference_steps": T}
TEXTS = ["a 0", "b 1", "c 2"]


class Field(nn.Module):
    """v = x / 2 + t / 1000 on the first two channels of the input [B, C, 4]; keeps count of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.config = 0, dict[str, Any]()

    def value(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return self.truth(x[:, :2], t)

    def truth(self, x: Tensor, t: Tensor) -> Tensor:
        return x / 2 + t.view(-1, 1, 1) / 1000

    def forward(self, x: Tensor, t: Tensor) -> Any:
        return (self.value(x, t),)


class Pipeline(DummyPipeline):
    """Calls its denoiser as `guided` says; Euler on latents [B, 2, 4].

    Attributes:
        seen_x, received: per step, the latent and what `guided` made of it.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module, (2, 4), branches=False)
        self.seen_x, self.received = list[Tensor](), list[Tensor]()
        self.set_progress_bar_config()

    @property
    def steps(self) -> int:
        """Steps done in this run."""
        return self.scheduler.step_index or 0

    def _guided(self, x: Tensor, t: Tensor, label: Tensor, weight: float) -> Tensor:
        self.seen_x.append(x)
        output = self.guided(x, t)
        self.received.append(output)
        return output

    def guided(self, x: Tensor, t: Tensor) -> Tensor:
        return self.transformer(x, t)[0]

    def run(self, count: int = 2) -> Tensor:
        """Final latents of `count` samples."""
        self.seen_x.clear()
        self.received.clear()
        generators = [torch.Generator().manual_seed(n) for n in range(count)]
        return self(TEXTS[:count], T, generator=generators, output_type="latent")[0]


def profile(pipe: Pipeline, site: Site = "output") -> Profile:
    """Residual reuse at a site, every second or third step predicted."""
    pipe.scheduler.set_timesteps(T)
    schedule, sigmas = Schedule.from_mask(MASK), read_grid(pipe.scheduler)
    facts = Provenance(
        **identity_of(pipe),
        num_inference_steps=T, contexts=("call0",), guidance_weight=None, embedded_guidance=None, call=CALL,
        latent_shape=(2, 4), channel_axis=1, dtype="torch.float64", prompt_count=1, prompt_hash="0" * 16,
        holdout_count=1, seed=0, method={}, versions={}, heldout={},
    )  # fmt: skip
    predictor = Predictor.residual_reuse(schedule, ("guided",) if site == "guided" else ("call0",))
    return Profile(schedule, site, predictor, sigmas, sigmas, None, facts)


def check_residual_reuse(pipe: Pipeline, stats: ertacache.RunStats, final: Tensor) -> None:
    """What Euler moved the latent by on predicted steps is x + (v_1 − x_1)."""
    x = torch.stack([*pipe.seen_x, final])
    received = x.diff(dim=0) / pipe.scheduler.sigmas.double().diff().view(-1, 1, 1, 1)
    newest = 0
    for i, mark in enumerate(MASK):
        newest = i if mark == "#" else newest
        expected = pipe.transformer.truth(x[newest], pipe.scheduler.timesteps[newest]) + x[i] - x[newest]
        torch.testing.assert_close(received[i], expected, rtol=0, atol=1e-4)  # the solver computes in float32
    assert (stats.computed, stats.predicted) == ({"call0": 4}, {"call0": 4})
