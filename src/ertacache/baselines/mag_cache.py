"""MagCache as diffusers has it, with magnitude ratios measured here."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ertacache.baselines import diffusers_cache
from ertacache.baselines.baseline import Baseline, Bench, Knob, denoiser_class, steps_of
from ertacache.core.precision import widen
from ertacache.errors import CacheConflict, CalibrationError
from ertacache.pipelines.models import blocks_of, denoiser_of
from ertacache.runtime.run import Controller, Run

#: What diffusers adds to the norm that it divides by.
_TINY = 1e-8


@dataclass(frozen=True)
class MagCache(Baseline):
    """The residual of the block stack is reused while its expected change of magnitude, added up, stays small.

    The expected change comes from magnitude ratios that were measured beforehand, so the schedule is the same for
    every prompt. Not every cost can be reached: at most `max_skip_steps` steps in a row are reused, and none in the
    first `retention_ratio` of the run. With the defaults and T = 30 the least cost is about 0.27.

    Args:
        threshold: of the summed error Σ |1 − Π ratios| since the last computed step.
        max_skip_steps: most steps that are reused in a row; diffusers' own default is 3.
        retention_ratio: share of the run, at its start, that is always computed.
        ratios: [T] mean magnitude ratio of the residual to that of the step before, 1 at step 0; None to have
            `calibrated` measure them. A list of another length is stretched to T by diffusers.
        calibration_prompts: that `calibrated` uses.
    """

    key: ClassVar[str] = "magcache"
    title: ClassVar[str] = "MagCache (diffusers)"
    paper: ClassVar[str] = "arXiv 2506.09045; diffusers' MagCacheConfig"
    work: ClassVar[str] = "the embeddings and the head"
    knob: ClassVar[Knob] = Knob("threshold", 0.0, 2.0)

    threshold: float = 0.06
    max_skip_steps: int = 5
    retention_ratio: float = 0.1
    ratios: tuple[float, ...] | None = None
    calibration_prompts: int = 4

    @classmethod
    def published(cls) -> Mapping[str, Mapping[str, Self]]:
        from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS

        # E024K5R01 of the method's own page; ratios for other models do not come with diffusers.
        fast = cls(0.24, max_skip_steps=5, retention_ratio=0.1, ratios=tuple(FLUX_MAG_RATIOS.tolist()))
        return {"FluxTransformer2DModel": {"fast": fast}}

    def refusal(self, pipe: Any, call: Mapping[str, Any]) -> str | None:
        if reason := diffusers_cache.refusal(pipe):
            return reason
        known = blocks_of(denoiser_of(pipe))
        return diffusers_cache.block_refusal(pipe) if known else f"the blocks of {denoiser_class(pipe)} are not known"

    def calibrated(self, bench: Bench) -> Self:
        """With ratios measured on the bench's prompts, unless there are some."""
        if self.ratios is not None:
            return self
        return replace(self, ratios=measure_ratios(bench, self.calibration_prompts))

    def applied(self, pipe: Any, call: Mapping[str, Any]) -> AbstractContextManager[None]:
        """See `Baseline.applied`.

        Raises:
            CalibrationError: there are no ratios.
        """
        from diffusers import MagCacheConfig

        if self.ratios is None:
            raise CalibrationError(
                f"MagCache has no ratios for this {denoiser_class(pipe)}; measure them with calibrated(bench), or give "
                "ratios="
            )
        config = MagCacheConfig(
            threshold=self.threshold,
            max_skip_steps=self.max_skip_steps,
            retention_ratio=self.retention_ratio,
            num_inference_steps=steps_of(call),
            mag_ratios=list(self.ratios),
        )
        return diffusers_cache.cache_enabled(pipe, config)


def measure_ratios(bench: Bench, prompts: int = 4) -> tuple[float, ...]:
    """Mean over tokens of ‖r_i‖₂ / ‖r_{i−1}‖₂ of the block stack's residual r in the uncached run, step by step.

    diffusers takes one list for every context, so this is the mean over the contexts as well as over the prompts,
    which run one by one.

    Returns:
        [T], 1.0 at step 0; dimensionless.

    Raises:
        CalibrationError: a ratio is not finite.
    """
    recorder = _Magnitudes()
    bench.record(recorder, prompts, hidden=True)
    rows = torch.tensor([row for run in recorder.runs for row in run.values()], dtype=torch.float64)
    if not rows.isfinite().all():
        raise CalibrationError("a magnitude ratio is NaN or infinite; run the pipeline in a wider dtype")
    return tuple(rows.mean(0).tolist())


class _Magnitudes(Controller):
    """Watches uncached runs: one dictionary per run, context -> ratio at every step."""

    several = False

    def __init__(self) -> None:
        self.runs: list[dict[str, list[float]]] = []
        self._norms: dict[str, Tensor] = {}

    def begin(self, run: Run) -> None:
        self.runs.append({})
        self._norms.clear()

    def call(self, run: Run, context: str, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        output = compute()
        if run.stack is None:
            raise CacheConflict("MagCache's ratios need the block stack; attach it with hidden=True")
        norms = torch.linalg.vector_norm(widen(run.stack.take_residual()), dim=-1)
        previous, self._norms[context] = self._norms.get(context), norms
        ratio = 1.0 if previous is None else float((norms / (previous + _TINY)).mean())
        self.runs[-1].setdefault(context, []).append(ratio)
        return output
