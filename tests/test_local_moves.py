"""Local moves: a replayed loop is the whole one bit for bit, and computes no more than what comes after the change."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from dummy_pipeline import PROMPTS, DummyPipeline, mixture_pipeline
from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.candidates import Candidate, fitted_candidate
from ertacache.calibration.kept import loop_name, shared_steps
from ertacache.calibration.local_moves import improved, moved
from ertacache.calibration.method import Method
from ertacache.calibration.search import grams_of
from ertacache.core.paths import price_of
from ertacache.core.schedule import Schedule
from ertacache.core.segment_costs import SegmentCosts, segment_costs

T, MASK = 14, "#..#.#...#.#.#"
CALL: dict[str, Any] = {"num_inference_steps": T, "guidance_scale": 7.0}


def method(mask: str = MASK, **choices: Any) -> Method:
    choices = {"levels": 3, "directions": 2, "ridge": 1e-3, "aim": "trajectory", **choices}
    return Method("fitted", "guided", Schedule.from_mask(mask), **choices)


def calibrator(pipe: DummyPipeline, **options: Any) -> Calibrator:
    return Calibrator(pipe, PROMPTS, choose=0.25, seed=5, call=CALL, **options)


def counted(pipe: DummyPipeline) -> list[int]:
    """The batch of every denoiser call."""
    calls, mixture = list[int](), pipe.transformer.mixture
    velocity = mixture.velocity

    def count(x: Any, *args: Any) -> Any:
        calls.append(len(x))
        return velocity(x, *args)

    mixture.velocity = count
    return calls


def test_one_computed_step_moves_by_one_or_two_to_a_free_place():
    masks = {str(schedule) for schedule in moved(Schedule.from_mask("#..#.#..#"))}
    assert masks == {"#.#..#..#", "##...#..#", "#...##..#", "#..##...#", "#..#..#.#", "#..#...##"}


def test_ends_and_boundaries_stay_and_an_open_end_moves():
    masks = {str(schedule) for schedule in moved(Schedule.from_mask("#..#.#..#"), boundaries=(5,))}
    assert masks == {"#.#..#..#", "##...#..#", "#...##..#"}
    assert {str(schedule) for schedule in moved(Schedule.from_mask("#..#.."))} == {"#.#...", "##....", "#...#."}


@pytest.mark.parametrize(
    ("mask", "known"),
    [("#..#.#..#..#.#", 8), ("#.#..#...#.#.#", 2), ("#..##....#.#.#", 4), ("#..#.#...#..##", 11)],
)
@pytest.mark.parametrize("batch_size", [None, 1, 4])
def test_a_replayed_move_is_the_whole_run_bit_for_bit(mask: str, known: int, batch_size: int | None):
    whole = calibrator(mixture_pipeline(), batch_size=batch_size).solve(method(mask))
    pipe = mixture_pipeline()
    replaying = calibrator(pipe, batch_size=batch_size)
    replaying.solve(method(), keep=True)
    calls = counted(pipe)
    found = replaying.solve(method(mask), method(), keep=True)
    assert found.errors == whole.errors
    assert found.weights.keys() == whole.weights.keys()
    assert all(torch.equal(found.weights[key], whole.weights[key]) for key in whole.weights)
    # Two branches of six prompts at each computed step after the change, and at step 0.
    after = sum(mark == "#" for mark in mask[known:])
    assert sum(calls) == 2 * 6 * (after + 1)
    # What the replay has kept serves a second move as well as what a whole run keeps.
    again = replaying.solve(method("#..#.#..#..##."), method(mask))
    fresh = calibrator(mixture_pipeline(), batch_size=batch_size).solve(method("#..#.#..#..##."))
    assert again.errors == fresh.errors


def test_a_replay_costs_what_it_computes():
    replaying = calibrator(mixture_pipeline())
    replaying.solve(method(), keep=True)
    before = replaying.store.spent.runs
    replaying.solve(method("#..#.#..#..#.#"), method())
    assert replaying.store.spent.runs - before == pytest.approx(6 * 4 / T)


def test_what_differs_in_more_than_the_schedule_shares_nothing():
    other = method("#..#.#..#..#.#")
    assert shared_steps(method(), other) == 8
    assert shared_steps(method(), method()) == T
    for changed in (replace(other, ridge=0.1), replace(other, directions=1), replace(other, schedule=None)):
        assert shared_steps(method(), changed) == 0
    assert shared_steps(method(aim="step"), replace(other, aim="step")) == 0  # it computes predicted steps too
    pipe = mixture_pipeline()
    replaying = calibrator(pipe)
    replaying.solve(method(), keep=True)
    calls = counted(pipe)
    replaying.solve(replace(other, ridge=0.1), method())
    assert sum(calls) == 2 * 6 * 6


def test_without_what_was_kept_a_move_is_a_whole_run(tmp_path: Any):
    pipe = mixture_pipeline()
    keeping = calibrator(pipe, checkpoint=tmp_path / "runs")
    keeping.solve(method(), keep=True)
    files = set((tmp_path / "runs").iterdir())
    keeping.kept.discard(loop_name(method()))
    assert len(files - set((tmp_path / "runs").iterdir())) == 1
    calls = counted(pipe)
    found = keeping.solve(method("#..#.#..#..#.#"), method())
    assert found.errors == calibrator(mixture_pipeline()).solve(method("#..#.#..#..#.#")).errors
    assert sum(calls) == 2 * 6 * 6


def costs_of(calibrator: Calibrator) -> SegmentCosts:
    return segment_costs(grams_of(calibrator), 3, 2, ridge=1e-3)


def start(run: Calibrator) -> Candidate:
    return fitted_candidate(run, method(), "uniform", keep=True)


def test_each_round_takes_the_best_of_the_cheapest_moves():
    run = calibrator(mixture_pipeline())
    costs, first = costs_of(run), start(run)
    found = improved(run, first, costs, tries=3, rounds=2)
    assert found
    best, tried = first, {first.method.schedule}
    for candidate in found:
        near = [one for one in moved(best.profile.schedule) if one not in tried]
        near = sorted(near, key=lambda one: price_of(costs, one))[:3]
        tried.update(near)
        errors = {one: fitted_candidate(run, replace(method(), schedule=one)).deviation for one in near}
        assert candidate.method.schedule == min(errors, key=errors.__getitem__)
        assert candidate.deviation == min(errors.values()) < best.deviation
        best = candidate


def test_only_the_best_is_left_in_the_folder(tmp_path: Any):
    run = calibrator(mixture_pipeline(), checkpoint=tmp_path / "runs")
    assert run.T == T  # the recording is there
    before = {path.name for path in (tmp_path / "runs").glob("*.bin")}
    found = improved(run, start(run), costs_of(run), tries=3, rounds=2)
    left = {path.name for path in (tmp_path / "runs").glob("*.bin")} - before
    assert len(left) == 1
    run.kept.discard(loop_name(found[-1].method))
    assert {path.name for path in (tmp_path / "runs").glob("*.bin")} == before


def test_nothing_better_leaves_the_best_as_it_was(tmp_path: Any):
    run = calibrator(mixture_pipeline(), checkpoint=tmp_path / "runs")
    first = start(run)
    perfect = replace(first, measured={**first.measured, "error": [-50.0]})
    assert improved(run, perfect, costs_of(run), tries=2, rounds=2) == []
    run.kept.of(loop_name(first.method), 0)
