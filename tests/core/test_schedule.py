import dataclasses

import pytest

from ertacache.core.schedule import Schedule
from ertacache.errors import ScheduleInvalid


def test_text_form_round_trips_and_reads_as_a_strip():
    schedule = Schedule.from_mask("#.#..##")
    assert str(schedule) == "#.#..##"
    assert schedule == Schedule.from_mask([True, False, True, False, False, True, True])
    assert schedule == Schedule.from_steps(7, {6, 0, 5, 2})
    assert hash(schedule) == hash(Schedule.from_mask(str(schedule)))
    assert schedule != Schedule.from_mask("#.#..#.")


def test_counts_and_steps():
    schedule = Schedule.from_mask("#.#..##")
    assert (schedule.T, len(schedule), schedule.K) == (7, 7, 4)
    assert schedule.computed_steps == (0, 2, 5, 6)
    assert schedule.predicted_steps == (1, 3, 4)
    assert [schedule.depth(i) for i in range(7)] == [0, 1, 1, 2, 2, 2, 3]
    assert [schedule.last_computed(i) for i in range(1, 7)] == [0, 0, 2, 2, 2, 5]


def test_a_schedule_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Schedule.all_computed(3).computed = (True,)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("T", "K", "text"),
    [
        (1, 1, "#"),
        (2, 2, "##"),
        (7, 2, "#.....#"),
        (7, 3, "#..#..#"),
        (7, 4, "#.#.#.#"),
        (10, 4, "#..#..#..#"),
        (30, 15, "#.#.#.#.#.#.#.#..#.#.#.#.#.#.#"),
    ],
)
def test_uniform(T: int, K: int, text: str):
    assert str(Schedule.uniform(T, K)) == text


def test_uniform_computes_exactly_K_steps_with_both_ends():
    for T in range(2, 40):
        for K in range(2, T + 1):
            schedule = Schedule.uniform(T, K)
            assert schedule.K == K
            assert schedule.computed[0] and schedule.computed[-1]
        assert Schedule.uniform(T, T) == Schedule.all_computed(T)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Schedule(()), "0 steps .* give one True or False"),
        (lambda: Schedule((True, 0)), "step 1 .* is 0; write True or False"),  # type: ignore[arg-type]
        (lambda: Schedule.from_mask([True, None]), "step 1 .* is None; write"),  # type: ignore[list-item]
        (lambda: Schedule.from_mask(".#"), r"'\.#' predicts step 0, .* start with '#'"),
        (lambda: Schedule.from_mask("#x.y"), r"'#x\.y' has \['x', 'y'\]; write '#'"),
        (lambda: Schedule.from_steps(4, [0, 4, -1]), r"steps \[-1, 4\] .* T=4; use indices 0 to 3"),
        (lambda: Schedule.uniform(5, 1), "K=1 of T=5 .* choose K from 2 to 5"),
        (lambda: Schedule.uniform(5, 6), "K=6 of T=5 .* choose K from 2 to 5"),
        (lambda: Schedule.uniform(1, 2), "K=2 of T=1 .* choose K from 1 to 1"),
        (lambda: Schedule.all_computed(0), "0 steps"),
        (lambda: Schedule.all_computed(2).last_computed(0), "before step 0; ask from step 1"),
    ],
)
def test_refusals_name_the_value_and_the_remedy(build, message: str):
    with pytest.raises(ScheduleInvalid, match=message):
        build()


def test_require_depth_takes_a_sequence_or_a_function():
    schedule = Schedule.from_mask("#.##.")
    schedule.require_depth([9, 1, 9, 9, 3])  # computed steps need no history
    schedule.require_depth(schedule.depth)
    with pytest.raises(
        ScheduleInvalid, match=r"step 4 of '#\.##\.' needs the last 4 computed steps and has 3; compute"
    ):
        schedule.require_depth(lambda i: 4 if i == 4 else 0)
    with pytest.raises(ScheduleInvalid, match=r"step 1 .* needs the last 2 computed steps and has 1"):
        schedule.require_depth([0, 2, 0, 0, 9])
