import re

import pytest
import torch

from ertacache.core.growth import growth_of
from ertacache.errors import InvalidArgument


def factors(*deviation: float) -> list[float]:
    return growth_of(torch.tensor(deviation)).tolist()


def test_the_factor_is_the_deviation_at_the_end_over_that_at_the_step():
    assert factors(0.5, 1.0, 4.0, 2.0) == [4.0, 2.0, 0.5, 1.0]


def test_where_nothing_was_measured_the_next_measured_step_stands_in():
    assert factors(0, 0, 0.5, 0, 2.0, 1.0) == [2.0, 2.0, 2.0, 0.5, 0.5, 1.0]


def test_a_run_that_ends_without_deviation_tells_nothing():
    assert factors(0.5, 1.0, 0) == [1.0, 1.0, 1.0] == factors(0, 0, 0)


def test_the_factor_is_bounded():
    assert factors(1e-9, 1e9, 1.0) == [100.0, 0.01, 1.0]


def test_the_measured_deviation_stays_as_it_was():
    deviation = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    growth_of(deviation)
    assert deviation.tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("deviation", "message"),
    [
        (torch.ones(3, 4), "shape [3, 4]; give [T+1]"),
        (torch.ones(1), "shape [1]; give [T+1]"),
        (torch.tensor([1.0, torch.nan, 1.0]), "latent 1 is nan; give root mean squares"),
        (torch.tensor([1.0, 1.0, torch.inf]), "latent 2 is inf; give"),
        (torch.tensor([-1.0, 1.0]), "latent 0 is -1.0; give"),
    ],
)
def test_refusals(deviation: torch.Tensor, message: str):
    with pytest.raises(InvalidArgument, match=re.escape(message)):
        growth_of(deviation)
