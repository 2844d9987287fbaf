"""Plans that call a small model at some of their predicted steps, at the cost of plans without one."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ertacache.calibration.budget import Budget
from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.candidates import best_of, compared, fitted_candidates
from ertacache.calibration.method import Method
from ertacache.calibration.proposals import Effort, schedules
from ertacache.calibration.request import Request
from ertacache.calibration.search import Found, prices
from ertacache.core.schedule import Schedule
from ertacache.errors import InvalidArgument, PredictorInvalid
from ertacache.pipelines.affine_step import is_affine

logger = logging.getLogger(__name__)

#: How many numbers of computed steps are tried, and how many of the fitted plans are compared with the one without.
_TRADES: dict[Effort, int] = {"fast": 2, "balanced": 4, "thorough": 8}
_MEASURED: dict[Effort, int] = {"fast": 2, "balanced": 3, "thorough": 5}
#: Schedules that each is tried with: even steps, and the kind that is best without a small model.
_SCHEDULES = 2


def check_predictor(pipe: Any, request: Request, budgets: Sequence[Budget], others: dict[str, bool]) -> None:
    """What rules a small model out.

    Args:
        others: by name which arguments that do not go with it are given.

    Raises:
        InvalidArgument: naming the argument, or what the plan lacks.
    """
    if given := [name for name, there in others.items() if there]:
        raise InvalidArgument(f"predictor and {given[0]} do not go together; leave one of them out")
    searched = request.effort is not None and all({"compute_steps", "speedup"} & one.given.keys() for one in budgets)
    named = request.method is not None and bool(request.method.small)
    if not searched and not named:
        raise InvalidArgument(
            "predictor takes part in the search at a number of steps, whose cost is counted: give compute_steps or "
            "speedup, and no choice of an expert but a Method that names the steps, Method(..., small=(3, 5))"
        )
    if not request.aimed or not is_affine(pipe.scheduler):
        raise InvalidArgument(
            f"predictor needs a plan that aims at the trajectory, and a solver that can be inverted; "
            f"{type(pipe.scheduler).__name__} or the method rules that out: calibrate without predictor"
        )


def most_loops(effort: Effort) -> tuple[int, int]:
    """How many plans are fitted at most, and how many of them are compared."""
    return _TRADES[effort] * _SCHEDULES, _MEASURED[effort]


def trades(T: int, K: int, share: float, count: int) -> list[tuple[int, int]]:
    """Numbers of computed steps and of calls of a small model that cost at most K steps, from few calls to many.

    Args:
        share: of one call. count: how many at most; evenly chosen where there are more.
    """
    found = list[tuple[int, int]]()
    for fewer in range(1, K - 1):
        calls = min(T - K + fewer, int(fewer / share + 1e-9))
        if calls > 0:
            found.append((K - fewer, calls))
        if calls == T - K + fewer:  # every predicted step has one
            break
    if len(found) <= count:
        return found
    return [found[round(n * (len(found) - 1) / max(1, count - 1))] for n in range(count)]


def spread_over(schedule: Schedule, calls: int) -> tuple[int, ...]:
    """So many predicted steps, evenly among them."""
    steps = schedule.predicted_steps
    count = min(calls, len(steps))
    return tuple(steps[(2 * n + 1) * len(steps) // (2 * count)] for n in range(count))


def with_small(calibrator: Calibrator, base: Method, found: Found, K: int, effort: Effort) -> Found:
    """The best plan, or the best with a small model at the same counted cost where the prompts that choose say that it
    is better; on a tie the one without.

    Args:
        base: the method whose schedule is open. found: what the search without came to at K steps.
    """
    priced = None if effort == "fast" else prices(calibrator, base)
    share, most, methods = calibrator.small_share, found.best.profile.schedule.K, dict[str, Method]()
    for computed, calls in trades(calibrator.T, K, share, _TRADES[effort]):
        kinds = schedules(effort, calibrator.T, computed, calibrator.reference.boundaries, priced)
        for kind in dict.fromkeys(("uniform", found.best.name)):
            small = spread_over(kinds[kind], calls) if kind in kinds else ()
            if small and kinds[kind].K + len(small) * share <= most + 1e-9:
                name = f"{kind}, {computed} steps and {len(small)} of the small model"
                methods[name] = replace(base, schedule=kinds[kind], small=small)
    if not methods:
        logger.info("no small model: %d steps leave none for calls that cost %.3g each", K, share)
        return found
    try:
        fitted = fitted_candidates(calibrator, methods)
    except PredictorInvalid as error:
        logger.info("no small model: %s", error)
        return found
    ranked = sorted(fitted, key=lambda candidate: candidate.deviation)[: _MEASURED[effort]]
    measured = [compared(calibrator, candidate) for candidate in fitted if candidate in ranked]  # few calls first
    return Found(best_of([found.best, *measured]), (*found.measured, *measured))
