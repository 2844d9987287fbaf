"""What a closed loop found: plain data."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ertacache.calibration.sums import Key
from ertacache.core.compensation import Compensation
from ertacache.core.rectify import Affine
from ertacache.core.schedule import Schedule
from ertacache.errors import CalibrationError


@dataclass
class Solved:
    """What a closed loop has fixed so far.

    Attributes:
        computed: decisions of a threshold, step by step.
        weights: of the least-squares predictor, added to those of reuse; in the order of `Method.features`.
        affine: the rectifier.
        phis: Eq. 13 at the predicted steps.
        grid: float64 [T+1] the time grid that the run ended with; None for the solver's own.
        corrections: gain, previous and bias [C] float64 of the computed steps of a quantised denoiser.
        errors: of each fitted prompt, `deviation.log10_error` of the final latent.
    """

    computed: dict[int, bool] = field(default_factory=dict[int, bool])
    weights: dict[Key, Tensor] = field(default_factory=dict[Key, Tensor])
    affine: dict[Key, Affine] = field(default_factory=dict[Key, Affine])
    phis: dict[int, float] = field(default_factory=dict[int, float])
    grid: Tensor | None = None
    corrections: dict[int, tuple[Tensor, Tensor, Tensor]] = field(
        default_factory=dict[int, tuple[Tensor, Tensor, Tensor]]
    )
    errors: list[float] = field(default_factory=list[float])

    def before(self, i: int) -> "Solved":
        """What of it was fixed before step i."""
        return Solved(
            {step: value for step, value in self.computed.items() if step < i},
            {key: value for key, value in self.weights.items() if key[0] < i},
            {key: value for key, value in self.affine.items() if key[0] < i},
            {step: value for step, value in self.phis.items() if step < i},
            self.grid,
            {step: value for step, value in self.corrections.items() if step < i},
        )

    def changed(self, changes: Iterable[tuple[Key, int, float]]) -> "Solved":
        """With single weights changed, each named by its key and its place; the errors are not known yet.

        Raises:
            CalibrationError: a weight that is NaN or infinite then.
        """
        weights = {key: value.clone() for key, value in self.weights.items()}
        for key, place, change in changes:
            weights[key][place] += change
            if not weights[key].isfinite().all():
                raise CalibrationError(f"a weight of step {key[0]} is {float(weights[key][place])}; fit it anew")
        return replace(self, weights=weights, errors=[])


def schedule_of(solved: Solved, T: int) -> Schedule:
    """The schedule that a threshold decided."""
    return Schedule(tuple(solved.computed[i] for i in range(T)))


def to_state(solved: Solved) -> dict[str, Any]:
    """Plain containers and tensors, for a checkpoint."""
    return {
        "computed": solved.computed,
        "weights": solved.weights,
        "affine": {key: (affine.kappa, affine.beta) for key, affine in solved.affine.items()},
        "phis": solved.phis,
        "grid": solved.grid,
        "corrections": solved.corrections,
        "errors": solved.errors,
    }


def from_state(state: dict[str, Any]) -> Solved:
    """Inverse of `to_state`."""
    solved = Solved(**state)
    solved.affine = {key: Affine(*pair) for key, pair in state["affine"].items()}
    return solved


def compensation_of(solved: Solved, T: int) -> Compensation | None:
    """The corrections as a table of T steps; None where there are none, or they change nothing."""
    if not solved.corrections:
        return None
    like = next(iter(solved.corrections.values()))[0]
    neutral = (torch.ones_like(like), torch.zeros_like(like), torch.zeros_like(like))
    rows = [solved.corrections.get(i, neutral) for i in range(T)]
    table = Compensation(*(torch.stack(column).float() for column in zip(*rows, strict=True)))
    return None if all(map(table.is_identity, range(T))) else table
