"""The bar over pipeline runs, and its lines in a log file: the estimate is the number of runs where that is known."""

import pytest

from ertacache.calibration.effort import duration, size_in_words
from ertacache.calibration.progress import run_progress, say


def test_nothing_is_written_where_nothing_shall_be(capsys: pytest.CaptureFixture[str]):
    with run_progress(False) as advance:
        advance("uncached run")
    assert capsys.readouterr().err == ""


def test_times_and_sizes_are_told_in_the_unit_that_fits():
    assert [duration(seconds) for seconds in (0.1234, 9.94, 10.2, 99.4, 100, 3000, 7200)] == [
        "0.12 s", "9.9 s", "10 s", "99 s", "2 min", "50 min", "2.0 h",
    ]  # fmt: skip
    assert [size_in_words(count) for count in (0, 1023, 1024, 31 * 2**20, 5 * 2**40, 2**60)] == [
        "0 bytes", "1.02e+03 bytes", "1 KiB", "31 MiB", "5 TiB", "1.05e+06 TiB",
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
