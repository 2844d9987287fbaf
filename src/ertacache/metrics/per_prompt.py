"""What one value per prompt says of a plan: its spread, its low end, and whether it beats another plan.

Values are such as PSNR: higher is better. They may be infinite (equal images have an infinite PSNR where nothing caps
it); a figure which that leaves without bound is None, since JSON has no infinity.
"""

import math
import statistics
from collections.abc import Sequence
from typing import NotRequired, TypedDict

from ertacache.errors import InvalidArgument
from ertacache.metrics.student_t import t_probability, t_quantile


class Figures(TypedDict):
    """Mean, sample standard deviation (n - 1), standard error of the mean, 10th percentile and the lowest value."""

    mean: float | None
    std: float | None
    standard_error: float | None
    p10: float | None
    worst: float | None


class Gain(TypedDict):
    """Mean difference, prompt by prompt, and its standard error."""

    mean: float | None
    standard_error: float | None


class Paired(TypedDict):
    """What `paired_gain` returns."""

    gain: Gain
    wins: bool
    confidence: NotRequired[float]


def figures(values: Sequence[float]) -> Figures:
    """Summary of one value per prompt.

    The 10th percentile lies at (n - 1) / 10 of the values in rising order, counted from 0, and is interpolated
    linearly between its neighbours. One prompt has no spread: std and standard_error are 0.

    Raises:
        InvalidArgument: no value, or NaN.
    """
    _check(values)
    ordered = sorted(values)
    first, tenths = divmod(len(ordered) - 1, 10)
    low, high = ordered[first], ordered[min(first + 1, len(ordered) - 1)]
    p10 = low + (high - low) * tenths / 10 if tenths else low
    mean, error = _mean_and_error(values)
    std = None if error is None else _std(values)
    return {"mean": mean, "std": std, "standard_error": error, "p10": _bounded(p10), "worst": _bounded(ordered[0])}


def differences(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """`ours` minus `theirs`, prompt by prompt; equal values differ by 0, infinite ones too.

    An infinite difference outweighs all finite ones. Where there is one, the result is 1 or -1 for each infinite
    difference and 0 for each finite one: the ratio of mean and standard error is then the limit that it has when these
    differences grow without bound.

    Raises:
        InvalidArgument: no value, NaN, or unequal numbers of values.
    """
    for values in (ours, theirs):
        _check(values)
    if len(ours) != len(theirs):
        raise InvalidArgument(
            f"ours has {len(ours)} values and theirs {len(theirs)}; give one of each for every prompt"
        )
    found = [0.0 if a == b else a - b for a, b in zip(ours, theirs, strict=True)]
    if any(map(math.isinf, found)):
        return [math.copysign(1, one) if math.isinf(one) else 0.0 for one in found]
    return found


def paired_gain(ours: Sequence[float], theirs: Sequence[float]) -> Paired:
    """How one plan stands to another on the same prompts.

    Returns:
        `gain`: ours minus theirs; `wins`: its mean is above 0; `confidence`, from two prompts on: one-sided, that ours
        is better in the mean over all such prompts, the probability of Student's t with n - 1 degrees of freedom at
        mean / standard error. Without any spread it is 1, 0 or 0.5 by the sign.

    Raises:
        InvalidArgument: as `differences` does.
    """
    found = differences(ours, theirs)
    mean, error = statistics.fmean(found), _std(found) / math.sqrt(len(found))
    unbounded = any(a != b and math.isinf(a - b) for a, b in zip(ours, theirs, strict=True))
    gain: Gain = {"mean": None, "standard_error": None} if unbounded else {"mean": mean, "standard_error": error}
    result: Paired = {"gain": gain, "wins": mean > 0}
    if len(found) > 1:
        t = mean / error if error else math.copysign(math.inf, mean) if mean else 0.0
        result["confidence"] = t_probability(t, len(found) - 1)
    return result


def lower_bound(values: Sequence[float], confidence: float = 0.95) -> float:
    """The one-sided lower confidence bound of the mean: mean - t · standard error, t the quantile of Student's t.

    Values of +infinity are left out, which can only lower the bound; if all are, it is +infinity. A single value gives
    no bound: -infinity.

    Raises:
        InvalidArgument: no value, NaN, or a confidence that does not lie between 0 and 1.
    """
    _check(values)
    kept = [value for value in values if value != math.inf]
    t = t_quantile(confidence, max(len(kept) - 1, 1))
    if not kept:
        return math.inf
    mean, error = _mean_and_error(kept)
    return -math.inf if mean is None or error is None or len(kept) == 1 else mean - t * error


def _check(values: Sequence[float]) -> None:
    if not values or any(map(math.isnan, values)):
        raise InvalidArgument(f"the values are {list(values)[:5]}; give one number for each prompt, one at least")


def _std(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _mean_and_error(values: Sequence[float]) -> tuple[float | None, float | None]:
    if not all(map(math.isfinite, values)):
        return None, None
    return statistics.fmean(values), _std(values) / math.sqrt(len(values))


def _bounded(value: float) -> float | None:
    return value if math.isfinite(value) else None
