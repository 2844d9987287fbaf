"""benchmarks/features.py: fits are exact where they can be, and the table says gains over the plan's features."""

from typing import Any

import pytest
import torch

from benchmark_scripts import load

features: Any = load("features")


def runs(d: bool = True) -> Any:
    """Outputs whose step j is twice the last output minus half of the last direction, at every gap."""
    found, generator = features.Runs.__new__(features.Runs), torch.Generator().manual_seed(0)
    shape = (13, features.PROMPTS, 6, 3)
    found.o, found.x, found.d = (torch.randn(shape, generator=generator) for _ in range(3))
    found.d = found.d if d else None
    return found


def test_what_the_features_hold_is_found_and_the_rest_is_left() -> None:
    made = runs()
    target = 2 * made.o[4] - 0.5 * made.d[4]
    sets = features.features(made)
    assert features.left(sets["the plan's"](4, 2), target, each=False) < -80
    # Without the direction: a quarter of its size is left of 4 + 1/4.
    alone = features.left(sets["3 outputs"](4, 2), target, each=False)
    assert alone == pytest.approx(10 * torch.log10(torch.tensor(0.25 / 4.25)).item(), abs=1.0)


def test_only_channels_of_their_own_fit_channels_that_differ() -> None:
    made = runs()
    target = made.o[4] * torch.tensor([1.0, -1.0, 3.0])
    parts = features.features(made)["3 outputs"](4, 2)
    assert features.left(parts, target, each=True) < -80
    assert features.left(parts, target, each=False) > -5


def test_without_directions_there_are_none_to_add() -> None:
    made = features.measured(runs(d=False))
    assert made["the plan's"] == made["3 outputs"] and "+ 3rd direction" not in made
    assert [len(values) for values in made.values()] == [len(features.GAPS)] * len(made)


def test_the_table_has_the_plan_s_error_and_the_others_gains() -> None:
    rows = [
        {"model": "a", "guidance": 7.0, "left": {"the plan's": [-20.0, -10.0], "+ latent": [-20.5, -9.75]}},
        {"model": "b", "guidance": 1.0, "left": {"the plan's": [-5.0, -4.0]}},
    ]
    assert features.table({"rows": rows}).splitlines() == [
        "| features | a, 7 | b, 1 |", "|---|---|---|", "| the plan's | -20.0 / -10.0 | -5.0 / -4.0 |",
        "| + latent | +0.5 / -0.2 | – |",
    ]  # fmt: skip
