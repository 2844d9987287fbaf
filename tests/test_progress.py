"""The bar over pipeline runs, and its lines in a log file: the estimate is the number of runs where that is known."""

from typing import Any

import pytest

import ertacache.calibration.calibrate as calibrate_module
from dummy_pipeline import mixture_pipeline
from ertacache.calibration.calibrate import calibrate
from ertacache.calibration.progress import run_progress

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
    original = calibrate_module.run_progress

    def watch(show: bool, expected: int) -> Any:
        promised.append(expected)
        return original(False)

    monkeypatch.setattr(calibrate_module, "run_progress", watch)
    pipe = mixture_pipeline()
    calibrate(pipe, PROMPTS, num_inference_steps=10, guidance_scale=3.0, **options)
    assert promised == [len(pipe.seen)]


def test_a_log_file_gets_a_line_a_minute(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    now = 1000.0
    monkeypatch.setattr("ertacache.calibration.progress.time.monotonic", lambda: now)
    with run_progress(title="compare", expected=10) as progress:
        for n in range(1, 8):
            now += 30
            progress(f"run {n}")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "compare: run 2, 2 of about 10, 4 min left",
        "compare: run 4, 4 of about 10, 3 min left",
        "compare: run 6, 6 of about 10, 2 min left",
    ]


def test_more_runs_than_expected_leave_one_to_come(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    now = 0.0
    monkeypatch.setattr("ertacache.calibration.progress.time.monotonic", lambda: now)
    with run_progress(expected=1) as progress:
        progress("a")
        now += 180
        progress("b")
        progress("c")
    assert capsys.readouterr().err == "calibrate: b, 2 of about 3, 2 min left\n"
