"""On a tie the simpler plan, and none that unseen prompts speak against: the rules written out, and their corners."""

import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from ertacache.calibration.tie import simpler_on_a_tie, unrefuted
from ertacache.errors import InvalidArgument

INF = math.inf


def by_the_rule(candidates: list[list[int]]) -> int:
    """In whole numbers: with S the sum of differences and Q that of their squares over n prompts, mean <= standard
    error is S <= 0 or S² (n - 1) <= n Q - S²."""
    return next(c for c, errors in enumerate(candidates) if all(ties(errors, other) for other in candidates))


def ties(errors: list[int], other: list[int]) -> bool:
    found = [a - b for a, b in zip(errors, other, strict=True)]
    n, S, Q = len(found), sum(found), sum(one * one for one in found)
    return S <= 0 or S * S * (n - 1) < n * Q - S * S


def boundary(candidates: list[list[int]]) -> bool:
    """Whether a mean is a standard error exactly, which the last bit of a square root then decides."""
    n = len(candidates[0])
    for errors, other in itertools.permutations(candidates, 2):
        found = [a - b for a, b in zip(errors, other, strict=True)]
        S, Q = sum(found), sum(one * one for one in found)
        if S > 0 and S * S * (n - 1) == n * Q - S * S:
            return True
    return False


def test_every_small_case_follows_the_rule() -> None:
    rows = [list(row) for row in itertools.product(range(3), repeat=3)]
    cases = [[a, b] for a in rows for b in rows if not boundary([a, b])]
    assert len(cases) > 500
    for case in cases:
        assert simpler_on_a_tie(case) == by_the_rule(case), case


def test_many_candidates_follow_the_rule() -> None:
    draw, seen = random.Random(0), set[int]()
    for _ in range(2000):
        case = [[draw.randrange(-9, 9) - c for _ in range(5)] for c in range(4)]
        if not boundary(case):
            assert simpler_on_a_tie(case) == by_the_rule(case), case
            seen.add(by_the_rule(case))
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("candidates", "taken"),
    [
        ([[-3.0, -2.0]], 0),
        ([[-2.0, -2.0], [-2.1, -1.9], [-3.0, -3.0]], 2),  # differences without spread: no tie
        ([[-3.0, -1.0], [-3.0, -1.0]], 0),  # equal: the first
        ([[-3.0, -1.0, -2.0], [-2.9, -1.2, -2.0]], 0),  # one better, one worse
        ([[-5.0, -1.0, -3.0], [-5.2, -1.3, -3.25]], 1),  # far apart between prompts, alike in each
        ([[-3.0, -3.0], [-1.0, -1.0]], 0),  # the simplest is the best
        ([[-3.0, -3.0], [-3.1, -3.1], [-6.0, -1.0]], 1),  # the first ties with the best, and loses to the second
    ],
)
def test_paired_by_hand(candidates: list[list[float]], taken: int) -> None:
    assert simpler_on_a_tie(candidates) == taken


def test_one_prompt_decides_by_itself() -> None:
    assert simpler_on_a_tie([[-2.0], [-2.1], [-2.05]]) == 1
    assert simpler_on_a_tie([[-2.0], [-2.0]]) == 0


@pytest.mark.parametrize(
    ("candidates", "taken"),
    [
        ([[INF, -9.0], [-1.0, -1.0]], 1),  # diverged on one prompt, however good on the other
        ([[INF, -9.0], [-1.0, -2.0], [-1.0, -2.0]], 1),
        ([[INF, -9.0], [INF, INF]], 0),  # nothing to take: the caller refuses
        ([[-3.0, -3.0], [-INF, -INF]], 1),  # equal results on every prompt
        ([[-INF, -INF], [-INF, -INF]], 0),
        ([[-INF, -3.0, -3.0], [-INF, -5.0, -5.0]], 1),  # equal where both are, better elsewhere
        ([[-INF, -3.0, -3.0], [-3.0, -INF, -3.0]], 0),
        ([[-3.0, -3.0, -3.0], [-INF, -INF, -3.0]], 1),  # 2/3 against a standard error of 1/3
    ],
)
def test_infinite_errors(candidates: list[list[float]], taken: int) -> None:
    assert simpler_on_a_tie(candidates) == taken


def left_by_the_rule(candidates: list[list[int]]) -> list[int]:
    """In whole numbers, as above."""
    return [c for c, errors in enumerate(candidates) if all(ties(errors, simpler) for simpler in candidates[:c])]


def test_unrefuted_by_the_rule() -> None:
    draw, seen = random.Random(1), set[tuple[int, ...]]()
    for _ in range(2000):
        case = [[draw.randrange(-9, 9) for _ in range(5)] for _ in range(3)]
        if not boundary(case):
            assert unrefuted(case) == left_by_the_rule(case), case
            seen.add(tuple(unrefuted(case)))
    assert seen == {(0,), (0, 1), (0, 2), (0, 1, 2)}


@pytest.mark.parametrize(
    ("unseen", "left"),
    [
        ([[-3.0, -2.0]], [0]),
        ([[-3.0], [-1.0], [-2.0]], [0, 1, 2]),  # one prompt speaks against none
        ([[-3.0, -3.0], [-2.9, -2.9], [-3.0, -3.0]], [0, 2]),
        ([[-2.0, -2.0], [-4.0, -4.0], [-3.0, -3.0]], [0, 1]),  # better than the simplest, worse than a simpler one
        ([[-3.0, -3.0, -3.0], [-1.0, INF, INF]], [0]),
        ([[-3.0, INF, INF], [-1.0, -1.0, -1.0]], [0, 1]),
    ],
)
def test_unrefuted_by_hand(unseen: list[list[float]], left: list[int]) -> None:
    assert unrefuted(unseen) == left


@pytest.mark.parametrize("rule", [simpler_on_a_tie, unrefuted])
def test_what_is_refused(rule: Callable[[list[list[float]]], Any]) -> None:
    with pytest.raises(InvalidArgument, match="there is no candidate to choose from; give the errors of one at least"):
        rule([])
    for wrong, message in (
        ([[]], "the values are"), ([[1.0], [math.nan]], "the values are"), ([[1.0], [1.0, 2.0]], "ours has 2 values"),
        ([[INF], [1.0, 2.0]], "ours has 2 values"),
    ):  # fmt: skip
        with pytest.raises(InvalidArgument, match=message):
            rule(wrong)
