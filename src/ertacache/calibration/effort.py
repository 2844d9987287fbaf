"""What a calibration will take: pipeline calls, their work in uncached runs of one prompt, seconds and bytes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ertacache.calibration import joint
from ertacache.calibration.budget import Budget
from ertacache.calibration.candidates import open_methods
from ertacache.calibration.coefficients import most_coefficients
from ertacache.calibration.defaults import Choices
from ertacache.calibration.first_steps import FirstSteps, share_of
from ertacache.calibration.method import Method
from ertacache.calibration.perturbed import PROMPTS
from ertacache.calibration.prompts import Parts
from ertacache.calibration.proposals import Effort, count_of
from ertacache.calibration.search import DIRECTIONS, LEVELS, MEASURED, MOVES, ROUNDS
from ertacache.core.schedule import Schedule

#: Runs of a threshold search, and closed loops of a search for the budget of a target.
_SEARCH, _TARGET = 10, 6


@dataclass(frozen=True, slots=True)
class Work:
    """An estimate where a threshold, a target or a time is searched, an upper bound where effort "thorough" moves and
    refines plans, as far as it gains, or so many computed steps leave few schedules to fit, else exact.

    Attributes:
        calls: pipeline calls.
        runs: their work in uncached runs of one prompt.
        seconds: that these take, without text encoders and decoders. bytes: that the recordings take on the disk.
    """

    calls: int
    runs: float
    seconds: float
    bytes: int


@dataclass(frozen=True, slots=True)
class Loops:
    """The closed loops of one plan.

    Attributes:
        cheap: those that compute the plan's steps only. whole: those that compute every step.
        measured: plans that are compared on the prompts that choose. single: further uncached runs of one prompt.
        rounds: of a joint refinement, where there are prompts enough.
        directed: whether it has guidance directions. timed: whether an uncached run of one prompt is timed for it.
    """

    cheap: int
    whole: int
    measured: int
    single: int = 0
    rounds: int = 0
    directed: bool = False
    timed: bool = False


def loops_of_search(effort: Effort, *, directed: bool, target: bool, aimed: bool = True) -> Loops:
    """Those of `search.search`.

    Args:
        aimed: plans are fitted to the trajectory.
    """
    fast, thorough = effort == "fast", effort == "thorough"
    loops = count_of(effort) + (directed and not fast) + thorough + ROUNDS * MOVES[effort] + target * _TARGET
    measured = (0 if fast else MEASURED[effort]) + target * _TARGET
    single, rounds = 0 if fast else PROMPTS, joint.ROUNDS * thorough
    return Loops(loops * aimed, loops * (not aimed), measured, single, rounds, directed)


def loops_of_choices(choices: Choices, budget: Budget, *, two: bool) -> Loops:
    """Those of `candidates.options_of`; `two` as there."""
    loops = loops_of_methods(open_methods(choices, 0.0, two=two))
    searches = 0 if choices.schedule != "policy" else 1 if budget.threshold is not None else _SEARCH
    return replace(loops, whole=loops.whole + searches)


def loops_of_methods(methods: Sequence[Method]) -> Loops:
    """Those of `assemble.fit` of each; where there are several they are compared."""
    fits = [_loops_of_fit(method) for method in methods]
    return Loops(sum(cheap for cheap, _ in fits), sum(whole for _, whole in fits), len(fits) if len(fits) > 1 else 0)


def _loops_of_fit(method: Method) -> tuple[int, int]:
    if method.schedule is None:  # it gets one, and no threshold decides
        method = replace(method, schedule=Schedule.all_computed(2))
    if method.nothing_to_fit and method.strength == 0:
        return 0, 0
    if method.site == "guided" or method.fitted:
        return (0, 1) if method.needs_truth else (1, 0)
    # A grid of reuse is fitted on what the solver receives, a rectifier of the calls after it.
    return 0, (method.strength != 0) + (not method.nothing_to_fit)


def work_of(
    loops: list[tuple[Loops, int | None]], parts: Parts, size: int | None, seen: FirstSteps, finer: int = 0
) -> Work:
    """The work of a calibration.

    Args:
        loops: for each budget its closed loops and the steps that it computes, None where that is not known.
        size: prompts per pipeline call, None for all at once.
        finer: uncached runs that one of a finer teacher takes; 0 where there is none.
    """
    fitted, chosen, judged = (len(part.texts) for part in parts)
    calls = [len(part.batches(size)) if part.texts else 0 for part in parts]
    runs, made = (fitted + judged + chosen) * (1.0 + finer) + share_of(seen.steps), sum(calls) * (1 + (finer > 0)) + 1
    single = min(fitted, max(one.single for one, _ in loops)) + any(one.timed for one, _ in loops)
    runs, made = runs + single, made + single
    for one, K in loops:
        share = K / seen.steps if K else 0.5
        runs += fitted * (one.cheap * share + one.whole) + chosen * one.measured * share
        made += calls[0] * (one.cheap + one.whole) + calls[1] * one.measured
        made += bool(one.rounds)  # the grid of K steps is asked of a call that computes nothing
        if one.rounds and chosen and fitted >= joint.LEAST_PROMPTS:
            nudged, computed = most_coefficients(seen.steps, K or seen.steps // 2, LEVELS, DIRECTIONS * one.directed)
            runs += fitted * (one.rounds * computed / seen.steps + (1 + one.rounds) * share)
            runs += chosen * one.rounds * share
            made += calls[0] * (one.rounds * nudged + 1 + one.rounds) + calls[1] * one.rounds
        beside = 2 if K == seen.steps else 3  # the plan, reuse and, where a step is spared at all, fewer steps
        runs += judged * share * beside
        made += calls[2] * beside
    # Of plans that are moved or refined the outputs lie on the disk too: of the best and of the one under way.
    files = 3 if any(one.rounds for one, _ in loops) else 1
    stored = fitted * (files * seen.recorded + seen.latents * (finer > 0))
    return Work(made, runs, runs * seen.steps * seen.seconds, stored)


def duration(seconds: float) -> str:
    """In the largest unit that leaves a number above 1."""
    if seconds < 99.5:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.1f} h"


def size_in_words(count: int) -> str:
    """Bytes in the largest unit that leaves a number above 1."""
    power = min(4, int(math.log(max(count, 1), 1024)))
    return f"{count / 1024**power:.3g} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
