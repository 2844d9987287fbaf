"""A profile at another number of steps: what is mapped where, and what a run does with it."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ertacache.runtime.apply as ertacache
from cached import MASK, T, fitted, latents, profile
from ertacache.core.schedule import Schedule
from ertacache.errors import ProfileMismatch
from ertacache.pipelines.solvers import read_grid
from ertacache.profile.profile import Rectifier
from ertacache.runtime.grids import distance
from ertacache.runtime.retarget import retargeted
from ertacache.runtime.retarget_loss import (
    CALIBRATED_AT,
    CALIBRATED_SIZE,
    SIZES,
    STEPS,
    Loss,
    warn_of_loss,
)
from numbered_profile import numbered, straight

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "retarget.json"


@pytest.mark.parametrize("mask", ["#..#.#.#..#", "#.#.#.#.#.#", "###...#..##"])
def test_the_same_steps_give_the_same_profile(mask: str) -> None:
    original = numbered(mask, levels=2)
    same = retargeted(original, original.base_sigmas)
    assert replace(same, provenance=original.provenance) == original


@pytest.mark.parametrize("steps", [20, 24, 40, 50, 60])
def test_uniform_stays_uniform_and_the_share_of_computed_steps_stays(steps: int) -> None:
    for K in (15, 10, 6):
        schedule = retargeted(numbered(str(Schedule.uniform(30, K))), straight(steps)).schedule
        assert (schedule.T, schedule.K) == (steps, round(K / 30 * steps))
        assert schedule.computed[0] and schedule.computed[-1]
        assert schedule == Schedule.uniform(steps, schedule.K)


def test_where_computed_steps_are_dense_they_stay_dense() -> None:
    """Half of the computed steps lie in the first quarter."""
    schedule = retargeted(numbered("####....#...#..#"), straight(32)).schedule
    assert schedule.K == 14
    assert sum(schedule.computed[:8]) == 7


def test_where_the_schedule_stays_each_step_keeps_its_own_coefficients() -> None:
    """A uniform schedule on another grid of as many steps, where by sigma they would be taken from elsewhere."""
    original = numbered(str(Schedule.uniform(30, 10)), levels=2)
    crowded = 1 - torch.linspace(0, 1, 31) ** 2
    found = retargeted(original, crowded)
    assert torch.equal(found.base_sigmas, crowded) and torch.equal(found.sigmas, crowded)
    same = {"base_sigmas": crowded, "sigmas": crowded, "provenance": found.provenance}
    assert found == replace(original, **same)


def test_an_uneven_schedule_moves_with_sigma_among_as_many_steps() -> None:
    original = numbered("######......#.#.#")
    crowded = 1 - torch.linspace(0, 1, 18) ** 2
    found = retargeted(original, crowded)
    assert (found.schedule.T, found.schedule.K) == (original.schedule.T, original.schedule.K)
    assert found.schedule != original.schedule
    ages = {j: j - original.schedule.last_computed(j) for j in original.schedule.predicted_steps}
    for i in found.schedule.predicted_steps:
        age = i - found.schedule.last_computed(i)
        known = [j for j in ages if ages[j] == age] or list(ages)
        away = {j: abs(float(original.base_sigmas[j] - crowded[i])) for j in known}
        assert away[round(float(found.predictor.b[i]) / 100)] == min(away.values())


def test_the_share_is_one_of_sigma_not_of_the_index() -> None:
    """On a grid whose steps crowd at the start, that is where the steps of the dense part are."""
    original = numbered("######......#.#.#")
    crowded = 1 - torch.linspace(0, 1, 18) ** 2
    schedule = retargeted(original, crowded).schedule
    assert schedule.K == original.schedule.K
    assert sum(crowded[i] >= original.base_sigmas[5] - 0.03 for i in schedule.computed_steps) == 6
    assert max(schedule.computed_steps[:6]) > 6


def test_a_predicted_step_takes_the_nearest_of_its_age() -> None:
    original = numbered("#..#.#..#")
    moved = retargeted(original, straight(18))
    assert str(moved.schedule)[0] == str(moved.schedule)[-1] == "#"
    age = {1: 1, 2: 2, 4: 1, 6: 1, 7: 2}
    for i in moved.schedule.predicted_steps:
        wanted = i - moved.schedule.last_computed(i)
        known = [j for j in age if age[j] == wanted] or list(age)
        distance = {j: abs(float(original.base_sigmas[j] - moved.base_sigmas[i])) for j in known}
        taken = round(float(moved.predictor.b[i]) / 100)
        assert distance[taken] == min(distance.values())
        assert moved.predictor.a[i] == original.predictor.a[taken] and moved.predictor.d[i] == 1
    assert {round(float(b) / 100) for b in moved.predictor.b} >= {0, 1, 4, 6}


def test_an_age_that_was_never_seen_takes_the_nearest_step() -> None:
    moved = retargeted(numbered("#.#.#.#.#.#"), straight(5))
    assert str(moved.schedule) == "#.#.#"
    longer = numbered("#.####.")
    found = retargeted(longer, straight(21))
    late = [i for i in found.schedule.predicted_steps if i - found.schedule.last_computed(i) == 2]
    assert late and all(float(found.predictor.b[i]) in (100, 600) for i in late)


def test_what_the_history_lacks_goes_to_the_oldest_output() -> None:
    original = numbered("####.#.#.#", levels=3)
    grid = torch.tensor([1.0, 0.8, 0.6, 0.45, 0.1, 0.0])
    moved = retargeted(original, grid)
    first = moved.schedule.predicted_steps[0]
    held = moved.schedule.depth(first)
    assert str(moved.schedule) == "##.##" and held == 2
    row, taken = moved.predictor.a[first, 0, 0], round(float(moved.predictor.b[first]) / 100)
    before = original.predictor.a[taken, 0, 0]
    assert row.sum() == pytest.approx(float(before.sum()))
    assert torch.equal(row[: held - 1], before[: held - 1]) and not row[held:].any()


def test_an_adjusted_grid_is_interpolated() -> None:
    original = numbered("#..#.#..##")
    sigmas = original.base_sigmas.clone()
    sigmas[3:7] += torch.tensor([0.02, 0.04, 0.03, 0.01])
    moved = retargeted(replace(original, sigmas=sigmas), straight(20))
    by = moved.sigmas - moved.base_sigmas
    torch.testing.assert_close(by[::2], sigmas - original.base_sigmas, rtol=0, atol=1e-6)
    torch.testing.assert_close(by[7], (by[6] + by[8]) / 2, rtol=0, atol=1e-6)
    assert moved.sigmas[0] == 1 and moved.sigmas[-1] == 0
    other = retargeted(replace(original, sigmas=sigmas), torch.linspace(1, 0.01, 21))  # ends elsewhere
    assert other.sigmas[-1] == other.base_sigmas[-1]


def test_a_rising_grid_is_the_mirror_of_a_falling_one() -> None:
    original = numbered("##..#.#..#")
    sigmas = original.base_sigmas.clone()
    sigmas[3:6] += torch.tensor([0.02, 0.04, 0.03])
    falling = retargeted(replace(original, sigmas=sigmas), straight(14))
    mirrored = replace(original, base_sigmas=1 - original.base_sigmas, sigmas=1 - sigmas)
    rising = retargeted(mirrored, 1 - straight(14))
    assert rising.schedule == falling.schedule and torch.equal(rising.predictor.a, falling.predictor.a)
    torch.testing.assert_close(rising.sigmas, 1 - falling.sigmas)


@pytest.mark.parametrize("first", [0.95, 0.9, 0.8])
def test_an_adjusted_grid_is_stretched_between_the_ends_of_one_that_starts_later(first: float) -> None:
    """What is moved stays in order: the second node would be put in front of the first, which does not move."""
    original = numbered("#..#.#.#..#")
    sigmas = original.base_sigmas.clone()
    sigmas[1:4] += torch.tensor([0.07, 0.12, 0.1])
    original = replace(original, sigmas=sigmas)
    grid = straight(20) * first
    found = retargeted(original, grid).sigmas
    assert float(found[0]) == float(grid[0]) and float(found[-1]) == 0 and bool((found.diff() < 0).all())
    moved = np.interp(-grid.numpy(), -original.base_sigmas.numpy(), sigmas.numpy())
    wanted = moved * float(grid[0]) / moved[0]
    torch.testing.assert_close(found, torch.from_numpy(wanted).float(), atol=1e-6, rtol=0)


def test_a_rectifier_goes_along() -> None:
    original = numbered("#..#.#..#")
    kappa = torch.zeros(9, 1)
    kappa[[1, 2, 4, 6, 7], 0] = torch.tensor([1.0, 2, 4, 6, 7])
    moved = retargeted(replace(original, rectifier=Rectifier(kappa, kappa * 2, "sigmoid")), straight(18))
    assert moved.rectifier is not None and moved.rectifier.activation == "sigmoid"
    assert torch.equal(moved.rectifier.kappa, moved.predictor.b / 100)
    assert torch.equal(moved.rectifier.beta, moved.predictor.b / 50)


def test_the_provenance_says_where_it_comes_from() -> None:
    original = numbered("#.#.#.#")
    measured = replace(original, provenance=replace(original.provenance, heldout={"K": 4}))
    found = retargeted(measured, straight(9)).provenance
    assert found.num_inference_steps == 9 and found.call == {"num_inference_steps": 9} and found.heldout == {}
    assert found.method["retargeted_from"] == 7
    assert found.method["schedule"] == str(retargeted(original, straight(9)).schedule)
    assert found.model_class == original.provenance.model_class


@pytest.mark.parametrize("steps", [7, 14])
def test_a_run_of_other_steps_is_that_of_the_retargeted_profile(flux: Any, steps: int) -> None:
    original = fitted(flux, "output")
    latents(flux, num_inference_steps=steps)
    moved = retargeted(original, read_grid(flux.scheduler))
    with ertacache.apply(flux, moved) as stats:
        wanted = latents(flux, num_inference_steps=steps)
        assert stats.computed["cond"] == moved.schedule.K and stats.predicted["cond"] == steps - moved.schedule.K
    with (
        pytest.warns(UserWarning, match="was calibrated at 10 steps and is retargeted to"),
        ertacache.apply(flux, original, retarget=True),
    ):
        assert torch.equal(latents(flux, num_inference_steps=steps), wanted)


def test_it_warns_once_and_its_own_steps_are_as_before(flux: Any) -> None:
    original = fitted(flux, "guided")
    with ertacache.apply(flux, original):
        plain = latents(flux)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stats = ertacache.enable(flux, original, retarget=True)
        assert torch.equal(latents(flux), plain) and not caught
        first = latents(flux, num_inference_steps=7)
        latents(flux, num_inference_steps=14)
        assert stats.computed["cond"] == round(original.schedule.K / T * 14)
        assert torch.equal(latents(flux, num_inference_steps=7), first)
        assert torch.equal(latents(flux), plain)
        ertacache.disable(flux)
    found = [str(w.message) for w in caught if "retargeted" in str(w.message)]
    assert len(found) == 1 and "Calibrate at num_inference_steps=7" in found[0]
    nearest = STEPS[0]  # 7 of 10 is nearest to 20 of 30
    assert f"{nearest.retargeted:.1f} dB PSNR" in found[0] and f"{nearest.reuse:.1f} dB" in found[0]


def test_an_adjusted_grid_of_other_steps_is_the_one_that_runs(flux: Any) -> None:
    original = profile(flux, "output")
    sigmas = original.base_sigmas.clone()
    sigmas[3:6] -= 0.02
    original = replace(original, sigmas=sigmas)
    latents(flux, num_inference_steps=14)
    own = read_grid(flux.scheduler)
    with pytest.warns(UserWarning, match="retargeted to 14"), ertacache.apply(flux, original, retarget=True):
        latents(flux, num_inference_steps=14)
    assert torch.equal(read_grid(flux.scheduler), retargeted(original, own).sigmas)
    assert not torch.equal(read_grid(flux.scheduler), own)


def test_without_it_another_number_of_steps_is_refused(flux: Any) -> None:
    with (
        ertacache.apply(flux, profile(flux, "output", MASK)),
        pytest.raises(ProfileMismatch, match=r"num_inference_steps: the profile has 10, .* 7; .*retarget=True"),
    ):
        latents(flux, num_inference_steps=7)


def test_the_losses_are_those_of_the_committed_result_file() -> None:
    results = json.loads(RESULTS.read_text())
    assert results["header"]["T"] == CALIBRATED_AT
    measured = [
        (row["steps"], *(row[name]["mean"] for name in ("retargeted", "calibrated", "reuse")))
        for row in results["rows"]
    ]
    assert measured == [(row.measure, row.retargeted, row.calibrated, row.reuse) for row in STEPS]


def test_the_losses_by_size_are_those_of_the_committed_result_file() -> None:
    results = json.loads((RESULTS.parent / "sizes.json").read_text())
    call = results["header"]["call"]
    assert f"{call['height']}×{call['width']}" == CALIBRATED_SIZE and results["header"]["T"] == CALIBRATED_AT
    assert len(results["header"]["prompts"]) == 32 and {row["K"] for row in results["rows"]} == {10, 15}
    measured = [
        Loss(
            f"{row['height']}×{row['width']}",
            row["distance"],
            *(row[name]["mean"] for name in ("retargeted", "calibrated", "reuse")),
        )
        for row in results["rows"]
        if row["K"] == CALIBRATED_AT // 2
    ]
    assert tuple(measured) == SIZES


@pytest.mark.parametrize("row", SIZES, ids=lambda row: row.place)
@pytest.mark.parametrize("unit", [1.0, 14.6])
def test_the_warning_of_another_size_gives_the_loss_that_is_nearest(row: Loss, unit: float) -> None:
    original = numbered("#.#.#.#", base_sigmas=straight(7) * unit, sigmas=straight(7) * unit)
    sigmas = original.base_sigmas.clone()
    sigmas[4] += (row.measure + 0.001) * unit
    assert distance(original.base_sigmas, sigmas) == pytest.approx(row.measure + 0.001, abs=1e-6)
    with pytest.warns(UserWarning) as caught:
        warn_of_loss(original, sigmas)
    assert str(caught[0].message) == (
        f"the profile is retargeted to a time grid that differs by up to {row.measure + 0.001:.1%} (another size, or "
        f"other sigmas). Measured on tiny-flux, half of the steps computed, from 64×64 pixels to {row.place}: "
        f"{row.retargeted:.1f} dB PSNR, where a profile calibrated there has {row.calibrated:.1f} dB and residual "
        f"reuse {row.reuse:.1f} dB. Calibrate at this size to have no such loss"
    )


def test_the_page_shows_the_measured_losses_and_aims() -> None:
    page = (ROOT / "docs" / "solvers.md").read_text()
    for row in json.loads(RESULTS.read_text())["rows"]:
        cells = [f"{row[name]['mean']:.1f}" for name in ("retargeted", "calibrated", "reuse")]
        assert f"| {row['steps']} | {row['K']} | {' | '.join(cells)} |" in page
    aims = json.loads((RESULTS.parent / "solver_aims.json").read_text())["rows"]
    for row in aims:
        cells = [f"{row[name]:.2f}" for name in ("residual reuse", "step", "trajectory")]
        assert f"| {row['solver']} | {row['K']} | {' | '.join(cells)} |" in page
    assert len(aims) == 6
