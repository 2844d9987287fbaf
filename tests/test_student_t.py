"""Student's t against closed forms, published tables and the integral of its density."""

import math

import pytest

from ertacache.errors import InvalidArgument
from ertacache.metrics import t_probability, t_quantile

POINTS = [-1e6, -40.0, -3.25, -1.0, -0.1, 0.0, 1e-8, 0.5, 1.0, 2.0, 12.706, 1e6]

CLOSED = {
    1: lambda t: 0.5 + math.atan(t) / math.pi,
    2: lambda t: 0.5 + t / (2 * math.sqrt(2 + t * t)),
    3: lambda t: 0.5 + (math.atan(t / math.sqrt(3)) + math.sqrt(3) * t / (3 + t * t)) / math.pi,
    4: lambda t: 0.5 + 3 / 8 * (x := t / math.sqrt(1 + t * t / 4)) * (1 - x * x / 12),
}


@pytest.mark.parametrize("t", POINTS)
@pytest.mark.parametrize("freedom", CLOSED)
def test_closed_forms(freedom: int, t: float) -> None:
    assert t_probability(t, freedom) == pytest.approx(CLOSED[freedom](t), abs=1e-14)


@pytest.mark.parametrize("freedom", [5, 6, 15, 31, 64, 255])
@pytest.mark.parametrize("t", [0.3, 1.7, 4.5])
def test_the_integral_of_the_density(freedom: int, t: float) -> None:
    """Simpson's rule over 4000 intervals, good to 1e-12 here."""
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    n, h = 4000, t / 4000
    values = [scale * (1 + (i * h) ** 2 / freedom) ** (-(freedom + 1) / 2) for i in range(n + 1)]
    integral = h / 3 * (values[0] + values[-1] + 4 * math.fsum(values[1:-1:2]) + 2 * math.fsum(values[2:-1:2]))
    assert t_probability(t, freedom) == pytest.approx(0.5 + integral, abs=1e-10)
    assert t_probability(-t, freedom) == pytest.approx(0.5 - integral, abs=1e-10)


# As tables print it: degrees of freedom, then t below which lie 90, 95, 97.5, 99 and 99.5 percent.
TABLE = {
    1: (3.078, 6.314, 12.706, 31.821, 63.657),
    2: (1.886, 2.920, 4.303, 6.965, 9.925),
    5: (1.476, 2.015, 2.571, 3.365, 4.032),
    10: (1.372, 1.812, 2.228, 2.764, 3.169),
    30: (1.310, 1.697, 2.042, 2.457, 2.750),
    120: (1.289, 1.658, 1.980, 2.358, 2.617),
}


@pytest.mark.parametrize("freedom", TABLE)
def test_quantiles_of_the_tables(freedom: int) -> None:
    found = [round(t_quantile(p, freedom), 3) for p in (0.9, 0.95, 0.975, 0.99, 0.995)]
    assert found == list(TABLE[freedom])


@pytest.mark.parametrize("freedom", [1, 2, 3, 9, 40])
def test_a_quantile_undoes_the_probability(freedom: int) -> None:
    for p in (1e-6, 0.05, 0.4, 0.5, 0.77, 0.999):
        assert t_probability(t_quantile(p, freedom), freedom) == pytest.approx(p, abs=1e-13)
    assert t_quantile(0.5, freedom) == pytest.approx(0, abs=1e-15)
    assert t_quantile(0.95, freedom) == -t_quantile(1 - 0.95, freedom)


def test_no_t_is_out_of_reach() -> None:
    assert [t_probability(t, 7) for t in (-math.inf, math.inf)] == [0, 1]
    assert t_probability(-1e300, 3) == 0 and t_probability(1e300, 1) == 1
    assert t_quantile(1 - 2**-53, 1) > 1e15 and t_quantile(0.75, 1) == pytest.approx(1, abs=1e-15)


def test_what_is_no_probability() -> None:
    for p in (0, 1, -0.1, math.nan):
        with pytest.raises(InvalidArgument, match=rf"probability is {p}; choose a number between 0 and 1"):
            t_quantile(p, 3)
    for t, freedom in ((1.0, 0), (math.nan, 3)):
        with pytest.raises(InvalidArgument, match=rf"t is {t} with {freedom} degrees of freedom; give a number, and 1"):
            t_probability(t, freedom)
