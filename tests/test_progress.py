"""The bar over pipeline runs: that its estimate is the number of runs where that is known."""

from typing import Any

import pytest

from dummy_pipeline import mixture_pipeline
from ertacache import calibration
from ertacache.calibration import calibrate
from ertacache.progress import run_progress

PROMPTS = ["0", "1", "2", "3"]


def test_nothing_is_written_where_nothing_shall_be(capsys: pytest.CaptureFixture[str]):
    with run_progress(False) as advance:
        advance("uncached run")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "options",
    [
        {"schedule": "#.#.#.#.##", "basis": "fitted", "history": 1},
        {"threshold": 0.2, "basis": "residual", "rectifier": "scalar"},
    ],
)
def test_the_estimate_is_the_number_of_runs_where_nothing_is_searched(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    promised: list[int] = []
    original = calibration.run_progress

    def watch(show: bool, expected: int) -> Any:
        promised.append(expected)
        return original(False)

    monkeypatch.setattr(calibration, "run_progress", watch)
    pipe = mixture_pipeline()
    calibrate(pipe, PROMPTS, num_inference_steps=10, guidance_scale=3.0, **options)
    assert promised == [len(pipe.seen)]
