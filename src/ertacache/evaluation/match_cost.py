"""A method's knob turned until its counted cost is as near to a wanted one as it gets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ertacache.baselines.baseline import Baseline
from ertacache.errors import InvalidArgument

_PROBES = 9
#: Costs closer than this to the wanted one are not worth another probe.
_CLOSE = 0.004
#: By how much one of several variants may cost more than wanted, in favour of the method: what an interval of whole
#: steps misses a cost by.
_SLACK = 0.04


@dataclass(frozen=True)
class Matched:
    """A method at a wanted cost.

    Attributes:
        method: with its knob set.
        cost: what it reached, as a share of the uncached run's operations.
        probes: knob value and cost of every trial, in the order they were made.
    """

    method: Baseline
    cost: float
    probes: tuple[tuple[float, float], ...]


def match_cost(method: Baseline, target: float, cost: Callable[[Baseline], float]) -> Matched:
    """Bisection on the knob, which trades cost for quality more or less monotonely; the nearest trial wins.

    Args:
        target: share of the uncached run's operations, in (0, 1).
        cost: counts one method.

    Raises:
        InvalidArgument: a target outside of (0, 1).
    """
    if not 0 < target < 1:
        raise InvalidArgument(f"cost is {target:g}; choose a share of the uncached run between 0 and 1, such as 0.5")
    knob, tried = method.knob, dict[float, tuple[float, Baseline]]()

    def probe(value: float) -> float:
        value = float(round(value)) if knob.whole else value
        if value not in tried:
            candidate = method.at(value)
            tried[value] = cost(candidate), candidate
        return tried[value][0]

    low, high = knob.low, knob.high
    if probe(low) > target > probe(high):
        for _ in range(_PROBES):
            middle = (low + high) / 2
            if knob.whole and abs(high - low) <= 1:
                break
            found = probe(middle)
            low, high = (middle, high) if found > target else (low, middle)
            if abs(found - target) < _CLOSE:
                break
    value = min(tried, key=lambda tried_value: (abs(tried[tried_value][0] - target), abs(tried_value - knob.low)))
    reached, best = tried[value]
    return Matched(best, reached, tuple((value, found) for value, (found, _) in tried.items()))


def best_variant(variants: Sequence[Matched], target: float, deviation: Callable[[Baseline], float]) -> Matched:
    """Of a method's variants at a wanted cost, the one that deviates least.

    Those that cost more than the target by more than 0.04 are left out; where all do, those that cost more than the
    cheapest by as much.

    Args:
        target: share of the uncached run's operations, in (0, 1).
        deviation: of one method from the uncached run; asked only where there is a choice. Never on prompts that judge.
    """
    most = max(target, min(variant.cost for variant in variants)) + _SLACK
    near = [variant for variant in variants if variant.cost <= most]
    return near[0] if len(near) == 1 else min(near, key=lambda variant: deviation(variant.method))
