"""Which plan is taken: the simplest of those that are as good as the best, and that no unseen prompt speaks against."""

import math
from collections.abc import Sequence

from ertacache.errors import InvalidArgument
from ertacache.metrics.per_prompt import differences, figures


def simpler_on_a_tie(candidates: Sequence[Sequence[float]]) -> int:
    """The index of the simplest candidate than which no other is better by more than one standard error.

    Differences are taken prompt by prompt: what is hard for all plans does not count. To be within the error of the
    best is not enough: a best one that spreads much may hide that another is better throughout. One prompt has no
    spread, so that only an equal candidate ties with the best there.

    Args:
        candidates: from the simplest to the least simple, the log errors of each on the same prompts, lower is better;
            minus infinity for equal results, infinity for a run that diverged. A candidate with a diverged run is
            taken only if all have one; then it is the first, and the caller has to refuse it.

    Raises:
        InvalidArgument: no candidate, no prompt, NaN, or unequal numbers of prompts.
    """
    _check(candidates)
    sound = [n for n in range(len(candidates)) if math.inf not in candidates[n]]
    ties = (n for n in sound if all(_ties(candidates[n], candidates[m]) for m in sound))
    return next(ties, 0)


def unrefuted(unseen: Sequence[Sequence[float]]) -> list[int]:
    """Indices of the candidates than which no simpler one is better by more than one standard error.

    A closed loop flatters some plans more than others on the prompts that it was fitted to, where steps are few by
    more than the plans differ: those prompts may tell plans apart, but not overrule the others. One prompt, which has
    no spread, speaks against none.

    Args:
        unseen: from the simplest to the least simple, the log errors of each on the same prompts, none of which it was
            fitted to; infinite as in `simpler_on_a_tie`.

    Raises:
        InvalidArgument: as `simpler_on_a_tie`.
    """
    _check(unseen)
    one = len(unseen[0]) == 1
    return [n for n, errors in enumerate(unseen) if one or all(_ties(errors, simpler) for simpler in unseen[:n])]


def _check(candidates: Sequence[Sequence[float]]) -> None:
    if not candidates:
        raise InvalidArgument("there is no candidate to choose from; give the errors of one at least")
    for errors in candidates:
        differences(errors, candidates[0])  # checks all of them, diverged ones too


def _ties(errors: Sequence[float], best: Sequence[float]) -> bool:
    found = figures(differences(errors, best))
    mean, error = found["mean"], found["standard_error"]
    return mean is not None and error is not None and mean <= error
