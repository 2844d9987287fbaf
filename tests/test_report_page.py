"""The sentence on top of a report."""

import pytest

from ertacache.evaluation.report.figures import Stat
from ertacache.evaluation.report.page import Contender, verdict

FEWER = Contender("fewer steps", False, Stat(38.8, 4.0, (1.0,) * 4), 1.96, fewer_steps=True)


def contender(
    name: str, psnr: float, *, ours: bool = False, speedup: float | None = 1.88, effort: str = ""
) -> Contender:
    return Contender(name, ours, Stat(psnr, 2.4, (psnr,) * 4), speedup, effort)


@pytest.mark.parametrize(
    ("others", "sentence"),
    [
        ([contender("fitted", 47.8, ours=True)], "1.9× faster at 47.8 ± 1.2 dB, 9.0 dB above fewer steps"),
        (
            [contender("fitted", 47.8, ours=True, speedup=None, effort="15 of 30 steps")],
            "47.8 ± 1.2 dB with 15 of 30 steps, 9.0 dB above fewer steps",
        ),
        (
            [contender("fitted", 38.0, ours=True), contender("policy", 37.0, ours=True)],
            "No method beats fewer steps: 2.0× faster at 38.8 ± 2.0 dB; "
            "our best, fitted, is 1.9× faster at 38.0 ± 1.2 dB, 0.8 dB lower",
        ),
        (
            [contender("TaylorSeer", 50.0), contender("fitted", 47.8, ours=True)],
            "TaylorSeer is best: 1.9× faster at 50.0 ± 1.2 dB, 11.2 dB above fewer steps; "
            "our best, fitted, is 1.9× faster at 47.8 ± 1.2 dB, 2.2 dB lower",
        ),
        ([contender("PAB", 40.0)], "PAB is best: 1.9× faster at 40.0 ± 1.2 dB, 1.2 dB above fewer steps"),
        ([], "No method beats fewer steps: 2.0× faster at 38.8 ± 2.0 dB"),
    ],
)
def test_it_says_who_is_best_and_who_is_not(others: list[Contender], sentence: str) -> None:
    assert verdict([FEWER, *others]).replace("\u00a0", " ") == sentence


def test_without_fewer_steps_nothing_is_said_of_them() -> None:
    only = [contender("fitted", 47.8, ours=True, speedup=None)]
    assert verdict(only).replace("\u00a0", " ") == "47.8 ± 1.2 dB"
