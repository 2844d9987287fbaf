"""What a split's calibration will take: pipeline calls, runs of each model for one prompt, seconds and bytes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ertacache.split.candidates import Budget
from ertacache.split.judged import grid_of
from ertacache.split.recorded import SIZED, Sized, SplitRuns


@dataclass(frozen=True, slots=True)
class SplitWork:
    """An upper bound: a candidate may turn out to be on the paper's grid, and a target to be found early.

    Attributes:
        calls: pipeline calls, but for the two that are broken off to know all this.
        large, small: the work of these, with those two, in runs of one prompt by each model.
        seconds: without text encoders and decoders. bytes: that recordings take on the disk.
    """

    calls: int
    large: float
    small: float
    seconds: float
    bytes: int


def work_of(
    runs: SplitRuns, sizes: tuple[Sized, Sized], budget: Budget, probes: Sequence[int], tried: int, *, any_order: bool
) -> SplitWork:
    """The work of `calibrate_split`.

    Args:
        probes: steps at which they take over. tried: candidates at most.
    """
    T, size = sizes[0].steps, runs.batch_size
    fitted, chosen, judged = (len(part.texts) for part in runs.parts)
    calls = [len(part.batches(size)) for part in runs.parts]
    # The most steps of the large model that a candidate has, and how many candidates there are.
    most = T - 1 if budget.cloud_budget is None else math.floor(budget.cloud_budget * T + 1e-9)
    loops = math.ceil(math.log2(T + 1)) if budget.cloud_budget is None else min(tried, most + 1 + 2 * any_order)
    live = most if any_order else 1  # after a step of the small model the large one's are not known
    grid = grid_of(T)
    large = SIZED + T * (fitted + chosen + judged) + fitted * sum(s > 0 for s in probes)
    large += (chosen * loops + judged) * live + judged * (sum(s > 0 for s in grid) + most)
    small = SIZED + fitted * (T + sum(T - s for s in probes)) + (chosen * loops + judged) * T
    small += judged * sum(T - s for s in grid)
    made = calls[0] * (2 + len(probes)) + calls[1] * (1 + loops) + calls[2] * (3 + len(grid))
    stored = sizes[0].recorded * (fitted * (2 + len(probes)) + chosen + judged)
    seconds = large * sizes[0].seconds + small * sizes[1].seconds
    return SplitWork(made, large / T, small / T, seconds, stored)
