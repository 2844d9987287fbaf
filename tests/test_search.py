"""The search: what it proposes, what it costs beside what was announced, and which plan it takes."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from dummy_pipeline import mixture_pipeline
from ertacache.calibration import job, joint
from ertacache.calibration.calibrate import calibrate
from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.candidates import best_of, fitted_candidate
from ertacache.calibration.effort import Work, work_of
from ertacache.calibration.proposals import count_of, schedules
from ertacache.calibration.search import MEASURED, Found, prices, proposals, recommended, refined, search
from ertacache.calibration.tie import simpler_on_a_tie
from ertacache.core.paths import cheapest, price_of
from ertacache.core.schedule import Schedule
from ertacache.core.segment_costs import segment_costs
from ertacache.profile.profile import Profile

#: Few judged prompts, which is said.
pytestmark = pytest.mark.filterwarnings("ignore:.*judged prompts cannot tell", "ignore:this plan loses")

T, K = 14, 6
CALL: dict[str, Any] = {"num_inference_steps": T, "guidance_scale": 3.0}
MANY = [f"prompt {n} of class {n % 4}" for n in range(12)]


def calibrator(**options: Any) -> Calibrator:
    return Calibrator(mixture_pipeline(), MANY, choose=0.3, seed=5, call=CALL, **options)


def announced(monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[Work, int, Profile]:
    """What a calibration was announced to take, its pipeline calls, and its profile."""
    said = list[Work]()

    def spy(*args: Any) -> Work:
        said.append(work_of(*args))
        return said[-1]

    monkeypatch.setattr(job, "work_of", spy)
    pipe = mixture_pipeline()
    profile = calibrate(pipe, MANY, seed=5, show_progress=False, choose=0.3, holdout=0.3, **CALL, **options)
    return said[0], pipe.calls, profile


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("effort", ["fast", "balanced"])
def test_runs_announced_are_runs_counted(monkeypatch: pytest.MonkeyPatch, effort: str, batch_size: int | None):
    work, calls, profile = announced(monkeypatch, compute_steps=K, effort=effort, batch_size=batch_size)
    assert calls == work.calls
    assert profile.provenance.measured["uncached_runs"] == pytest.approx(work.runs)


@pytest.mark.parametrize("least", [2, 32], ids=["refined", "too few prompts"])
def test_thorough_takes_no_more_than_announced(monkeypatch: pytest.MonkeyPatch, least: int):
    monkeypatch.setattr(joint, "LEAST_PROMPTS", least)
    work, calls, profile = announced(monkeypatch, compute_steps=K, effort="thorough")
    assert calls <= work.calls
    assert profile.provenance.measured["uncached_runs"] <= work.runs
    assert profile.schedule.K == K


def test_thorough_is_no_worse_than_balanced_on_what_both_see():
    found = {}
    for effort in ("balanced", "thorough"):
        run = calibrator()
        base = recommended(run, 1e-3, "trajectory")
        found[effort] = min(sum(c.fitted) for c in search(run, base, K, effort).measured)  # pyright: ignore
    assert found["thorough"] <= found["balanced"]


def test_nothing_of_the_search_stays_in_the_folder(tmp_path: Any):
    run = calibrator(checkpoint=tmp_path / "runs")
    assert run.T == T
    before = {path.name for path in (tmp_path / "runs").glob("*.bin")}
    search(run, recommended(run, 1e-3, "trajectory"), K, "thorough")
    assert {path.name for path in (tmp_path / "runs").glob("*.bin")} == before


def test_proposals_are_distinct_and_begin_with_the_simplest():
    run = calibrator()
    base = recommended(run, 1e-3, "trajectory")
    priced = prices(run, base)
    for effort in ("fast", "balanced", "thorough"):
        found = schedules(effort, T, K, (), None if effort == "fast" else priced)  # pyright: ignore
        assert len(set(found.values())) == len(found) == count_of(effort)  # pyright: ignore
        assert next(iter(found)) == "uniform"
        assert {schedule.K for schedule in found.values()} == {K}
    assert found["cheapest path, open end"] == cheapest(priced.even, K, last=False)[0]
    methods = proposals(run, base, K, "thorough", priced)
    assert list(methods)[:2] == ["uniform, own history", "uniform"]
    assert methods["uniform, own history"] == replace(methods["uniform"], directions=0)
    grid = methods["grid of fewer steps"]
    assert grid.grid is not None
    assert len(grid.grid) == T + 1
    assert grid.schedule is not None
    assert grid.schedule.K == K


def test_boundaries_come_on_top():
    run = calibrator()
    grams = prices(run, recommended(run, 1e-3, "trajectory")).grams
    bounded = segment_costs(grams, 3, 2, ridge=1e-3, boundaries=(9,))
    priced = replace(prices(run, recommended(run, 1e-3, "trajectory")), even=bounded, weighed=bounded)
    for schedule in schedules("thorough", T, K, (9,), priced).values():
        assert schedule.computed[9]
        assert schedule.K in (K, K + 1)


def test_weighed_prices_are_those_of_the_growth():
    run = calibrator()
    grams = prices(run, recommended(run, 1e-3, "trajectory")).grams
    growth = torch.rand(T + 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    even, whole = (segment_costs(grams, 3, 2, growth=g, ridge=1e-3, boundaries=(5,)) for g in (None, growth))
    assert torch.equal(even.weighed(growth).prices, whole.prices)
    assert price_of(even.weighed(growth), Schedule.uniform(T, K)) == price_of(whole, Schedule.uniform(T, K))


def test_even_steps_take_part_with_every_history():
    run = calibrator()
    base = recommended(run, 1e-3, "trajectory")
    for effort in ("balanced", "thorough"):
        measured = search(run, base, K, effort).measured
        assert [one.name for one in measured[:2]] == ["uniform, own history", "uniform"]
        assert len(measured) == MEASURED[effort] or effort == "thorough"  # which adds joint refinements
    assert [one.name for one in search(run, base, K, "fast").measured] == ["uniform"]


def test_prompts_that_were_fitted_to_do_not_overrule_the_others():
    run = calibrator()
    first = fitted_candidate(run, replace(recommended(run, 1e-3, "trajectory"), schedule=Schedule.uniform(T, K)))
    even = replace(first, measured={"error": [-2.0, -2.1, -1.9, -2.0]}, fitted=[-2.0] * 12)
    flattered = replace(first, measured={"error": [-1.8, -1.9, -1.8, -1.9]}, fitted=[-3.0] * 12)
    borne_out = replace(first, measured={"error": [-2.0, -2.2, -1.8, -2.0]}, fitted=[-2.5] * 12)
    assert best_of([even, flattered]) is even
    assert best_of([even, flattered, borne_out]) is borne_out
    alone = [replace(one, measured={"error": one.errors[:1]}) for one in (even, flattered)]
    assert best_of(alone) is alone[1]


def test_a_joint_refinement_is_taken_beyond_a_standard_error_of_the_prompts_that_choose(
    monkeypatch: pytest.MonkeyPatch,
):
    run = calibrator()
    found = search(run, recommended(run, 1e-3, "trajectory"), K, "fast")
    best, errors = found.best, found.best.errors
    shifted = lambda by: replace(best, measured={"error": [e + d for e, d in zip(errors, by, strict=True)]})  # noqa: E731
    clear = shifted([-0.3, -0.31, -0.29, -0.3][: len(errors)])
    faint = shifted([-0.3, 0.29, -0.2, 0.2][: len(errors)])
    for better, taken in ((clear, True), (faint, False)):
        monkeypatch.setattr(joint, "refined", lambda *_, better=better: [better])
        after = refined(run, found)
        assert (after.best is better) is taken
        assert after.measured == (*found.measured, better)
        assert simpler_on_a_tie([errors, better.errors]) == taken
    monkeypatch.setattr(joint, "refined", lambda *_: [])
    assert refined(run, found) == Found(best, found.measured)
