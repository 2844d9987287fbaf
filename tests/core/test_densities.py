import math

import pytest

from ertacache.core.densities import density
from ertacache.core.schedule import Schedule
from ertacache.errors import InvalidArgument, ScheduleInvalid

POWERS = (0.2, 0.5, 0.8, 1.0, 1.15, 1.3, 1.8, 2.0, 5.0)


@pytest.mark.parametrize("T", range(1, 61))
def test_exactly_K_steps_the_first_and_the_last_among_them(T: int):
    for K in range(min(2, T), T + 1):
        for power in POWERS:
            schedule = density(T, K, power)
            assert (schedule.T, schedule.K) == (T, K)
            assert schedule.computed[0] and schedule.computed[-1]
        assert density(T, K, 1) == density(T, K, 1.0) == Schedule.uniform(T, K)


def test_above_power_1_gaps_grow_and_below_they_shrink():
    assert density(17, 5, 2.0).computed_steps == (0, 1, 4, 9, 16)  # gaps 1, 3, 5, 7
    assert density(17, 5, 0.5).computed_steps == (0, 8, 11, 14, 16)


def test_steps_that_round_to_one_are_filled_at_the_dense_end():
    # 19 (j/9)^3 rounds to 0, 0, 0, 1, 2, 3, 6, 9, 13, 19: two are missing, and 4 and 5 are the earliest free ones.
    assert density(20, 10, 3.0).computed_steps == (0, 1, 2, 3, 4, 5, 6, 9, 13, 19)
    # 19 (j/9)^(1/3) rounds to 0, 9, 12, 13, 14, 16, 17, 17, 18, 19: one is missing, and 15 is the latest free one.
    assert density(20, 10, 1 / 3).computed_steps == (0, 9, 12, 13, 14, 15, 16, 17, 18, 19)


def test_31_of_50_steps():
    assert str(density(50, 31, 0.8)) == "#..#..#.#.#.#.##.#.##.#.##.##.##.###.##.###.###.##"
    assert str(density(50, 31, 1.3)) == "########.##.##.#.##.#.##.#.#.#.#.#.#.#.#.#.#.#.#.#"
    assert str(density(50, 31, 1.8)) == "#################.#.#.#.#.#.#.#..#.#..#..#.#..#..#"


@pytest.mark.parametrize("power", [0, -1.0, math.nan, math.inf])
def test_a_power_that_is_no_positive_number_is_refused(power: float):
    with pytest.raises(InvalidArgument, match=f"power is {power}; use 1 for even gaps"):
        density(10, 5, power)


@pytest.mark.parametrize(("T", "K"), [(5, 1), (5, 6), (1, 2), (0, 0)])
def test_a_budget_that_cannot_be_spread_is_refused(T: int, K: int):
    with pytest.raises(ScheduleInvalid):
        density(T, K, 1.3)
