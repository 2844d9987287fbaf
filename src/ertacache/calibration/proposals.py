"""Schedules that are worth a closed loop at a number of computed steps, each with a name; no model call is made here.

Practice gives some (evenly spaced steps, gaps that grow or shrink), the recorded outputs price the others.
"""

from collections.abc import Iterator
from typing import Literal

from ertacache.core.densities import density
from ertacache.core.grids import gits, oss
from ertacache.core.paths import cheapest, cheapest_few
from ertacache.core.run_gram import RunGrams
from ertacache.core.schedule import Schedule
from ertacache.core.segment_costs import SegmentCosts

Effort = Literal["fast", "balanced", "thorough"]

#: Powers of `core.densities.density`, the most useful first: gaps that shrink (above 1) or grow (below).
_POWERS = (1.3, 0.8, 1.15, 1.5, 1.8, 0.65, 2.2, 0.9)
#: Distinct schedules that each effort fits, where there are as many.
_COUNTS: dict[Effort, int] = {"fast": 1, "balanced": 7, "thorough": 14}


def count_of(effort: Effort) -> int:
    """How many schedules an effort fits at most."""
    return _COUNTS[effort]


def schedules(
    effort: Effort, T: int, K: int, boundaries: tuple[int, ...], costs: SegmentCosts | None, grams: RunGrams | None
) -> dict[str, Schedule]:
    """Distinct schedules with their names, the simplest first.

    Args:
        K: computed steps; steps at which another denoiser takes over come on top where a schedule lacks them.
        costs: of segments; None for the efforts that price nothing. grams: what they were made from.
    """
    found: dict[str, Schedule] = {}
    for name, schedule in _all(T, K, boundaries, costs, grams):
        whole = schedule.with_steps(boundaries)
        if whole not in found.values():
            found[name] = whole
        if len(found) == _COUNTS[effort]:
            break
    return found


def _all(
    T: int, K: int, boundaries: tuple[int, ...], costs: SegmentCosts | None, grams: RunGrams | None
) -> Iterator[tuple[str, Schedule]]:
    yield "uniform", Schedule.uniform(T, K)
    powers = [(f"density {power:g}", density(T, K, power)) for power in _POWERS]
    if costs is None or grams is None or K <= len(boundaries) + 2:
        yield from powers
        return
    yield "cheapest path", cheapest(costs, K, "sum")[0]
    yield "cheapest path, open end", cheapest(costs, K, "sum", last=False)[0]
    yield powers[0]
    yield "least largest price", cheapest(costs, K, "max", last=False)[0]
    yield from powers[1:4]
    yield "GITS", gits(grams, K, boundaries)
    yield "OSS", oss(grams, K, boundaries)
    for last, end in ((False, ", open end"), (True, "")):
        for n, (schedule, _) in enumerate(cheapest_few(costs, K, 3, last=last)[1:], 2):
            yield f"path {n}{end}", schedule
    yield from powers[4:]
