"""Exact schedules of K computed steps over the prices of their segments."""

from typing import Literal

import torch
from torch import Tensor

from ertacache.core.schedule import Schedule
from ertacache.core.segment_costs import SegmentCosts
from ertacache.errors import InvalidArgument, ScheduleInvalid

Combine = Literal["sum", "max"]


def cheapest(costs: SegmentCosts, K: int, combine: Combine = "sum", *, last: bool = True) -> tuple[Schedule, float]:
    """The schedule of K computed steps whose segments cost least in sum, or whose dearest segment is cheapest.

    Among equal sums the one that computes steps earlier is taken. Among schedules whose dearest segments are
    equal, which are many, the smallest sum decides.

    Args:
        last: whether the last step must be computed.

    Returns:
        The schedule and its price: the sum or the maximum of its segments'.

    Raises:
        ScheduleInvalid: no schedule of K steps exists between these boundaries and gaps.
        InvalidArgument: another way to combine.
    """
    if combine not in ("sum", "max"):
        raise InvalidArgument(f"combine is {combine!r}; use 'sum' or 'max'")
    prices = _priced(costs, last)
    if combine == "sum":
        return _best(costs, prices, K, 1)[0]
    bound = _least_maximum(costs, prices, K)
    schedule, _ = _best(costs, torch.where(prices <= bound, prices, torch.inf), K, 1)[0]
    return schedule, bound


def cheapest_few(costs: SegmentCosts, K: int, m: int, *, last: bool = True) -> list[tuple[Schedule, float]]:
    """The m distinct schedules of K computed steps with the smallest sums, cheapest first; fewer where fewer exist.

    Raises:
        ScheduleInvalid: none exists.
        InvalidArgument: m is below 1.
    """
    if m < 1:
        raise InvalidArgument(f"m is {m}; ask for 1 schedule or more")
    return _best(costs, _priced(costs, last), K, m)


def price_of(costs: SegmentCosts, schedule: Schedule, combine: Combine = "sum") -> float:
    """The price of a given schedule, infinite where it skips a boundary or exceeds the longest gap.

    Raises:
        ScheduleInvalid: a schedule of another number of steps.
    """
    if schedule.T != costs.T:
        raise ScheduleInvalid(f"the schedule has T={schedule.T} steps and the prices T={costs.T}; use the same run")
    state, paid = 0, list[float]()
    steps = schedule.computed_steps
    for step, end in zip(steps, (*steps[1:], costs.T), strict=True):
        column = end - step - 1
        price = float(costs.prices[state, column]) if column < costs.prices.shape[1] else torch.inf
        if price == torch.inf:
            return price
        paid.append(price)
        state = int(costs.following[state, column])
    return sum(paid) if combine == "sum" else max(paid)


def _priced(costs: SegmentCosts, last: bool) -> Tensor:
    """Prices without the segments that reach the end from any step but the last, if that must be computed."""
    if not last:
        return costs.prices
    ending = _ending(costs)
    ending[:, 0] = False
    return costs.prices.masked_fill(ending, torch.inf)


def _ending(costs: SegmentCosts) -> Tensor:
    """[S, L] bool: the segments that end with the run."""
    newest = torch.tensor([state[0] for state in costs.states])
    return newest[:, None] + torch.arange(1, costs.prices.shape[1] + 1) == costs.T


def _least_maximum(costs: SegmentCosts, prices: Tensor, K: int) -> float:
    ending = _ending(costs)
    inner = prices.masked_fill(ending, torch.inf)
    best = torch.where(ending, prices, torch.inf).amin(1)
    for _ in range(K - 1):
        best = torch.maximum(inner, best[costs.following]).amin(1)
    return float(best[0])


def _best(costs: SegmentCosts, prices: Tensor, K: int, m: int) -> list[tuple[Schedule, float]]:
    """The m paths of K segments from step 0 to the end of the run with the smallest sums.

    Backwards: the m smallest sums from every state on with one segment, two, ... K; and for each the segment that
    it begins with and which of the next state's sums it goes on with, as one number.
    """
    ending = _ending(costs)
    inner = prices.masked_fill(ending, torch.inf)
    best, order = torch.where(ending, prices, torch.inf).min(1, keepdim=True)
    taken, widths = [order], [1]
    for _ in range(K - 1):
        widths.append(best.shape[1])
        onward = (inner[:, :, None] + best[costs.following]).flatten(1)
        if m == 1:
            best, order = onward.min(1, keepdim=True)  # of equal ones the first: the earlier step
        else:
            best, order = (x[:, :m].clone() for x in onward.sort(dim=1, stable=True))
        taken.append(order)
    found = int((best[0] < torch.inf).sum()) if K >= 1 else 0
    if not found:
        fewest = next(k for k in range(1, costs.T + 1) if _least_maximum(costs, prices, k) < torch.inf)
        raise ScheduleInvalid(
            f"no schedule computes K={K} of T={costs.T} steps between these boundaries and gaps; "
            f"choose K from {fewest} to {costs.T}"
        )
    return [(_trace(costs, taken, widths, rank), float(best[0, rank])) for rank in range(found)]


def _trace(costs: SegmentCosts, taken: list[Tensor], widths: list[int], rank: int) -> Schedule:
    state, steps = 0, list[int]()
    for order, width in zip(reversed(taken), reversed(widths), strict=True):
        steps.append(costs.states[state][0])
        column, rank = divmod(int(order[state, rank]), width)
        state = int(costs.following[state, column])
    return Schedule.from_steps(costs.T, steps)
