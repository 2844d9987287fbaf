"""Which plan is taken where several are as good: the simplest."""

import math
import statistics
from collections.abc import Sequence

from ertacache.errors import InvalidArgument
from ertacache.metrics.per_prompt import differences, figures


def simpler_on_a_tie(candidates: Sequence[Sequence[float]]) -> int:
    """The index of the simplest candidate whose mean difference to the best is within one standard error of it.

    Differences are taken prompt by prompt: what is hard for all plans does not count. One prompt has no spread, so
    that only an equal candidate ties with the best there.

    Args:
        candidates: from the simplest to the least simple, the log errors of each on the same prompts, lower is better;
            minus infinity for equal results, infinity for a run that diverged. A candidate with a diverged run is
            taken only if all have one; then it is the first, and the caller has to refuse it.

    Raises:
        InvalidArgument: no candidate, no prompt, NaN, or unequal numbers of prompts.
    """
    if not candidates:
        raise InvalidArgument("there is no candidate to choose from; give the errors of one at least")
    for errors in candidates:
        differences(errors, candidates[0])  # checks all of them, diverged ones too
    sound = [n for n in range(len(candidates)) if math.inf not in candidates[n]]
    if not sound:
        return 0
    best = sound[0]
    for n in sound[1:]:
        if statistics.fmean(differences(candidates[n], candidates[best])) < 0:
            best = n
    return next(n for n in sound if _ties(candidates[n], candidates[best]))


def _ties(errors: Sequence[float], best: Sequence[float]) -> bool:
    found = figures(differences(errors, best))
    mean, error = found["mean"], found["standard_error"]
    return mean is not None and error is not None and mean <= error
