"""What a calibration will take: pipeline calls, and their work in uncached runs of one prompt."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from ertacache.calibration.candidates import HISTORIES, strengths_of
from ertacache.calibration.choices import Budget
from ertacache.calibration.defaults import Choices
from ertacache.calibration.prompts import Prompts
from ertacache.core.schedule import Schedule

#: Runs of a threshold search; passes of a fit over several batches.
_SEARCH, _PASSES = 10, 4


@dataclass(frozen=True, slots=True)
class Effort:
    """An estimate where a threshold is searched or a fit takes several batches, else exact.

    Attributes:
        calls: pipeline calls.
        work: in uncached runs of one prompt.
        first: work of the first call.
    """

    calls: int
    work: float
    first: int

    def seconds(self, first: float) -> float:
        """How long it all takes, by the seconds of the first call."""
        return first * self.work / self.first


def effort(choices: Choices, budget: Budget, fitted: Prompts, held: Prompts, size: int | None, T: int | None) -> Effort:
    """The effort of these choices.

    Args:
        size: prompts per pipeline call, None for all at once.
        T: number of steps, None where it is not known.
    """
    batches, held_batches = len(fitted.batches(size)), len(held.batches(size))
    strengths = strengths_of(choices.timesteps)
    histories = len(HISTORIES) if choices.history == "auto" else 1
    aims = 2 if choices.aim == "auto" else 1
    plans = histories * (len(strengths) + aims - 1)
    # Reuse on the solver's own grid has nothing to fit.
    reuse, rectified = choices.basis != "fitted", choices.rectifier != "none"
    free = reuse and not rectified and 0 in strengths
    # A grid of reuse is fitted on what the solver receives, a rectifier of the calls after it.
    grids = sum(strength != 0 for strength in strengths) * (reuse and rectified and choices.site != "guided")
    searches = 0 if choices.schedule != "policy" else 1 if budget.threshold is not None else _SEARCH
    K = choices.schedule.K if isinstance(choices.schedule, Schedule) else budget.compute_steps
    predicted = T - K if T and K else _PASSES
    passes = 1 if batches == 1 else max(_PASSES, predicted) if choices.aim == "trajectory" else _PASSES
    loops = passes * (searches + plans - free + grids)
    share = K / T if T and K else 0.5
    # What is measured: every plan, and fewer steps at the cost of the best.
    return Effort(
        calls=batches * (1 + loops) + held_batches * (2 + plans),
        work=len(fitted.texts) * (1 + loops) + len(held.texts) * (1 + share * (plans + 1)),
        first=len(fitted.batches(size)[0].texts),
    )


def estimating(advance: Callable[[str], None], expected: Effort, say: Callable[[str], None]) -> Callable[[str], None]:
    """`advance`, which also says how long everything takes once the first run, an uncached one, is done."""
    begun = time.monotonic()
    waiting = True

    def told(name: str) -> None:
        nonlocal waiting
        if waiting:
            waiting = False
            taken = time.monotonic() - begun
            say(f"the first run took {duration(taken)}, all of them take about {duration(expected.seconds(taken))}")
        advance(name)

    return told


def duration(seconds: float) -> str:
    """In the largest unit that leaves a number above 1."""
    if seconds < 99.5:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.1f} h"
