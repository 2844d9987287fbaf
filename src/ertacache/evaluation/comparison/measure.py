"""One row: an entrant's run of one prompt, counted, priced and held against the uncached run."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ertacache.baselines.baseline import Baseline
from ertacache.calibration.prompts import Prompts
from ertacache.core.analysis import decompose
from ertacache.core.schedule import Schedule
from ertacache.errors import CalibrationError
from ertacache.evaluation.comparison.entrant import Tuned
from ertacache.evaluation.comparison.reference import Measurement
from ertacache.evaluation.execute import execute
from ertacache.evaluation.row_figures import latent_error, mean_frame_psnr, rounded
from ertacache.evaluation.sample_files import save_clip_sample, write_image
from ertacache.runtime.watch import Executed, now


def measure(
    pipe: Any, method: Baseline | None, prompt: Prompts, call: dict[str, Any], *, keep_outputs: bool = False
) -> Measurement:
    """One timed pipeline call."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    start = now()
    images, executed = execute(pipe, method, prompt, call, keep_outputs=keep_outputs)
    seconds = now() - start
    # A method that diverged is compared as the black picture that a person would see.
    return Measurement(images.nan_to_num(0.0), executed, seconds, torch.cuda.max_memory_allocated() if cuda else None)


#: What ran in the steps of a run, or in one step.
_Parts = tuple[tuple[int, ...], ...]


@dataclass
class Prices:
    """Operations of each step of a run, counted once for every set of parts that runs execute.

    A method that decides at run time is priced step by step, since its runs differ in which steps they compute; every
    other one by whole runs, in which one step may have run other parts than the next, as many of them.

    Args:
        pipe, call: of the uncached pipeline.
    """

    pipe: Any
    call: dict[str, Any]
    _known: dict[str, dict[_Parts, list[int]]] = field(default_factory=dict[str, dict[_Parts, list[int]]], init=False)
    _uncached: float = field(default=0.0, init=False)

    def total(self, method: Baseline, prompts: Prompts) -> float:
        """Mean cost of a method over prompts, as a share of the uncached run."""
        known, batches = dict[_Parts, list[int]](), prompts.batches(1)
        runs = [self._operations(method.key, method, one, known) for one in batches]
        uncached = self.uncached(prompts) * int(self.call["num_inference_steps"])
        return sum(map(sum, runs)) / (uncached * len(runs))

    def uncached(self, prompts: Prompts) -> float:
        """Operations of one uncached step."""
        if not self._uncached:
            run = execute(self.pipe, None, prompts.batches(1)[0], self.call, flops=True, decode=False)[1]
            self._uncached = sum(run.flops) / len(run.flops)
        return self._uncached

    def of(self, tuned: Tuned, prompt: Prompts, executed: Executed) -> list[float]:
        """Operations of each step of a run, as shares of an uncached step.

        Raises:
            CalibrationError: the method does something else when it is run again.
        """
        known = self._known.setdefault(tuned.id, {})
        step = self.uncached(prompt)
        return [round(flops / step, 4) for flops in self._operations(tuned.id, tuned.method, prompt, known, executed)]

    def _operations(
        self,
        name: str,
        method: Baseline,
        prompt: Prompts,
        known: dict[_Parts, list[int]],
        executed: Executed | None = None,
    ) -> list[int]:
        """Operations of each step of a run that was made already, or is made here; `known` learns what was counted."""
        if executed is None and known:
            executed = execute(self.pipe, method, prompt, self.call, decode=False)[1]
        if executed is None or not known.keys() >= set(_priced(method, executed)):
            again = execute(self.pipe, method, prompt, self.call, flops=True, decode=False)[1]
            if executed is not None and again.signature != executed.signature:
                raise CalibrationError(
                    f"{name} executed other parts when the same prompt was run again; it keeps something from run "
                    "to run and cannot be compared"
                )
            executed, parts = again, _priced(method, again)
            each = len(again.flops) // len(parts)
            known |= {part: again.flops[n * each : (n + 1) * each] for n, part in enumerate(parts)}
        return [flops for part in _priced(method, executed) for flops in known[part]]


def _priced(method: Baseline, executed: Executed) -> list[_Parts]:
    """What has a price of its own: every step where a method decides at run time, else the whole run."""
    return [(step,) for step in executed.signature] if method.batch else [executed.signature]


def row(
    entrant: str,
    number: int,
    seed: int,
    measured: Measurement,
    reference: Measurement,
    *,
    step_cost: list[float],
    metrics: dict[str, float],
    sample: str | None,
) -> dict[str, Any]:
    """One line of results.jsonl; it holds no times, so that a run that was cut off ends in the same file."""
    run, true = measured.executed, reference.executed
    same_grid = torch.equal(run.sigmas, true.sigmas)
    decomposed = same_grid and run.outputs and run.latents.isfinite().all()
    return {
        "kind": "row",
        "entrant": entrant,
        "prompt": number,
        "seed": seed,
        **{name: round(value, 5) for name, value in metrics.items()},
        "latent_error": round(latent_error(run.latents, true.latents), 5),
        "cost": round(sum(step_cost) / (len(true.sigmas) - 1), 5),
        "steps": len(run.denoiser_calls),
        "denoiser_calls": sum(run.denoiser_calls),
        "block_calls": sum(run.block_calls),
        "attention_calls": sum(run.attention_calls),
        "step_cost": step_cost,
        "sigmas": None if same_grid else [round(float(sigma), 6) for sigma in run.sigmas],
        "decomposition": _decomposition(run, true) if decomposed else None,
        "sample": sample,
        **mean_frame_psnr(measured.images, reference.images),
    }


def _decomposition(run: Executed, true: Executed) -> dict[str, list[float]]:
    """Eq. 7-11, which compare outputs at equal sigmas: not for an adjusted grid or fewer steps."""
    everything = Schedule.all_computed(len(run.outputs))
    parts = decompose(run.sigmas, torch.stack(run.outputs), torch.stack(true.outputs), everything)
    return rounded(feature_shift=parts.feature_shift, amplified=parts.amplified, deviation=parts.deviation)


def save_sample(images: torch.Tensor, folder: Path, entrant: str, number: int, seed: int) -> str:
    """A picture [1, 3, H, W] or clip [1, F, 3, H, W] as a WebP under `folder`/samples; returns its name there."""
    stem = re.sub(r"[^a-z0-9.]+", "-", f"{entrant}-{number}-{seed}".lower())
    name = f"samples/{stem}.webp"
    if images.ndim == 5:
        save_clip_sample(images[0], folder / name)
    else:
        write_image(images[0], folder / name, lossless=True)
    return name
