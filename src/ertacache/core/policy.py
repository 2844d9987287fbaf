"""The offline policy: how large the error of a reused residual is, and what a threshold makes of it.

Everything here is a sum over prompts, so that one decision per step serves all of them (Eq. 12, Algorithm 2).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ertacache.core.precision import exact
from ertacache.errors import InvalidArgument


def l1_per_prompt(x: Tensor) -> Tensor:
    """‖x‖₁ of each prompt: [B, *] of any dtype -> [B] float64."""
    return exact(x).flatten(1).abs().sum(1)


class RelativeL1:
    """Eq. 12, ‖reused − true‖₁ / ‖reference‖₁ with both norms over all prompts; its memory is two numbers."""

    def __init__(self) -> None:
        self.error = 0.0
        self.reference = 0.0

    def update(self, reused: Tensor, true: Tensor, reference_l1: Tensor) -> None:
        """Add B prompts: residuals [B, *] and, from the uncached run, `l1_per_prompt` of its residual [B]."""
        self.error += float(l1_per_prompt(exact(reused) - exact(true)).sum())
        self.reference += float(exact(reference_l1).sum())

    def merge(self, other: "RelativeL1") -> None:
        """Add the prompts that `other` has seen."""
        self.error += other.error
        self.reference += other.reference

    @property
    def value(self) -> float:
        """The ratio, dimensionless; without any reference 0 for no error and infinity for some."""
        if self.reference == 0:
            return math.inf if self.error else 0.0
        return self.error / self.reference


def decide(i: int, T: int, value: float, threshold: float) -> bool:
    """Algorithm 2: True to predict step i of T, where `value` is Eq. 12 there.

    The first and the last step are always computed, and so is a step whose value is NaN.
    """
    return 0 < i < T - 1 and value < threshold


class Probe(NamedTuple):
    """One threshold that was tried, and how many steps it computes."""

    threshold: float
    computed: int


def nearest_threshold(count: Callable[[float], int], K: int, lo: float, hi: float, probes: int = 12) -> list[Probe]:
    """Search the threshold whose schedule computes about K steps.

    K(λ) falls only roughly and skips values: bisection steers, and every probe is a candidate. An exact
    hit ends the search.

    Args:
        count: threshold -> number of computed steps; called once per probe.
        K: the budget.
        lo, hi: the thresholds to search between.
        probes: how many to try at most.

    Returns:
        All probes, the nearest to K first; of equally near ones the larger K, then the smaller threshold.

    Raises:
        InvalidArgument: an empty range of thresholds, or no probes.
    """
    if not 0 <= lo < hi or probes < 1:
        raise InvalidArgument(f"lo={lo}, hi={hi}, probes={probes}: need 0 <= lo < hi and at least 1 probe")
    tried: list[Probe] = []
    while len(tried) < probes and not (tried and tried[-1].computed == K):
        middle = (lo + hi) / 2
        tried.append(Probe(middle, count(middle)))
        lo, hi = (middle, hi) if tried[-1].computed > K else (lo, middle)
    return sorted(tried, key=lambda probe: (abs(probe.computed - K), -probe.computed, probe.threshold))
