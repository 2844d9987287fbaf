"""The prices of published models are the arithmetic that a calibration announces."""

import json
from typing import Any

import pytest

from benchmark_scripts import ROOT, load


@pytest.fixture(scope="module")
def script() -> Any:
    return load("prices")


def test_the_result_file_and_the_page_are_what_the_script_makes(script: Any) -> None:
    rows = json.loads((ROOT / "benchmarks/results/prices.json").read_text())
    assert rows == [
        script.price(model, effort, count)
        for model in script.MODELS
        for count in script.PROMPTS
        for effort in script.EFFORTS
    ], "run python benchmarks/prices.py"
    page = (ROOT / "docs/large-models.md").read_text()
    assert script.updated(page, rows) == page, "run python benchmarks/prices.py"


def test_the_fast_price_by_hand(script: Any) -> None:
    """24 prompts: 19 fitted and 5 judged; each recorded or run uncached once, a loop of 19 and three runs of 5 at half
    of the steps, and two steps to see what it takes."""
    wan = next(model for model in script.MODELS if model.name.startswith("Wan2.1-1.3B"))
    row = script.price(wan, "fast", 24)
    runs = 24 + 19 / 2 + 3 * 5 / 2 + 2 / 50
    assert (row["runs"], row["seconds"]) == (round(runs, 2), round(runs * 199, 1))
    element = 16 * 21 * 60 * 104
    assert row["bytes"] == 19 * element * (51 * 4 + 50 * 2 + 50 * 2)
