"""One calibration of several sizes: each as if it were alone, each call served by its own, and what is refused."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import ertacache.runtime.apply as ertacache
import pipelines
from cached import latents
from ertacache.calibration.calibrate import calibrate
from ertacache.errors import CalibrationError, InvalidArgument, ProfileMismatch
from ertacache.pipelines.solvers import read_grid
from ertacache.profile.profile import Profile
from ertacache.runtime.folder_lock import locked
from ertacache.runtime.grids import distance, nearest, pick
from ertacache.runtime.retarget import retargeted
from numbered_profile import numbered, straight
from pipelines import CALL, PROMPTS

SIZES = [(32, 32), (64, 64)]
OTHERS: dict[str, Any] = {name: value for name, value in CALL.items() if name not in ("height", "width")}


def calibrated(pipe: Any, **options: Any) -> Profile:
    given: dict[str, Any] = {"compute_steps": 5, "history": 2, "holdout": 0.25, "show_progress": False}
    return calibrate(pipe, PROMPTS, **{**given, **options})


def untimed(profile: Profile) -> Profile:
    own = tuple(untimed(other) for other in profile.others)
    return replace(profile, others=own, provenance=replace(profile.provenance, measured={}))


@pytest.fixture(scope="module")
def profile() -> Profile:
    return calibrated(pipelines.flux(), sizes=SIZES, **OTHERS)


def test_each_size_is_calibrated_as_if_it_were_the_only_one(profile: Profile) -> None:
    (other,) = profile.others
    for found, (height, width) in zip((profile, other), SIZES, strict=True):
        alone = calibrated(pipelines.flux(), height=height, width=width, **OTHERS)
        assert untimed(replace(found, others=())) == untimed(alone)
        assert found.provenance.call == {**OTHERS, "height": height, "width": width}
    assert other.provenance.measured["uncached_runs"] == profile.provenance.measured["uncached_runs"]
    assert other.provenance.latent_shape[0] == 64


@pytest.mark.parametrize("size", SIZES)
def test_a_call_is_served_by_the_profile_of_its_size(profile: Profile, size: tuple[int, int]) -> None:
    own = (profile, *profile.others)[SIZES.index(size)]
    given: dict[str, Any] = {"height": size[0], "width": size[1]}
    wanted, found = pipelines.flux(), pipelines.flux()
    with ertacache.apply(wanted, replace(own, others=())) as stats:
        alone = latents(wanted, **given)
    computed = dict(stats.computed)
    with ertacache.apply(found, profile) as stats:
        assert torch.equal(latents(found, **given), alone) and dict(stats.computed) == computed
    with ertacache.apply(found, profile):
        for height, width in (*SIZES, *reversed(SIZES)):
            between = latents(found, height=height, width=width)
            if (height, width) == size:
                assert torch.equal(between, alone)


def test_another_size_is_refused_or_served_by_the_nearest(profile: Profile) -> None:
    pipe = pipelines.flux()
    with ertacache.apply(pipe, profile), pytest.raises(ProfileMismatch, match="time grid: at step"):
        latents(pipe, height=128, width=96)
    own = profile.others[0]
    moved = retargeted(own, read_grid(pipe.scheduler))
    assert nearest(profile, read_grid(pipe.scheduler)) is own and not moved.others
    with ertacache.apply(pipe, moved):
        wanted = latents(pipe, height=128, width=96)
    share = f"{distance(own.base_sigmas, moved.base_sigmas):.1%}"
    with (
        pytest.warns(UserWarning, match=f"retargeted to a time grid that differs by up to {share}"),
        ertacache.apply(pipe, profile, retarget=True),
    ):
        assert torch.equal(latents(pipe, height=128, width=96), wanted)


def test_of_several_grids_the_same_one_is_picked_and_else_the_nearest() -> None:
    def bent(T: int, power: float) -> torch.Tensor:
        return 1 - torch.linspace(0, 1, T + 1) ** power

    def on(sigmas: torch.Tensor, mask: str) -> Profile:
        return numbered(mask, base_sigmas=sigmas, sigmas=sigmas)

    low, long = on(bent(7, 2.0), "#.#.#.#"), on(straight(14), "#.#.#.#.#.#.##")
    first = replace(on(straight(7), "#.#.#.#"), others=(low, long))
    for sigmas, own in ((straight(7), first), (bent(7, 2.0), low), (straight(14), long)):
        found = pick(first, sigmas)
        assert len(found) == 1 and found[0] is own
    assert nearest(first, bent(7, 1.6)) is low and nearest(first, bent(7, 1.3)) is first
    assert nearest(first, bent(12, 1.1)) is long and nearest(first, bent(8, 1.9)) is low
    assert pick(first, bent(7, 1.7), retarget=True) == (retargeted(low, bent(7, 1.7)),)
    with pytest.raises(ProfileMismatch, match="the profile has 14, this pipeline 15"):
        pick(first, straight(15))
    # Two that are both the same grid: the nearer one, though the first would do.
    near = straight(7).clone()
    near[3] += 0.05
    assert pick(replace(first, others=(on(near, "#.#.#.#"),)), near) == (on(near, "#.#.#.#"),)
    assert isinstance(pick(first, straight(1), retarget=True), str)


def test_distance_is_the_widest_node_as_a_share_of_the_span() -> None:
    base = torch.tensor([4.0, 3.0, 1.0, 0.0])
    assert distance(base, torch.tensor([4.0, 3.0, 1.8, 0.0])) == pytest.approx(0.2)
    assert distance(base, torch.tensor([4.0, 3.5, 3.0, 2.0, 1.0, 0.5, 0.0])) == 0  # read off between its nodes
    assert distance(base, torch.tensor([4.0, math.nan, 1.0, 0.0])) != 0


def counted(pipe: Any) -> list[int]:
    """How often the denoiser ran."""
    calls = [0]

    def ran(*_: Any) -> None:
        calls[0] += 1

    pipe.transformer.register_forward_hook(ran)
    return calls


def test_sizes_on_one_grid_are_refused_before_the_denoiser_runs() -> None:
    pipe = pipelines.flux()
    calls = counted(pipe)
    message = (
        "sizes 32×48 and 48×32 have the same time grid, so that the profile of one serves both; leave one of them out"
    )
    with pytest.raises(InvalidArgument, match=message):
        calibrated(pipe, sizes=[(64, 64), (32, 48), (48, 32)], **OTHERS)
    assert calls == [0]
    video = pipelines.wan()
    call = {
        name: value for name, value in pipelines.VIDEO_CALL.items() if name not in ("height", "width", "num_frames")
    }
    with pytest.raises(InvalidArgument, match="sizes 32×32×9 and 32×48×5 have the same time grid"):
        calibrated(video, sizes=[(32, 32, 9), (32, 48, 5)], **call)


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "none": ([], {}, "sizes has 0 entries; give 1 to 16, or leave it out"),
    "too many": ([(16, 16 * n) for n in range(1, 18)], {}, "sizes has 17 entries; give 1 to 16, or leave it out"),
    "a text": ("64x64", {}, "sizes is '64x64'; give a list of"),
    "one size": ((64, 48), {}, r"sizes is \(64, 48\); give a list of \(height, width\) or \(height, width, frames\)"),
    "a number": (64, {}, "sizes is 64; give a list of"),
    "one side": ([(64,)], {}, r"sizes is \[\(64,\)\]; give a list of"),
    "four": ([(64, 64, 9, 1)], {}, "give a list of"),
    "no whole number": ([(64, 48.0)], {}, r"width is 48.0; choose a whole number of 1 or more: in sizes, \(64, 48.0\)"),
    "nothing": ([(0, 48)], {}, r"height is 0; choose a whole number of 1 or more"),
    "twice": ([(64, 64), [64, 64]], {}, r"sizes has \(64, 64\) twice; give each once"),
    "in the call": ([(64, 64)], {"width": 64}, "'width' is given in sizes and for all calls; give it once"),
    "no clip": ([(64, 64, 9)], {}, "no argument 'num_frames'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_size_is_refused_before_anything_runs(flux: Any, case: str) -> None:
    sizes, more, message = REFUSED[case]
    calls = counted(flux)
    with pytest.raises(InvalidArgument, match=message):
        calibrated(flux, sizes=sizes, **OTHERS, **more)
    assert calls == [0]


def test_each_size_continues_from_a_checkpoint_of_its_own(profile: Profile, tmp_path: Path) -> None:
    path = tmp_path / "runs"
    found = calibrated(pipelines.flux(), sizes=SIZES, checkpoint=path, **OTHERS)
    assert untimed(found) == untimed(profile)
    assert sorted(file.name for file in path.iterdir()) == ["32x32", "64x64"]
    again = pipelines.flux()
    calls = counted(again)
    assert calibrated(again, sizes=SIZES, checkpoint=path, **OTHERS) == found and calls == [0]


def test_a_later_sizes_checkpoint_of_another_calibration_shows_before_the_first_size_is_run(tmp_path: Path) -> None:
    path, flux = tmp_path / "runs", pipelines.flux()
    calibrated(pipelines.flux(), seed=1, checkpoint=path / "64x64", height=64, width=64, **OTHERS)
    calls = counted(flux)
    with pytest.raises(CalibrationError, match="64x64 belongs to another calibration"):
        calibrated(flux, sizes=SIZES, checkpoint=path, **OTHERS)
    assert calls == [0]
    with locked(path / "64x64"), pytest.raises(InvalidArgument, match="64x64 is in use"):
        calibrated(flux, sizes=SIZES, seed=1, checkpoint=path, **OTHERS)
    assert calls == [0]


def test_one_size_is_an_ordinary_calibration(profile: Profile, capsys: pytest.CaptureFixture[str]) -> None:
    found = calibrated(pipelines.flux(), sizes=SIZES[:1], show_progress=True, **OTHERS)
    assert untimed(found) == untimed(replace(profile, others=())) and "sizes" not in capsys.readouterr().err


def test_each_size_says_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    calibrated(pipelines.flux(), sizes=SIZES, show_progress=True, **OTHERS)
    said = capsys.readouterr().err
    for size in SIZES:
        assert (
            said.count(f"calibrate: size {size[0]}×{size[1]}: 3 prompts to fit, 0 to choose and 1 to judge on; ") == 1
        )
    assert said.count("computes 5 of 10") == 2
