"""Schedules that are worth a closed loop at a number of computed steps, each with a name; no model call is made here.

Practice gives some (evenly spaced steps, gaps that grow or shrink), the recorded outputs price the others.
"""

from collections.abc import Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Prices:
    """What the recorded outputs say of every segment.

    Attributes:
        grams: of the runs. even: prices at the segments' ends.
        weighed: the same times what becomes of an error by the end of the run, which one early error tells roughly: on
            some models they find better paths, on others worse ones.
    """

    grams: RunGrams
    even: SegmentCosts
    weighed: SegmentCosts


def schedules(
    effort: Effort, T: int, K: int, boundaries: tuple[int, ...], priced: Prices | None
) -> dict[str, Schedule]:
    """Distinct schedules with their names, the simplest first.

    Args:
        K: computed steps; steps at which another denoiser takes over come on top where a schedule lacks them.
        priced: None for the efforts that price nothing.
    """
    found: dict[str, Schedule] = {}
    for name, schedule in _all(T, K, boundaries, priced):
        whole = schedule.with_steps(boundaries)
        if whole not in found.values():
            found[name] = whole
        if len(found) == _COUNTS[effort]:
            break
    return found


def _all(T: int, K: int, boundaries: tuple[int, ...], priced: Prices | None) -> Iterator[tuple[str, Schedule]]:
    yield "uniform", Schedule.uniform(T, K)
    powers = [(f"density {power:g}", density(T, K, power)) for power in _POWERS]
    if priced is None or K <= len(boundaries) + 2:
        yield from powers
        return
    # With an open end the last step is predicted too.
    yield "cheapest path, open end", cheapest(priced.even, K, last=False)[0]
    yield "cheapest path", cheapest(priced.even, K)[0]
    yield "weighed path, open end", cheapest(priced.weighed, K, last=False)[0]
    yield "weighed path", cheapest(priced.weighed, K)[0]
    yield from powers[:4]
    yield "least largest price", cheapest(priced.even, K, "max", last=False)[0]
    yield "GITS", gits(priced.grams, K, boundaries)
    yield "OSS", oss(priced.grams, K, boundaries)
    for costs, words in ((priced.even, "path"), (priced.weighed, "weighed path")):
        for n, (schedule, _) in enumerate(cheapest_few(costs, K, 3, last=False)[1:], 2):
            yield f"{words} {n}, open end", schedule
    yield from powers[4:]
