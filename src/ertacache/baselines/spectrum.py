"""Spectrum: the features of the last block as a sum of Chebyshev polynomials of the step, fitted within the run."""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ertacache.baselines.baseline import Baseline, Knob, denoiser_class, steps_of
from ertacache.baselines.forecast import Forecast, Forecasting
from ertacache.core.precision import wide, widen
from ertacache.core.schedule import Schedule
from ertacache.pipelines.models import blocks_of, denoiser_of
from ertacache.runtime.hooks import attached
from ertacache.runtime.run import Run

#: Computed at the start of every run, in all of the authors' configurations.
_WARMUP = 5


@dataclass(frozen=True)
class Spectrum(Baseline):
    """What the last block returns is extrapolated from all computed steps; the head runs in every step.

    Ĥ = w C + (1 − w) L. C is the ridge regression on T_0(τ) to T_M(τ), τ the step scaled from 0..T to −1..1; L a line
    in the step through the last two computed ones. Five steps are computed, then each after a window of ⌊W⌋ steps,
    where W starts at `window` and grows by `flex` with each of them.

    The paper has w = 1; the authors have found w = 0.5 to 1 more robust since. Their code scales the step by 50, which
    is T in all of their configurations, and fits in bfloat16; here it is T, and float32.

    Args:
        flex: by which the window grows. window: at first. weight: w.
        degree: M. ridge: λ, added to the diagonal of the normal equations.
    """

    key: ClassVar[str] = "spectrum"
    title: ClassVar[str] = "Spectrum"
    paper: ClassVar[str] = "arXiv 2603.01623"
    work: ClassVar[str] = "the embeddings and the head"
    knob: ClassVar[Knob] = Knob("flex", 0.0, 16.0)

    flex: float = 0.75
    window: int = 2
    weight: float = 0.5
    degree: int = 4
    ridge: float = 0.1

    @classmethod
    def published(cls) -> Mapping[str, Mapping[str, Self]]:
        # T = 50, 14 and 10 computed steps; what the authors' README runs.
        settings = {"slow": cls(0.75), "fast": cls(3.0)}
        return {name: settings for name in ("FluxTransformer2DModel", "WanTransformer3DModel")}

    def variants(self) -> tuple[Self, ...]:
        """The paper's own predictor, and the mixture."""
        return tuple(replace(self, weight=weight) for weight in sorted({self.weight, 0.5, 1.0}))

    def refusal(self, pipe: Any, call: Mapping[str, Any]) -> str | None:
        T = steps_of(call)
        if T <= _WARMUP + 1:
            return f"it computes the first {_WARMUP} steps and predicts none of {T}"
        return None if blocks_of(denoiser_of(pipe)) else f"the blocks of {denoiser_class(pipe)} are not known"

    def schedule(self, T: int) -> Schedule:
        """The warm-up, then ever longer windows."""
        steps, size = list(range(min(T, _WARMUP))), float(self.window)
        while (step := steps[-1] + math.floor(size)) < T:
            steps.append(step)
            size = round(size + self.flex, 3)
        return Schedule.from_steps(T, steps)

    def applied(self, pipe: Any, call: Mapping[str, Any]) -> AbstractContextManager[Any]:
        controller = Forecasting("features", self.schedule, lambda run: _Chebyshev(self, run))
        return attached(pipe, controller, hidden=True)


class _Chebyshev(Forecast):
    def __init__(self, method: Spectrum, run: Run) -> None:
        self._method, self._T = method, run.T
        self._steps: list[int] = []
        self._values: list[Tensor] = []

    def push(self, step: int, value: Tensor, x: Tensor) -> None:
        self._steps.append(step)
        self._values.append(value)

    def predict(self, step: int, x: Tensor) -> Tensor:
        newest = self._values[-1]
        total = torch.zeros_like(newest, dtype=wide(newest.dtype))
        for value, weight in zip(self._values, self._weights(step), strict=True):
            total.add_(widen(value), alpha=weight)
        return total.to(newest.dtype)

    def _weights(self, step: int) -> list[float]:
        """Both predictions are linear in the computed values: one weight for each of them."""
        w, steps = self._method.weight, self._steps
        basis = chebyshev([*steps, step], self._T, self._method.degree)
        known, asked = basis[:-1], basis[-1]
        gram = known.T @ known + self._method.ridge * torch.eye(known.shape[1], dtype=known.dtype)
        weights = w * (known @ torch.linalg.solve(gram, asked))
        ahead = (step - steps[-1]) / (steps[-1] - steps[-2]) if len(steps) > 1 else 0.0
        weights[-1] += (1 - w) * (1 + ahead)
        if len(steps) > 1:
            weights[-2] -= (1 - w) * ahead
        return weights.tolist()


def chebyshev(steps: list[int], T: int, degree: int) -> Tensor:
    """[steps, degree + 1] float64: T_0 to T_degree at each step, scaled from 0..T to −1..1."""
    tau = torch.tensor(steps, dtype=torch.float64) * 2 / T - 1
    return torch.cos(torch.arange(degree + 1, dtype=torch.float64) * torch.arccos(tau.clamp(-1, 1))[:, None])
