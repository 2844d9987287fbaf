"""All weights together: nudged runs are whole runs bit for bit, their price, and what is accepted."""

import logging
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch

from dummy_pipeline import PROMPTS, mixture_pipeline
from ertacache.calibration import joint
from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.candidates import Candidate, compared, fitted_candidate
from ertacache.calibration.coefficients import coefficients_of, most_coefficients, rows_of
from ertacache.calibration.joint import derivatives, played, refined
from ertacache.calibration.method import Method
from ertacache.calibration.solved import Solved
from ertacache.calibration.solving import Seat
from ertacache.core.schedule import Schedule
from ertacache.errors import CalibrationError
from test_local_moves import CALL, MASK, T, counted, method


def calibrator(**options: Any) -> Calibrator:
    return Calibrator(mixture_pipeline(), PROMPTS, choose=0.25, seed=5, call=CALL, **options)


def test_a_coefficient_is_a_feature_of_one_row():
    assert rows_of(Schedule.from_mask("#..#.##.")) == [(1, 2), (4,), (7,)]
    found = coefficients_of(method("#..#.##."), Schedule.from_mask("#..#.##."), ())
    said = [(c.steps, c.place, c.source, c.computed) for c in found]
    assert said == [
        ((1, 2), 0, "guided", 0), ((1, 2), 1, "direction", 0),
        ((4,), 0, "guided", 3), ((4,), 1, "guided", 0), ((4,), 2, "direction", 3), ((4,), 3, "direction", 0),
        ((7,), 0, "guided", 6), ((7,), 1, "guided", 5), ((7,), 2, "guided", 3),
        ((7,), 3, "direction", 6), ((7,), 4, "direction", 5),
    ]  # fmt: skip
    # Another denoiser has no history of the first one's.
    after = coefficients_of(method("#..#.##."), Schedule.from_mask("#..#.##."), (3,))
    assert [(c.source, c.computed) for c in after if c.steps == (4,)] == [("guided", 3), ("direction", 3)]


@pytest.mark.parametrize("batch_size", [None, 4])
def test_a_nudged_run_is_the_whole_run_bit_for_bit(batch_size: int | None):
    run = calibrator(batch_size=batch_size)
    calls = counted(run.pipe)
    plan = method()
    solved, name = played(run, plan, run.solve(plan))
    assert solved.errors == run.solve(plan).errors  # as the fit left it
    for coefficient in coefficients_of(plan, Schedule.from_mask(MASK), ()):
        nudge = coefficient.nudge(run.kept.of(name, 0), run.reference.recordings[0])
        changed = solved.changed(coefficient.changes(nudge))
        whole, replayed = Seat(), Seat(known=run.kept.of(name, 0))
        _play(run, changed, 0, whole, "whole")
        calls.clear()
        _play(run, changed, coefficient.steps[0], replayed, "replayed")
        assert torch.equal(replayed.final, whole.final)
        assert len(calls) == 2 * (1 + sum(mark == "#" for mark in MASK[coefficient.steps[0] :]))


def _play(run: Calibrator, solved: Solved, known: int, seat: Seat, name: str) -> None:
    """Of the first call."""
    weights = {key: value.tolist() for key, value in solved.weights.items()}
    run.store.get(f"{name} {weights}", lambda: run.play(method(), solved, known, {0: seat}) and None)


def test_the_derivatives_are_those_of_the_final_latent():
    run = calibrator()
    plan = method()
    solved, name = played(run, plan, run.solve(plan))
    found = coefficients_of(plan, Schedule.from_mask(MASK), ())
    model = derivatives(run, plan, solved, name, found)
    torch.testing.assert_close(
        (model.energy / run.reference.latents.double().flatten(1).square().sum(1)).log10(),
        torch.tensor(solved.errors, dtype=torch.float64), rtol=1e-5, atol=1e-5,
    )  # fmt: skip
    # A small change of all of them does what the sums say.
    change = 0.05 * model.step(0.1)
    after, _ = played(run, plan, joint.changed(solved, found, change))
    true = torch.tensor([a - b for a, b in zip(after.errors, solved.errors, strict=True)])
    said = (model.errors(change) / model.energy).log10()
    torch.testing.assert_close(said.float(), true.float(), rtol=0.1, atol=1e-3)


def test_most_coefficients_bound_every_schedule():
    """Over all schedules of K of 8 steps: their number and the computed steps of their nudged runs."""
    for K in range(2, 8):
        most = [0, 0]
        for inner in combinations(range(1, 8), K - 1):
            schedule = Schedule.from_steps(8, (0, *inner))
            found = coefficients_of(method(), schedule, ())
            steps = sum(1 + sum(i > c.steps[0] for i in schedule.computed_steps) for c in found)
            most = [max(most[0], len(found)), max(most[1], steps)]
        bound = most_coefficients(8, K, 3, 2)
        assert most[0] <= bound[0]
        assert most[1] <= bound[1]
    assert most_coefficients(8, 4, 3, 2) == (2 + 4 + 5 + 5, 2 * 4 + 4 * 3 + 5 * 2 + 5 * 1)


def start(run: Calibrator) -> Candidate:
    return compared(run, fitted_candidate(run, method(), "uniform"))


def test_too_few_prompts_are_said_and_left_alone(caplog: pytest.LogCaptureFixture):
    run = calibrator()
    with caplog.at_level(logging.INFO):
        assert refined(run, start(run)) == []
    assert "it takes 32 prompts to fit, 64 or better, and there are 6" in caplog.text


def test_each_round_is_better_on_prompts_that_choose_and_nothing_is_left_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
):
    monkeypatch.setattr(joint, "LEAST_PROMPTS", 2)
    run = calibrator(checkpoint=tmp_path / "runs")
    first = start(run)
    files = {path.name for path in (tmp_path / "runs").glob("*.bin")}
    before = run.store.spent.runs
    found = refined(run, first)
    errors = [first.deviation, *(candidate.deviation for candidate in found)]
    assert errors == sorted(errors, reverse=True)
    assert {path.name for path in (tmp_path / "runs").glob("*.bin")} == files
    # No more than announced: Jacobians, passes, and the prompts that choose.
    computed = most_coefficients(T, 6, 3, 2)[1]
    rounds = joint.ROUNDS
    assert run.store.spent.runs - before <= (6 * (rounds * computed + (1 + rounds) * 6) + 2 * rounds * 6) / T + 1e-9
    # Continued, it is the same without a run.
    again = calibrator(checkpoint=tmp_path / "runs")
    calls = counted(again.pipe)
    assert [candidate.errors for candidate in refined(again, start(again))] == [c.errors for c in found]
    assert not calls


def test_a_round_that_promises_nothing_is_not_made(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(joint, "LEAST_PROMPTS", 2)
    monkeypatch.setattr(joint, "cross_validated", lambda *_: (1.0, 0.0))
    run = calibrator()
    with caplog.at_level(logging.INFO):
        assert refined(run, start(run)) == []
    assert "joint refinement 1 promises nothing" in caplog.text


def test_coefficients_that_no_profile_can_hold_are_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(joint, "LEAST_PROMPTS", 2)
    monkeypatch.setattr(joint, "cross_validated", lambda *_: (1.0, -1.0))
    monkeypatch.setattr(joint.Linearised, "step", lambda model, *_: torch.full((len(model.scale),), 1e5))
    run = calibrator()
    with caplog.at_level(logging.INFO):
        assert refined(run, start(run)) == []
    assert "joint refinement 1 is left out: a holds" in caplog.text


def test_a_direction_that_has_died_away_is_not_nudged():
    run = calibrator()
    plan = method("#..#.#...#...#")
    _, name = played(run, plan, run.solve(plan))
    kept, recorded = run.kept.of(name, 0), run.reference.recordings[0]
    last = replace(coefficients_of(plan, plan.schedule, ())[-1], source="direction", computed=13)
    assert last.nudge(kept, recorded) == 0.0


def test_a_weight_that_is_no_number_is_refused():
    run = calibrator()
    solved = run.solve(method())
    with pytest.raises(CalibrationError, match="a weight of step 1 is nan; fit it anew"):
        solved.changed([((1, "guided"), 0, float("nan"))])
    plain: Method = replace(method(), levels=1, directions=0)
    assert coefficients_of(plain, Schedule.from_mask("##"), ()) == []
