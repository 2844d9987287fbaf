"""What a joint refinement may change: of each row of predicted steps, one number for each feature."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ertacache.calibration.method import Method
from ertacache.calibration.recording import Recording
from ertacache.core.fit import NEGLIGIBLE
from ertacache.core.precision import exact
from ertacache.core.schedule import Schedule
from ertacache.pipelines.branches import DIRECTION

#: By what share of the final latent a nudge moves the latent at the end of its row: far above rounding in float32, and
#: far below what a plan errs by.
_SHARE = 0.01


@dataclass(frozen=True, slots=True)
class Coefficient:
    """A change that the weights of one feature share in the predicted steps between two computed ones.

    Such steps make one step of the solver, whatever their weights: what lies between is never shown to the model.

    Attributes:
        steps: predicted ones, without a computed one among them.
        place: of the weight, in the order of `Method.features`.
        source: of the feature. computed: the step that left it.
    """

    steps: tuple[int, ...]
    place: int
    source: str
    computed: int

    def changes(self, change: float) -> list[tuple[tuple[int, str], int, float]]:
        """What it changes, for `Solved.changed`."""
        return [((i, "guided"), self.place, change) for i in self.steps]

    def nudge(self, kept: Recording, recorded: Recording) -> float:
        """How much to change it for a finite difference; 0 where its feature is as good as zero beside the output.

        Args:
            kept: outputs and directions of the plan. recorded: the uncached run, which tells how far the latent goes.
        """
        outputs = kept.directions if self.source == DIRECTION and kept.directions is not None else kept.outputs
        newest, last = self.steps[0] - 1, self.steps[-1] + 1
        way = _size(exact(recorded.latents[last]) - exact(recorded.latents[self.steps[0]]))
        own, output = _size(outputs[self.computed]), _size(kept.outputs[newest])
        if way == 0 or own**2 <= NEGLIGIBLE * output**2:
            return 0.0
        share = max(_SHARE, 4 * torch.finfo(recorded.latents.dtype).eps)
        return share * _size(recorded.latents[-1]) * output / (way * own)


def coefficients_of(method: Method, schedule: Schedule, boundaries: tuple[int, ...]) -> list[Coefficient]:
    """All of a method that is fitted at site guided, in the order of the steps."""
    found = list[Coefficient]()
    for steps in rows_of(schedule):
        depth = schedule.depth(steps[0], boundaries)
        newest = [i for i in reversed(schedule.computed_steps) if i < steps[0]]
        for place, (source, level) in enumerate(method.features("guided", (), depth)):
            found.append(Coefficient(steps, place, source, newest[level]))
    return found


def most_coefficients(T: int, K: int, levels: int, directions: int) -> tuple[int, int]:
    """How many there are at most with K of T steps computed, and how many steps their nudged runs compute at most.

    Each run computes step 0, whose call tells whose run it is, and every computed step after its row.
    """
    own = [min(levels, depth) + min(directions, depth) for depth in range(1, K + 1)]
    computed = [count * (K - n) for n, count in enumerate(own)]
    rows = min(K, T - K)
    return sum(sorted(own, reverse=True)[:rows]), sum(sorted(computed, reverse=True)[:rows])


def rows_of(schedule: Schedule) -> list[tuple[int, ...]]:
    """The predicted steps between computed ones."""
    ends = (*schedule.computed_steps, schedule.T)
    rows = [tuple(range(step + 1, end)) for step, end in pairwise(ends)]
    return [row for row in rows if row]


def _size(x: Tensor) -> float:
    return float(exact(x).square().mean().sqrt())
