"""What many prompts say of a plan: exact values, by hand and by numpy, and infinite ones."""

import math
from typing import Any

import numpy as np
import pytest

from ertacache.errors import InvalidArgument
from ertacache.metrics import differences, figures, lower_bound, paired_gain, t_quantile
from profile_maker import facts

INF = math.inf


def test_figures_by_hand() -> None:
    """Eleven values: position 1 is the 10th percentile."""
    values = [40.0, 30, 31, 32, 33, 34, 35, 36, 37, 38, 28]
    assert figures(values) == {
        "mean": 34.0,
        "std": math.sqrt(13.2),
        "standard_error": math.sqrt(13.2) / math.sqrt(11),
        "p10": 30.0,
        "worst": 28.0,
    }
    assert figures([3.0, 1.0]) == {"mean": 2, "std": 2**0.5, "standard_error": 2**0.5 / 2**0.5, "p10": 1.2, "worst": 1}
    assert figures([7.5]) == {"mean": 7.5, "std": 0, "standard_error": 0, "p10": 7.5, "worst": 7.5}


@pytest.mark.parametrize("n", [2, 3, 9, 10, 11, 12, 21, 64])
def test_figures_by_numpy(n: int) -> None:
    values = np.random.default_rng(n).normal(35, 4, n)
    found: Any = figures(values.tolist())
    expected = (values.mean(), values.std(ddof=1), values.std(ddof=1) / n**0.5, np.quantile(values, 0.1), values.min())
    assert tuple(found.values()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("values", "p10", "worst"),
    [([INF], None, None), ([INF, INF], None, None), ([30.0, INF], None, 30), ([30.0] * 2 + [INF] * 9, 30, 30)],
)
def test_equal_pictures_leave_figures_without_bound(values: list[float], p10: Any, worst: Any) -> None:
    found = figures(values)
    assert found == {"mean": None, "std": None, "standard_error": None, "p10": p10, "worst": worst}
    assert facts(heldout={"psnr": found}).heldout["psnr"] == found  # a profile can hold it


def test_values_below_all_bounds() -> None:
    assert figures([-INF, 1.0]) == dict.fromkeys(("mean", "std", "standard_error", "p10", "worst"))


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([3.0, 2.0], [1.0, 5.0], [2, -3]),
        ([INF, 2.0], [INF, 5.0], [0, -3]),
        ([-INF, 2.0], [-INF, 5.0], [0, -3]),
        ([INF, 90.0, 1.0], [40.0, 2.0, INF], [1, 0, -1]),
        ([INF], [-INF], [1]),
    ],
)
def test_differences(ours: list[float], theirs: list[float], expected: list[float]) -> None:
    assert differences(ours, theirs) == expected


def test_paired_by_hand() -> None:
    """Differences 1, 2, 3: mean 2, standard error 1/√3, t = 2√3 with 2 degrees of freedom."""
    found = paired_gain([31.0, 33.0, 43.0], [30.0, 31.0, 40.0])
    t = 2 * math.sqrt(3)
    assert found["gain"] == {"mean": 2.0, "standard_error": pytest.approx(1 / math.sqrt(3), rel=1e-15)}
    assert found["wins"] is True
    assert found.get("confidence") == pytest.approx(0.5 + t / (2 * math.sqrt(2 + t * t)), abs=1e-14)
    back = paired_gain([30.0, 31.0, 40.0], [31.0, 33.0, 43.0])
    assert back["wins"] is False
    assert back.get("confidence") == pytest.approx(0.5 - t / (2 * math.sqrt(2 + t * t)), abs=1e-14)


@pytest.mark.parametrize(("gain", "confidence"), [(0.5, 1.0), (0.0, 0.5), (-0.5, 0.0)])
def test_without_spread_the_sign_decides(gain: float, confidence: float) -> None:
    found = paired_gain([30 + gain, 40 + gain], [30.0, 40.0])
    assert found == {"gain": {"mean": gain, "standard_error": 0}, "wins": gain > 0, "confidence": confidence}


def test_one_prompt_gives_no_confidence() -> None:
    assert paired_gain([31.0], [30.0]) == {"gain": {"mean": 1.0, "standard_error": 0.0}, "wins": True}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ([INF, 30.0, 31.0], [40.0, 29.0, 33.0]),
        ([INF, INF, 31.0, 35.0], [40.0, 39.0, 33.0, 30.0]),
        ([30.0, 31.0], [INF, 30.0]),
        ([INF, 30.0], [40.0, INF]),
    ],
)
def test_infinite_gains_are_the_limit_of_large_ones(ours: list[float], theirs: list[float]) -> None:
    found = paired_gain(ours, theirs)
    large = [[min(value, 1e12) for value in values] for values in (ours, theirs)]
    limit = paired_gain(*large)
    assert found["gain"] == {"mean": None, "standard_error": None}
    assert found.get("confidence") == pytest.approx(limit.get("confidence"), abs=1e-9)
    assert found["wins"] is (sum(map(math.isinf, ours)) > sum(map(math.isinf, theirs)))


def test_gains_where_both_are_equal_pictures_stay_finite() -> None:
    found = paired_gain([INF, 33.0], [INF, 31.0])
    assert found["gain"] == {"mean": 1.0, "standard_error": 1.0} and found.get("confidence") == 0.75


def test_lower_bound_by_hand() -> None:
    """Mean 34, standard error 2, one degree of freedom: t at 95 % is tan(0.45 π)."""
    assert lower_bound([32.0, 36.0]) == pytest.approx(34 - 2 * math.tan(0.45 * math.pi), rel=1e-13)
    assert lower_bound([32.0, 36.0], 0.75) == pytest.approx(32, rel=1e-14)
    assert lower_bound([1.0, 2, 3, 4, 5], 0.99) == pytest.approx(3 - t_quantile(0.99, 4) / math.sqrt(2), rel=1e-14)
    assert lower_bound([35.0] * 4) == 35


def test_the_bound_holds_as_often_as_it_says() -> None:
    """4000 draws of 6 values: it is below the mean in 95 % of them, give or take three standard errors."""
    draws = np.random.default_rng(0).normal(30, 5, (4000, 6)).tolist()
    held = sum(lower_bound(values) < 30 for values in draws) / len(draws)
    assert abs(held - 0.95) < 3 * math.sqrt(0.95 * 0.05 / len(draws))


@pytest.mark.parametrize(
    ("values", "bound"),
    [([INF], INF), ([INF, INF], INF), ([30.0], -INF), ([INF, 30.0], -INF), ([-INF, 30.0, 31.0], -INF)],
)
def test_bounds_that_are_none(values: list[float], bound: float) -> None:
    assert lower_bound(values) == bound


def test_equal_pictures_only_lower_the_bound() -> None:
    assert lower_bound([32.0, INF, 36.0]) == lower_bound([32.0, 36.0])


def test_what_is_refused() -> None:
    for give in (figures, lower_bound, lambda values: paired_gain(values, [1.0]), lambda v: differences([1.0], v)):
        for values in ([], [math.nan, 1.0]):
            with pytest.raises(InvalidArgument, match=r"the values are \[.*\]; give one number for each prompt"):
                give(values)
    with pytest.raises(InvalidArgument, match="ours has 1 values and theirs 2; give one of each for every prompt"):
        paired_gain([1.0], [1.0, 2.0])
    for values in ([1.0], [1.0, 2.0], [INF]):
        with pytest.raises(InvalidArgument, match="probability is 95; choose a number between 0 and 1"):
            lower_bound(values, 95)
