"""Schedules near a good one: one computed step goes to a neighbouring place, and only what comes after is run again."""

from collections.abc import Collection
from dataclasses import replace

from ertacache.calibration.assemble import fit_ahead
from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.candidates import Candidate, fitted_candidate
from ertacache.calibration.kept import loop_name
from ertacache.core.paths import price_of
from ertacache.core.schedule import Schedule
from ertacache.core.segment_costs import SegmentCosts

#: By how many steps a computed one is moved.
_SHIFTS = (-1, 1, -2, 2)


def moved(schedule: Schedule, boundaries: Collection[int] = ()) -> list[Schedule]:
    """The schedules in which one computed step stands one or two steps away, on a free place.

    The first step, the last one of the run where it is computed, and those where another denoiser takes over stay.
    """
    T, taken = schedule.T, set(schedule.computed_steps)
    free = taken - {0, T - 1, *boundaries}
    pairs = [(step, step + shift) for step in sorted(free) for shift in _SHIFTS]
    return [Schedule.from_steps(T, taken - {step} | {to}) for step, to in pairs if 0 < to < T - 1 and to not in taken]


def improved(calibrator: Calibrator, best: Candidate, costs: SegmentCosts, tries: int, rounds: int) -> list[Candidate]:
    """Moves that lower the mean log error of the fitted prompts, each from the one before; the last is the best.

    Args:
        best: fitted with `keep`.
        costs: of segments, which say what to try first.
        tries: how many moves each round runs; it takes the best of them.
    """
    found = list[Candidate]()
    tried = {best.method.schedule}
    for _ in range(rounds):
        near = _by_price(calibrator, best, costs, tried)[:tries]
        tried.update(near)
        fit_ahead(calibrator, [replace(best.method, schedule=one) for one in near], best.method, keep=True)
        better = best
        for schedule in near:
            candidate = fitted_candidate(
                calibrator, replace(best.method, schedule=schedule), f"{best.name}, moved", best.method, keep=True
            )
            loser, better = (better, candidate) if candidate.deviation < better.deviation else (candidate, better)
            if loser is not best:
                calibrator.kept.discard(loop_name(loser.method))
        if better is best:
            break
        calibrator.kept.discard(loop_name(best.method))
        best = better
        found.append(best)
    return found


def _by_price(
    calibrator: Calibrator, best: Candidate, costs: SegmentCosts, tried: Collection[Schedule | None]
) -> list[Schedule]:
    """Moves that were not tried yet, the cheapest first."""
    schedule = best.profile.schedule
    near = [one for one in moved(schedule, calibrator.reference.boundaries) if one not in tried]
    return sorted(near, key=lambda one: price_of(costs, one))
