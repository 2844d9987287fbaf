"""L2P: the features of the last block as a learned weighted sum of those of all earlier steps."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ertacache.baselines.baseline import Baseline, Bench, Knob, denoiser_class, steps_of
from ertacache.baselines.forecast import Forecast, Forecasting, recorded
from ertacache.core.precision import wide, widen
from ertacache.core.schedule import Schedule
from ertacache.errors import CalibrationError
from ertacache.pipelines.models import blocks_of, denoiser_of
from ertacache.runtime.hooks import attached
from ertacache.runtime.run import Run

#: Of the training, as published.
_EPOCHS, _RATE = 200, 0.01


@dataclass(frozen=True)
class L2P(Baseline):
    """F_i = Σ_j<i W_ij F_j, in which a step that was itself predicted stands for its true features.

    W is fitted open loop: on the true features of uncached runs, one row for each step, from W_i,i−1 = 1 on (repeating
    the last step) by 200 epochs at a learning rate of 0.01 on the mean squared error. It knows no schedule.

    The authors' code is not published. Assumed are Adam and one batch for an epoch (neither is named); that every row
    is weighed alike; one W for all calls of a step, since the paper has one of (T − 1) x (T − 1); and the first three
    steps as a start, which with the interval N gives 9 and 7 computed steps of 50 at N = 7 and 10 as in the paper's
    table, and 12 at N = 5 where it has 11.

    Args:
        interval: N; from one computed step to the next.
        start: steps that are computed before.
        weights: W, [T][i] row by row; None to have `calibrated` fit them.
        calibration_prompts: that `calibrated` uses at most; the paper has 50.
    """

    key: ClassVar[str] = "l2p"
    title: ClassVar[str] = "L2P"
    paper: ClassVar[str] = "arXiv 2604.26365"
    work: ClassVar[str] = "the embeddings and the head"
    knob: ClassVar[Knob] = Knob("interval", 1, 30, whole=True)

    interval: int = 5
    start: int = 3
    weights: tuple[tuple[float, ...], ...] | None = None
    calibration_prompts: int = 50

    @classmethod
    def published(cls) -> Mapping[str, Mapping[str, Self]]:
        # T = 50; the weights are fitted anew, since none are published.
        return {
            "FluxTransformer2DModel": {"slow": cls(5), "medium": cls(7), "fast": cls(10)},
            "QwenImageTransformer2DModel": {"medium": cls(7)},
        }

    def variants(self) -> tuple[Self, ...]:
        """A start of one step too, which leaves more of a small budget to the rest."""
        return (self, replace(self, start=1)) if self.start > 1 else (self,)

    def refusal(self, pipe: Any, call: Mapping[str, Any]) -> str | None:
        T = steps_of(call)
        if not blocks_of(denoiser_of(pipe)):
            return f"the blocks of {denoiser_class(pipe)} are not known"
        return f"all {T} steps are computed at the start; set start below {T}" if T <= self.start else None

    def schedule(self, T: int) -> Schedule:
        """The start, and every `interval` from its last step."""
        return Schedule.from_steps(T, {*range(self.start), *range(self.start - 1, T, self.interval)})

    def calibrated(self, bench: Bench) -> Self:
        """With weights fitted on the bench's prompts, unless there are some."""
        if self.weights is not None:
            return self
        gram, count = torch.zeros(bench.T, bench.T, dtype=torch.float64), 0
        for streams in recorded(bench, self.calibration_prompts, "features"):
            for kept in streams:
                features = torch.stack(kept.values).flatten(1)
                gram += features @ features.T / features.shape[1]
                count += 1
        return replace(self, weights=fitted_weights(gram / count))

    def applied(self, pipe: Any, call: Mapping[str, Any]) -> AbstractContextManager[Any]:
        """See `Baseline.applied`.

        Raises:
            CalibrationError: there are no weights, or weights for another number of steps.
        """
        T = steps_of(call)
        if self.weights is None or len(self.weights) != T:
            raise CalibrationError(f"L2P has no weights for these {T} steps; fit them with calibrated(bench)")
        weights = self.weights
        return attached(pipe, Forecasting("features", self.schedule, lambda run: _Weighted(weights, run)), hidden=True)


class _Weighted(Forecast):
    def __init__(self, weights: tuple[tuple[float, ...], ...], run: Run) -> None:
        self._weights = weights
        self._values: list[Tensor] = []

    def push(self, step: int, value: Tensor, x: Tensor) -> None:
        self._values.append(value)

    def predict(self, step: int, x: Tensor) -> Tensor:
        newest = self._values[-1]
        total = torch.zeros_like(newest, dtype=wide(newest.dtype))
        for value, weight in zip(self._values, self._weights[step][step - len(self._values) :], strict=True):
            total.add_(widen(value), alpha=weight)
        self._values.append(total.to(newest.dtype))
        return self._values[-1]


def fitted_weights(gram: Tensor) -> tuple[tuple[float, ...], ...]:
    """W, [T][i] row by row, trained on features of which only the mean products matter.

    Args:
        gram: [T, T] float64, of F_i and F_j, the mean over prompts and elements.
    """
    T = len(gram)
    earlier = torch.ones_like(gram).tril(-1)
    table = torch.diag_embed(torch.ones(T - 1, dtype=gram.dtype), -1).requires_grad_()
    optimiser = torch.optim.Adam([table], lr=_RATE)
    for _ in range(_EPOCHS):
        # The gradient of the mean of (F_i − Σ_j W_ij F_j)² over prompts and elements.
        table.grad = 2 * (table.detach() @ gram - gram) * earlier
        optimiser.step()
    return tuple(tuple(row[:i]) for i, row in enumerate(table.tolist()))
