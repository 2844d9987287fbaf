"""The bar over pipeline runs, and its lines in a log file: the estimate is the number of runs where that is known."""

from typing import Any

import pytest

import ertacache.calibration.calibrate as calibrate_module
from dummy_pipeline import mixture_pipeline
from ertacache.calibration.calibrate import calibrate
from ertacache.calibration.choices import Budget, resolve
from ertacache.calibration.defaults import Choices
from ertacache.calibration.effort import Effort, duration, estimating
from ertacache.calibration.progress import run_progress, say
from ertacache.calibration.prompts import Prompts

PROMPTS = ["0", "1", "2", "3"]


def test_nothing_is_written_where_nothing_shall_be(capsys: pytest.CaptureFixture[str]):
    with run_progress(False) as advance:
        advance("uncached run")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "options",
    [
        {"compute_steps": 4},
        {"compute_steps": 4, "history": "auto", "aim": "auto"},
        {"compute_steps": 4, "basis": "reuse"},
        {"schedule": "#.#.#.#.##", "aim": "step", "batch_size": 2},
        {"threshold": 0.2, "method": "ertacache"},
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
    profile = calibrate(pipe, PROMPTS, num_inference_steps=10, guidance_scale=3.0, **options)
    assert promised == [len(pipe.seen)]
    K = profile.schedule.K
    expected = calibrate_module.effort(
        *asked(options), Prompts(("0", "1", "2"), 0), Prompts(("3",), 3), options.get("batch_size"), 10
    )
    if "threshold" not in options:  # else K is not known before
        assert expected.work == pytest.approx(profile.provenance.measured["uncached_runs"])
    assert 2 <= K < 10


def asked(options: dict[str, Any]) -> tuple[Choices, Budget]:
    rest = dict(options)
    budget = Budget(rest.pop("compute_steps", None), rest.pop("threshold", None))
    one_call = rest.pop("batch_size", None) is None
    return resolve(mixture_pipeline(), rest.pop("method", "fitted"), budget, rest, one_call=one_call), budget


def test_after_the_first_run_it_is_known_how_long_all_take(monkeypatch: pytest.MonkeyPatch):
    now, told, passed = 50.0, list[str](), list[str]()
    monkeypatch.setattr("ertacache.calibration.effort.time.monotonic", lambda: now)
    advance = estimating(passed.append, Effort(calls=5, work=48.0, first=18), told.append)
    now += 36
    advance("uncached run")
    now += 36
    advance("closed loop")
    assert passed == ["uncached run", "closed loop"]
    assert told == ["the first run took 36 s, all of them take about 96 s"]
    assert [duration(seconds) for seconds in (0.1234, 9.94, 10.2, 99.4, 100, 3000, 7200)] == [
        "0.12 s", "9.9 s", "10 s", "99 s", "2 min", "50 min", "2.0 h",
    ]  # fmt: skip


def test_a_line_is_whole_whatever_is_in_it(capsys: pytest.CaptureFixture[str]):
    say("[red]" + "x" * 200, title="calibrate")
    say("nothing", title="calibrate", show=False)
    assert capsys.readouterr().err == "calibrate: [red]" + "x" * 200 + "\n"


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
