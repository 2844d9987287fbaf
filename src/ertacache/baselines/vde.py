"""VDE: the velocity taken apart along the latent and across it, and put together again on the latent of each step."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from ertacache.baselines.baseline import Baseline, Knob, steps_of
from ertacache.baselines.forecast import Forecast, Forecasting
from ertacache.core.precision import widen
from ertacache.core.schedule import Schedule
from ertacache.runtime.hooks import attached
from ertacache.runtime.run import Run


@dataclass(frozen=True)
class VDE(Baseline):
    """v = α x + β ‖x‖ u with u ⊥ x of length 1: α and β on lines through the two newest computed steps, u repeated.

    The lines are drawn in the timestep. Every sample and every branch of guidance has α, β and u of its own, as in the
    authors' code for Qwen-Image; their code for FLUX takes all samples of a batch together. The paper has rectified
    flows alone; on models that predict v of another kind the same formula is used.

    Args:
        interval: N; after the start, from one computed step to the next.
        stable: the last step of the start, all of which is computed; the last step of the run is computed too.
    """

    key: ClassVar[str] = "vde"
    title: ClassVar[str] = "VDE"
    paper: ClassVar[str] = "arXiv 2605.23381"
    work: ClassVar[str] = "nothing of the denoiser"
    knob: ClassVar[Knob] = Knob("interval", 1, 30, whole=True)

    interval: int = 3
    stable: int = 6

    @classmethod
    def published(cls) -> Mapping[str, Mapping[str, Self]]:
        # T = 50. FLUX: the authors' README. The others: the steps that the paper computes at the start, and the
        # interval that leads to the number of computed steps in its tables.
        return {
            "FluxTransformer2DModel": {"slow": cls(3), "medium": cls(4), "fast": cls(5)},
            "QwenImageTransformer2DModel": {"slow": cls(3, stable=10), "fast": cls(6, stable=10)},
            "WanTransformer3DModel": {"slow": cls(3, stable=10), "fast": cls(4, stable=8)},
        }

    def variants(self) -> tuple[Self, ...]:
        """Shorter starts, without which fewer than 8 steps cannot be reached."""
        return (self, *(type(self)(self.interval, stable) for stable in (3, 1) if stable < self.stable))

    def refusal(self, pipe: Any, call: Mapping[str, Any]) -> str | None:
        T = steps_of(call)
        return f"all {T} steps are computed at the start; set stable below {T - 2}" if T <= self.stable + 2 else None

    def schedule(self, T: int) -> Schedule:
        """Steps 0 to `stable`, every `interval` from there, and the last."""
        return Schedule.from_steps(T, {*range(min(T, self.stable + 1)), *range(self.stable, T, self.interval), T - 1})

    def applied(self, pipe: Any, call: Mapping[str, Any]) -> AbstractContextManager[Any]:
        return attached(pipe, Forecasting("output", self.schedule, _Decomposed))


class _Anchor(NamedTuple):
    """A computed step: α and β, [B, 1, ...] each, and its timestep."""

    along: Tensor
    across: Tensor
    timestep: float


class _Decomposed(Forecast):
    def __init__(self, run: Run) -> None:
        self._timesteps = run.timesteps.tolist()
        self._anchors: list[_Anchor] = []

    def push(self, step: int, value: Tensor, x: Tensor) -> None:
        velocity, x = widen(value), widen(x)
        size = _norm(x)
        along = (velocity * x).flatten(1).sum(1).view_as(size) / size.square()
        rest = velocity - along * x
        length = _norm(rest)
        self._direction, self._dtype = rest / length, value.dtype
        self._anchors = [*self._anchors[-1:], _Anchor(along, length / size, self._timesteps[step])]

    def predict(self, step: int, x: Tensor) -> Tensor:
        x, (older, newest) = widen(x), (self._anchors[0], self._anchors[-1])
        apart = newest.timestep - older.timestep
        share = (self._timesteps[step] - newest.timestep) / apart if apart else 0.0
        along = newest.along + share * (newest.along - older.along)
        across = newest.across + share * (newest.across - older.across)
        return (along * x + across * _norm(x) * self._direction).to(self._dtype)


def _norm(x: Tensor) -> Tensor:
    """Of each sample: [B, *] -> [B, 1, ...]; never zero, to divide by."""
    norm = x.flatten(1).norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny)
    return norm.view(-1, *(1,) * (x.ndim - 1))
