"""Which orders of two models are worth a run: by their prices, within a budget."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ertacache.calibration.checks import check_number
from ertacache.errors import CalibrationError, InvalidArgument
from ertacache.metrics import lower_bound
from ertacache.split.judged import row_of
from ertacache.split.prices import best_block, best_subset, price, switched
from ertacache.split.recorded import SplitRuns

#: How far a share of operations may be over a budget, as numbers round.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Budget:
    """What a split may cost, or must keep: one of the two.

    Attributes:
        cloud_budget: share of the large model's operations. target_psnr: in dB.
    """

    cloud_budget: float | None = None
    target_psnr: float | None = None

    @classmethod
    def of(cls, cloud_budget: float | None, target_psnr: float | None) -> "Budget":
        """Raises InvalidArgument for none of them, both, or a number that cannot be meant."""
        if (cloud_budget is None) == (target_psnr is None):
            given = "neither" if cloud_budget is None else "both"
            raise InvalidArgument(f"{given} of cloud_budget and target_psnr is given; give one, as in cloud_budget=0.4")
        if cloud_budget is not None:
            remedy = "choose the share of the large model's operations, between 0 and 1, such as 0.4"
            check_number("cloud_budget", cloud_budget, remedy, lambda x: 0 < x < 1)
        else:
            remedy = "choose dB above 0 to keep, such as 30"
            check_number("target_psnr", target_psnr, remedy, lambda x: 0 < x < math.inf)
        return cls(cloud_budget, target_psnr)

    def check(self, steps: int) -> None:
        """Refuse a share that leaves the large model no step: `InvalidArgument`."""
        if self.cloud_budget is not None and self.cloud_budget * steps < 1 - _ROUNDING:
            raise InvalidArgument(
                f"cloud_budget is {self.cloud_budget:g}, which is no whole step of {steps}; give {1 / steps:.3g} or "
                "more, or use the small model alone"
            )

    def asked(self) -> dict[str, float]:
        """The one that is given, by its name."""
        return {name: value for name, value in vars(self).items() if value is not None}


def candidates_of(
    runs: SplitRuns, grams: Tensor, budget: Budget, *, any_order: bool, count: int
) -> list[tuple[int, ...]]:
    """The `count` orders within a share of operations that are worth a run, best price first; of each kind one."""
    limit = (budget.cloud_budget or 0.0) + _ROUNDING
    allowed = [s for s in range(runs.T) if runs.share(switched(runs.T, s)) <= limit]
    switches = _by_price(grams, [switched(runs.T, s) for s in allowed])
    kinds = list[tuple[int, ...]]()
    if any_order:
        most = max(allowed)
        kinds = [best_subset(grams, most), best_block(grams, most)]
        kinds = [order for order in kinds if runs.share(order) <= limit]
    found = list(dict.fromkeys([switches[0], *kinds, *switches[1:]]))[:count]
    return _by_price(grams, found)


def _by_price(grams: Tensor, orders: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    prices = price(grams, orders)
    return [orders[n] for n in sorted(range(len(orders)), key=lambda n: prices[n])]


def best_of(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The row that deviates least; of equal ones the cheaper.

    Raises:
        CalibrationError: all of them end in NaN or infinity.
    """
    measured = [row for row in rows if row["latent_log10_error"] is not None]
    if not measured:
        raise CalibrationError("all candidates end in NaN or infinity; run the pipeline in a wider dtype")
    return min(measured, key=lambda row: (row["latent_log10_error"], row["cloud_share"]))


def cheapest_that_keeps(runs: SplitRuns, grams: Tensor, psnr: float, *, any_order: bool) -> list[dict[str, Any]]:
    """The rows of the orders that were run to find the one with the fewest steps of the large model; it is the last.

    By bisection over the number of these steps, which takes more of them to be no worse; of each number the order with
    the lowest price is run.

    Raises:
        CalibrationError: none keeps it.
    """
    rows, kept = list[dict[str, Any]](), list[dict[str, Any]]()
    low, high = -1, runs.T
    while high - low > 1:
        n = (low + high) // 2
        orders = [switched(runs.T, n), *([best_block(grams, n), best_subset(grams, n)] if any_order else [])]
        order = _by_price(grams, orders)[0]
        row = row_of(runs, grams, order, "chosen")
        values = runs.measured("chosen", order)["psnr"]
        if len(values) == len(runs.parts.chosen.texts) and lower_bound(values) >= psnr:
            high = n
            kept.append(row)
        else:
            low = n
            rows.append(row)
    if not kept:
        raise CalibrationError(
            f"no switch before step {runs.T} keeps {psnr:g} dB on {len(runs.parts.chosen.texts)} prompts with 95 % "
            "confidence; ask for less, give more prompts, or use a better small model"
        )
    return [*rows, *kept]
