"""Which grids are the same one, and what serves a run on a grid: the profile, one made of it, nothing, an error."""

import json
import math
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import ertacache.runtime.apply as ertacache
import small_token_images as small_images
from benchmark_scripts import ROOT, load
from cached import MASK, T, fitted, latents
from ertacache.errors import ProfileMismatch
from ertacache.pipelines.solvers import read_grid
from ertacache.profile.profile import Profile, Provenance
from ertacache.runtime.grids import apart, check_grid, pick, same_grid
from ertacache.runtime.retarget import nothing_to_predict, retargeted
from numbered_profile import numbered, straight

#: Strictly falling or rising, in sigmas of flow matching, of EDM, and in angles.
GRIDS = {
    "flow": [1.0, 0.98, 0.9, 0.6, 0.2, 0.0],
    "EDM": [14.6, 9.1, 3.3, 0.7, 0.03, 0.0],
    "angles": [1.5, 1.49, 1.2, 0.8, 0.3, 0.05],
    "rising": [0.0, 0.01, 0.2, 0.5, 1.0],
    "one step": [1.0, 0.0],
}


def limit(base: list[float], i: int) -> float:
    """Half of the shorter interval beside node i, counted out."""
    beside = [abs(base[j + 1] - base[j]) for j in (i - 1, i) if 0 <= j < len(base) - 1]
    return min(beside) / 2


@pytest.mark.parametrize("base", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_node_may_be_off_by_half_of_the_shorter_interval_beside_it(base: list[float], sign: int) -> None:
    for i in range(len(base)):
        for share, same in ((0.0, True), (0.49, True), (0.999, True), (1.001, False), (2.0, False)):
            other = list(base)
            other[i] += sign * share * limit(base, i)
            assert same_grid(torch.tensor(base), torch.tensor(other)) == same
            found = apart(torch.tensor(base), torch.tensor(other))
            assert float(found[i]) == pytest.approx(share, abs=1e-4)


def test_every_node_counts() -> None:
    draw = random.Random(0)
    for _ in range(200):
        base = sorted((draw.random() * 20 for _ in range(8)), reverse=True)
        other = [value + draw.gauss(0, 0.3) for value in base]
        wanted = all(abs(b - a) <= limit(base, i) for i, (a, b) in enumerate(zip(base, other, strict=True)))
        assert same_grid(torch.tensor(base).double(), torch.tensor(other).double()) == wanted


@pytest.mark.parametrize("length", [0, 1, 5, 7])
def test_another_length_is_another_grid(length: int) -> None:
    assert not same_grid(torch.tensor(GRIDS["flow"]), torch.linspace(1, 0, length))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_grid_with_nan_or_infinity_is_the_same(value: float) -> None:
    other = torch.tensor([*GRIDS["flow"][:3], value, *GRIDS["flow"][4:]])
    assert not same_grid(torch.tensor(GRIDS["flow"]), other)
    original = numbered("#.#.#")
    found = torch.tensor([1.0, 0.8, 0.6, value, 0.2, 0.0])
    with pytest.raises(ProfileMismatch, match=r"time grid: at step 3 the profile has sigma 0.4000, this call"):
        pick(original, found)
    with pytest.raises(ProfileMismatch, match=r"time grid: at step [23] this call goes from sigma"):
        pick(original, found, retarget=True)


def test_the_profile_serves_its_own_grid_whether_or_not_others_are_allowed() -> None:
    original = numbered("#.#.#.#")
    near = straight(7).double()
    near[3] += 0.07
    for sigmas in (straight(7), near):
        for found in (pick(original, sigmas), pick(original, sigmas, retarget=True)):
            assert len(found) == 1 and found[0] is original


def test_another_number_of_steps_is_refused_with_both() -> None:
    message = (
        r"num_inference_steps: the profile has 7, this pipeline 9; call the pipeline with num_inference_steps=7, or "
        r"apply the profile with retarget=True, which fits it to other step counts at some loss"
    )
    for ask in (pick, check_grid):
        with pytest.raises(ProfileMismatch, match=message):
            ask(numbered("#.#.#.#"), straight(9))


def test_another_grid_of_as_many_steps_is_refused_at_the_node_that_is_furthest_off_for_its_limit() -> None:
    base = torch.tensor([1.0, 0.98, 0.9, 0.6, 0.2, 0.0])
    original = numbered("#.#.#", base_sigmas=base, sigmas=base)
    found = base.clone()
    found[1] += 0.015  # 1.5 of its limit
    found[3] += 0.17  # more in sigma, and 1.13 of its limit
    message = (
        r"time grid: at step 1 the profile has sigma 0.9800, this call 0.9950 \(limit 0.0100 apart, half of the "
        r"shorter interval there\); use the size and sigmas of the calibration, apply the profile with retarget=True, "
        r"which fits it to other grids at some loss, or calibrate with these"
    )
    for ask in (pick, check_grid):
        with pytest.raises(ProfileMismatch, match=message):
            ask(original, found)


def another(steps: int) -> Tensor:
    return 1 - torch.linspace(0, 1, steps + 1) ** 1.6


@pytest.mark.parametrize("steps", [3, 4, 6, 7, 8, 15, 40])
def test_any_other_grid_is_served_where_that_is_allowed(steps: int) -> None:
    original = numbered("#.#..##", levels=2)
    (found,) = pick(original, another(steps), retarget=True)
    assert found == retargeted(original, another(steps)) and found is not original
    assert not isinstance(found, str) and torch.equal(found.base_sigmas, another(steps))
    assert found.schedule.K == round(4 / 7 * steps) < steps


@pytest.mark.parametrize(("mask", "steps"), [("#.#.#.#", 1), ("#.#.#.#", 2), ("#.....#", 2), ("#####.#", 3)])
def test_where_every_step_would_be_computed_there_is_a_reason_and_no_error(mask: str, steps: int) -> None:
    K = mask.count("#")
    wanted = (
        f"num_inference_steps: {steps} leaves nothing to predict where {K} of 7 steps are computed as in the profile, "
        "and the first and the last always; every step is computed"
    )
    original = numbered(mask)
    two = replace(original, provenance=facts_of_two(original, 6))
    for each in (original, two):
        assert pick(each, straight(steps), retarget=True) == wanted == nothing_to_predict(each, steps)
    with pytest.raises(ProfileMismatch, match="leaves nothing to predict"):
        retargeted(original, straight(steps))
    with pytest.raises(ProfileMismatch, match=f"num_inference_steps: the profile has 7, this pipeline {steps}"):
        pick(original, straight(steps))


def facts_of_two(original: Profile, boundary: int) -> Provenance:
    return replace(original.provenance, boundaries=(boundary,), later_weights=(None,))


def test_what_cannot_be_served_is_refused_though_other_grids_are_allowed() -> None:
    original = numbered("#.#.#")
    two = replace(original, provenance=facts_of_two(original, 2))
    with pytest.raises(ProfileMismatch, match=r"denoisers: .* calibrate at num_inference_steps=9 and this size"):
        pick(two, straight(9), retarget=True)
    turning = torch.tensor([1.0, 0.7, 0.8, 0.3, 0.1, 0.0])
    with pytest.raises(
        ProfileMismatch,
        match=r"time grid: at step 1 this call goes from sigma 0.7000 to 0.8000, where the profile can follow only a "
        "grid that falls at every step; use such sigmas",
    ):
        pick(original, turning, retarget=True)
    with pytest.raises(ProfileMismatch, match=r"at step 0 this call goes from sigma 0.0000 to 0.2000"):
        pick(original, 1 - straight(5), retarget=True)
    rising = replace(original, base_sigmas=1 - straight(5), sigmas=1 - straight(5))
    with pytest.raises(ProfileMismatch, match=r"from sigma 1.0000 to 0.8571, .* a grid that rises at every step"):
        pick(rising, straight(7), retarget=True)
    standing = torch.tensor([1.0, 0.8, 0.4, 0.4, 0.0])
    with pytest.raises(ProfileMismatch, match=r"at step 2 this call goes from sigma 0.4000 to 0.4000"):
        pick(original, standing, retarget=True)
    with pytest.raises(ProfileMismatch, match=r"time grid: base_sigmas reaches from -0.3 to 1"):
        pick(original, straight(8) * 1.3 - 0.3, retarget=True)
    with pytest.raises(ProfileMismatch, match=r"this call has 4097; use at most 4096 with a profile"):
        pick(original, straight(4097), retarget=True)


def far() -> list[float]:
    """Of as many steps as the random pipelines' profiles, and another grid."""
    return [(1 - i / T) ** 2 for i in range(T)]


@pytest.mark.parametrize("site", ["output", "guided"])
def test_another_grid_of_as_many_steps_runs_retargeted(flux: Any, site: Any) -> None:
    original = fitted(flux, site)
    with ertacache.apply(flux, original), pytest.raises(ProfileMismatch, match=r"time grid: at step"):
        latents(flux, sigmas=far())
    moved = retargeted(original, read_grid(flux.scheduler))
    with ertacache.apply(flux, moved) as stats:
        wanted = latents(flux, sigmas=far())
        assert stats.computed["cond"] == moved.schedule.K < T
    with (
        pytest.warns(UserWarning, match="is retargeted to a time grid that differs by up to"),
        ertacache.apply(flux, original, retarget=True),
    ):
        assert torch.equal(latents(flux, sigmas=far()), wanted)


def test_a_size_on_the_same_grid_runs_as_it_is_and_another_one_retargeted() -> None:
    """On the shift that FLUX has, in pixels of a random pipeline."""
    small = small_images.flux()
    small.call.update(height=128, width=128)
    pipe, call = small.pipe, {**small.call, "output_type": "latent", "prompt": small.prompts[0]}
    grids = {}
    for size in ((128, 128), (128, 120), (256, 256)):
        pipe(**{**call, "height": size[0], "width": size[1], "num_inference_steps": T})
        grids[size] = read_grid(pipe.scheduler)
    base = grids[128, 128]
    original = numbered(MASK, base_sigmas=base, sigmas=base)
    assert pick(original, grids[128, 120])[0] is original
    with pytest.raises(ProfileMismatch, match=r"time grid: at step"):
        pick(original, grids[256, 256])
    (found,) = pick(original, grids[256, 256], retarget=True)
    assert not isinstance(found, str) and found.schedule.K == original.schedule.K


def test_the_grids_of_flux_in_the_result_file_are_those_of_its_published_shift() -> None:
    """In closed form: σ = s / (s + 1/u − 1) with s = exp(mu), mu linear in the number of tokens."""

    def grid(height: int, width: int, steps: int) -> list[float]:
        tokens = (height // 16) * (width // 16)
        shift = math.exp(0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256))
        return [shift / (shift + steps / (steps - i) - 1) for i in range(steps)] + [0.0]

    rows = json.loads((ROOT / "benchmarks" / "results" / "sizes.json").read_text())["flux"]
    assert {(720, 1280), (1024, 768), (512, 512)} <= {(row["height"], row["width"]) for row in rows}
    for row in rows:
        for steps in (28, 50):
            base, other = grid(1024, 1024, steps), grid(row["height"], row["width"], steps)
            away = [abs(b - a) for a, b in zip(base, other, strict=True)]
            found = row[f"{steps} steps"]
            assert found["largest"] == pytest.approx(max(away), abs=1e-4)
            share = max(distance / limit(base, i) for i, distance in enumerate(away))
            assert found["of_limit"] == pytest.approx(share, abs=2e-3) and found["same"] == (share <= 1)


def test_the_script_makes_the_same_grids_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    rows = json.loads((ROOT / "benchmarks" / "results" / "sizes.json").read_text())["flux"]
    assert load("sizes").flux_rows() == rows
