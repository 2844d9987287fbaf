from itertools import combinations, pairwise

import pytest
import torch

from ertacache.core.paths import Combine, cheapest, cheapest_few, price_of
from ertacache.core.run_gram import RunGrams
from ertacache.core.schedule import Schedule
from ertacache.core.segment_costs import SegmentCosts, segment_costs
from ertacache.errors import InvalidArgument, ScheduleInvalid


def random_costs(
    T: int, levels: int, *, seed: int = 0, boundaries: tuple[int, ...] = (), max_gap: int | None = None
) -> SegmentCosts:
    """Prices of random runs of two prompts with random growth."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(2, 3 * T + 1, 40, generator=generator, dtype=torch.float64)
    growth = torch.rand(T + 1, generator=generator) + 0.5
    grams = RunGrams(T, vectors @ vectors.mT)
    return segment_costs(grams, levels, min(levels, 2), growth=growth, boundaries=boundaries, max_gap=max_gap)


def by_hand(costs: SegmentCosts, steps: tuple[int, ...], levels: int, starts: set[int], combine: Combine) -> float:
    """The price of a schedule, from the table of states alone."""
    history, paid = (0,), list[float]()
    for step, end in zip(steps, (*steps[1:], costs.T), strict=True):
        row = costs.prices[costs.states.index(history)]
        paid.append(float(row[end - step - 1]) if end - step <= len(row) else torch.inf)
        history = (end,) if end in starts else (end, *history)[:levels]
        if paid[-1] == torch.inf:
            break
    return sum(paid) if combine == "sum" else max(paid)


def every(
    costs: SegmentCosts, K: int, levels: int, combine: Combine, boundaries: tuple[int, ...] = ()
) -> list[tuple[float, Schedule]]:
    """All schedules of K steps with both ends computed, and the boundaries, each with its price."""
    T, found = costs.T, []
    for inner in combinations(range(1, T - 1), K - 2):
        steps = (0, *inner, T - 1)
        if set(boundaries) <= set(steps):
            price = by_hand(costs, steps, levels, set(boundaries), combine)
            if price < torch.inf:
                found.append((price, Schedule.from_steps(T, steps)))
    return found


@pytest.mark.parametrize("combine", ["sum", "max"])
@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize(("T", "boundaries"), [(3, ()), (6, ()), (9, ()), (12, ()), (9, (4,)), (12, (3, 8)), (7, (6,))])
def test_paths_equal_brute_force(T: int, boundaries: tuple[int, ...], levels: int, combine: Combine):
    costs = random_costs(T, levels, seed=T, boundaries=boundaries)
    for K in range(len({0, *boundaries, T - 1}), T + 1):
        candidates = every(costs, K, levels, combine, boundaries)
        least = min(price for price, _ in candidates)
        schedule, price = cheapest(costs, K, combine)
        assert price == pytest.approx(least, rel=1e-12, abs=1e-12)
        assert price_of(costs, schedule, combine) == pytest.approx(least, rel=1e-12, abs=1e-12)
        assert schedule.K == K and schedule.computed[-1] and set(boundaries) <= set(schedule.computed_steps)
        if combine == "max":  # of those with the least maximum, the smallest sum
            equal = [price_of(costs, other) for price, other in candidates if price == least]
            assert price_of(costs, schedule) == pytest.approx(min(equal), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_the_last_step_may_be_predicted(levels: int):
    costs = random_costs(9, levels, seed=4)
    for K in range(1, 10):
        prices = [by_hand(costs, (0, *rest), levels, set(), "sum") for rest in combinations(range(1, 9), K - 1)]
        schedule, price = cheapest(costs, K, last=False)
        assert price == pytest.approx(min(prices), rel=1e-12, abs=1e-12) and schedule.K == K


@pytest.mark.parametrize("levels", [1, 3])
def test_the_few_cheapest_are_those_of_brute_force(levels: int):
    costs = random_costs(10, levels, seed=2, boundaries=(5,))
    for K in range(3, 11):
        expected = sorted(price for price, _ in every(costs, K, levels, "sum", (5,)))[:8]
        found = cheapest_few(costs, K, 8)
        assert [price for _, price in found] == pytest.approx(expected, rel=1e-12, abs=1e-12)
        assert len({schedule for schedule, _ in found}) == len(found)
        for schedule, price in found:
            assert price_of(costs, schedule) == pytest.approx(price, rel=1e-12, abs=1e-12)
        assert found[0] == cheapest(costs, K)


def test_a_longest_gap_holds():
    costs = random_costs(12, 2, max_gap=3)
    for K in range(5, 13):
        steps = cheapest(costs, K)[0].computed_steps
        assert all(b - a <= 3 for a, b in pairwise(steps))
    assert price_of(costs, Schedule.uniform(12, 3)) == torch.inf == price_of(costs, Schedule.uniform(12, 3), "max")


@pytest.mark.parametrize("combine", ["sum", "max"])
def test_of_equal_schedules_the_earlier_steps_are_computed(combine: Combine):
    costs = random_costs(8, 2)
    level = SegmentCosts(8, costs.states, torch.where(costs.prices.isfinite(), 0.0, torch.inf), costs.following)
    assert str(cheapest(level, 4, combine)[0]) == "###....#"
    assert [str(schedule) for schedule, _ in cheapest_few(level, 4, 3)] == ["###....#", "##.#...#", "##..#..#"]


def test_a_run_of_one_step_is_computed():
    assert cheapest(random_costs(1, 3), 1) == (Schedule.all_computed(1), 0.0)


def test_two_searches_find_the_same():
    assert cheapest_few(random_costs(12, 3), 6, 8) == cheapest_few(random_costs(12, 3), 6, 8)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: cheapest(random_costs(9, 2), 1), ScheduleInvalid, "boundaries and gaps; choose K from 2 to 9"),
        (lambda: cheapest(random_costs(9, 2), 0, "max"), ScheduleInvalid, "K=0 of T=9 steps between"),
        (lambda: cheapest(random_costs(9, 2), 10), ScheduleInvalid, "K=10 of T=9 steps"),
        (lambda: cheapest(random_costs(9, 2, max_gap=3), 3, "max"), ScheduleInvalid, "K=3 .* choose K from 4 to 9"),
        (lambda: cheapest_few(random_costs(9, 2, boundaries=(4, 6)), 3, 8), ScheduleInvalid, "choose K from 4 to 9"),
        (lambda: cheapest_few(random_costs(5, 2), 3, 0), InvalidArgument, "m is 0; ask for 1 schedule or more"),
        (lambda: cheapest(random_costs(5, 2), 3, "mean"), InvalidArgument, "combine is 'mean'; use 'sum' or 'max'"),  # type: ignore[arg-type]
        (lambda: price_of(random_costs(5, 2), Schedule.uniform(6, 3)), ScheduleInvalid, "T=6 steps .* T=5; use"),
    ],
)  # fmt: skip
def test_refusals(build, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        build()
