"""A call that a profile does not belong to, refused or computed without it: bit for bit the plain pipeline."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import cached
import ertacache.runtime.apply as ertacache
import small_images as images
import video_profiles as video
from ertacache.core.schedule import Schedule
from ertacache.errors import ErtacacheError, InvalidArgument, ProfileMismatch, UnsupportedPipeline
from ertacache.profile.profile import Profile
from pipelines import CALL, CFG_CALL, PROMPTS, VIDEO_CALL, cogvideox, flux, generate, wan
from rest_computed import MASK, Ran, T, fitted, go_on_plainly, refused
from rest_computed import generate as steps_of
from supported import Small

Setting = tuple[Small, Profile]


def on_adjusted_grid(profile: Profile) -> Profile:
    """Every step but the first and last a third of an interval later."""
    moved = profile.base_sigmas.clone()
    moved[1:-1] += 0.3 * moved.diff()[1:]
    return replace(profile, sigmas=moved)


def of_flux() -> Setting:
    pipe = flux(False)
    return Small(pipe, CFG_CALL, tuple(PROMPTS)), cached.fitted(pipe, "guided")


def of_other_channels() -> Setting:
    pipe = flux(False)
    facts = cached.provenance(pipe, latent_shape=(64, 12))
    return Small(pipe, CFG_CALL, tuple(PROMPTS)), cached.profile(pipe, "output", provenance=facts)


def of_embedded_flux() -> Setting:
    pipe = flux()
    return Small(pipe, CALL, tuple(PROMPTS)), cached.fitted(pipe, "output")


def of_two_denoisers() -> Setting:
    """One takes over from the other at step 5 in the profile, in the pipeline at 3 or 7."""
    pipe = video.wan22()
    return Small(pipe, video.TWO_CALL, tuple(PROMPTS)), video.profile(pipe, "guided", "##...#.#.#")


def without_negative_prompt() -> Setting:
    small, profile = of_flux()
    small.call = {name: value for name, value in CFG_CALL.items() if name != "negative_prompt"}
    return small, profile


CAUSES: dict[str, tuple[Callable[[], Setting], dict[str, Any], str]] = {
    "step count": (of_flux, {"num_inference_steps": 7}, "num_inference_steps: the profile has 10, this pipeline 7;"),
    "size": (of_flux, {"height": 256, "width": 256}, "time grid: at step "),
    "kind of guidance": (without_negative_prompt, {}, "call names: at step 0 the profile has ['cond', 'uncond'], this"),
    "guidance weight": (
        of_flux,
        {"true_cfg_scale": 2.0},
        "guidance weight: the profile was calibrated at 4,",
    ),
    "embedded guidance": (
        of_embedded_flux,
        {"guidance_scale": 2.0},
        "embedded guidance: the profile was",
    ),
    "channels": (of_other_channels, {}, "latent channels: the profile has 12, this pipeline 16;"),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_each_cause_is_refused_or_computed_as_the_plain_pipeline(cause: str, caplog: pytest.LogCaptureFixture) -> None:
    make, call, words = CAUSES[cause]
    small, profile = make()
    call = {"num_inference_steps": T, **call}
    ran, stats = go_on_plainly(small, profile, None, caplog, **call)
    assert min(ran.calls) > 0 and stats.predicted == {} and str(stats.reason).startswith(words)
    assert sum(stats.computed.values()) == sum(ran.calls) and len(caplog.records) == 1
    assert refused(small, profile, None, **call).startswith(words)


def test_a_call_that_matches_is_served_after_one_that_does_not(caplog: pytest.LogCaptureFixture) -> None:
    small, profile = of_flux()
    with ertacache.apply(small.pipe, profile) as stats:
        served = steps_of(small)
    with ertacache.apply(small.pipe, profile, on_mismatch="compute") as stats:
        for scale, steps in ((2.0, T), (4.0, T), (3.0, T), (4.0, 5), (4.0, 6), (4.0, T)):
            ran = steps_of(small, true_cfg_scale=scale, num_inference_steps=steps)
            fits = (scale, steps) == (4.0, T)
            assert (stats.reason is None) == fits and (sum(stats.predicted.values()) == 10) == fits
            if fits:
                assert torch.equal(ran.final, served.final)
    assert stats.runs == 6
    assert [record.getMessage().split(":")[1].strip() for record in caplog.records] == [
        "guidance weight", "num_inference_steps",
    ]  # fmt: skip


@pytest.mark.parametrize("take_over", [0.55, 0.95])
def test_another_denoiser_that_takes_over_elsewhere(take_over: float, caplog: pytest.LogCaptureFixture) -> None:
    small, profile = of_two_denoisers()
    assert steps_of(small).calls == [2] * T
    small.pipe.register_to_config(boundary_ratio=take_over)
    with ertacache.apply(small.pipe, profile, on_mismatch="compute") as stats:
        ran = steps_of(small)
    start = ran.computed_from()
    by_hand = steps_of(small, go_on_from=(start - 1, ran.latents[start - 1])) if start else steps_of(small)
    assert str(stats.reason).startswith("denoisers: in the profile another one takes over at steps [5], and here one")
    assert start <= 5 and min(ran.calls[start:]) > 0 and len(caplog.records) == 1
    assert torch.equal(ran.final, by_hand.final) or start > 0  # UniPC goes on from its own last outputs
    assert refused(small, profile, None).startswith("denoisers:")


@pytest.mark.parametrize("make", [flux, wan, cogvideox])
def test_a_mismatch_in_the_first_step_gives_the_own_grid_back(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    pipe = make(False) if make is flux else make()
    call = CFG_CALL if make is flux else VIDEO_CALL
    small = Small(pipe, call, tuple(PROMPTS[:3]))
    profile = on_adjusted_grid(fitted(small, "guided"))
    weight = {"true_cfg_scale": 2.0} if make is flux else {"guidance_scale": 2.0}
    ran, stats = go_on_plainly(small, profile, None, caplog, **weight)
    assert min(ran.calls) > 0 and str(stats.reason).startswith("guidance weight: at step 0")
    assert not torch.equal(steps_of(small).final, served(small, profile).final)


def served(small: Small, profile: Profile) -> Ran:
    with ertacache.apply(small.pipe, profile) as stats:
        ran = steps_of(small)
    assert stats.reason is None and sum(stats.predicted.values()) > 0
    return ran


def test_a_later_mismatch_goes_on_on_the_profiles_grid() -> None:
    """The latent of then is of that grid; the run ends where it would."""
    small = Small(cogvideox(), VIDEO_CALL, tuple(PROMPTS[:3]))
    profile = on_adjusted_grid(fitted(small, "guided"))

    def change(pipe: Any, step: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = 2.0 if step >= 3 else pipe._guidance_scale
        return {}

    with ertacache.apply(small.pipe, profile, on_mismatch="compute") as stats:
        ran = steps_of(small, change)
    assert ran.computed_from() == 6 and str(stats.reason).startswith("guidance weight: at step 6")
    computed = replace(
        profile,
        schedule=Schedule.all_computed(T),
        predictor=nothing(profile),
        provenance=replace(profile.provenance, method={}),
    )
    with ertacache.apply(small.pipe, computed, on_mismatch="compute"):  # the same grid, and nothing but computed steps
        by_hand = steps_of(small, change, go_on_from=(5, ran.latents[5]))
    assert torch.equal(ran.final, by_hand.final)


def nothing(profile: Profile) -> Any:
    tables = profile.predictor
    return replace(tables, a=torch.zeros_like(tables.a), d=tables.d * 0, b=tables.b * 0)


@pytest.mark.parametrize("steps", [1, 2])
def test_warm_ups_are_computed_with_and_without_retarget(steps: int, caplog: pytest.LogCaptureFixture) -> None:
    small, profile = of_flux()
    plain = steps_of(small, num_inference_steps=steps)
    with ertacache.apply(small.pipe, profile, retarget=True) as stats:
        assert torch.equal(steps_of(small, num_inference_steps=steps).final, plain.final)
    assert str(stats.reason).startswith(f"num_inference_steps: {steps} leaves nothing to predict")
    assert stats.runs == 1 and sum(stats.computed.values()) == 2 * steps and not caplog.records
    with ertacache.apply(small.pipe, profile, on_mismatch="compute") as stats:
        assert torch.equal(steps_of(small, num_inference_steps=steps).final, plain.final)
    assert str(stats.reason).startswith(f"num_inference_steps: the profile has 10, this pipeline {steps};")
    with ertacache.apply(small.pipe, profile), pytest.raises(ProfileMismatch, match="num_inference_steps"):
        steps_of(small, num_inference_steps=steps)


def test_the_solvers_numbers_belong_to_the_profile(caplog: pytest.LogCaptureFixture) -> None:
    small = images.stable_diffusion()
    still, noisy = (
        fitted(small, "guided", num_inference_steps=T),
        fitted(small, "guided", eta=0.5, num_inference_steps=T),
    )
    assert (still.provenance.step_arguments, noisy.provenance.step_arguments) == ({"eta": 0.0}, {"eta": 0.5})
    call = {"num_inference_steps": T}
    for wanted, eta, words in (
        (still, 1.0, "eta: the profile was calibrated with 0.0, this call gives scheduler.step 1.0; use that eta"),
        (noisy, 0.0, "eta: the profile was calibrated with 0.5, this call gives scheduler.step 0.0; use that eta"),
    ):
        ran, stats = go_on_plainly(small, wanted, None, caplog, eta=eta, **call)
        assert ran.calls == [1] * T and str(stats.reason).startswith(words)
        assert refused(small, wanted, None, eta=eta, **call).startswith(words)
    for wanted, eta in ((still, 0.0), (noisy, 0.5)):
        with ertacache.apply(small.pipe, wanted) as stats:
            assert steps_of(small, eta=eta, **call).computed_from() == 9
    older = replace(still, provenance=replace(still.provenance, calls=(), step_weights=(), step_arguments={}))
    with ertacache.apply(small.pipe, older) as stats:
        assert steps_of(small, eta=1.0, **call).computed_from() == 9


def halved(after: int) -> Callable[..., dict[str, Tensor]]:
    """A callback that drops half of the latent, as what drops tokens does."""
    return lambda pipe, step, t, given: {"latents": given["latents"][..., :4]} if step == after else {}


@pytest.mark.parametrize("after", [1, 3, 4])
@pytest.mark.parametrize("how", ["output", "guided", "speedup"])
def test_a_latent_that_changes_its_shape(how: Any, after: int, caplog: pytest.LogCaptureFixture) -> None:
    small = images.stable_diffusion()
    call = {"num_inference_steps": T}
    given: dict[str, Any] = {"speedup": 2.0} if how == "speedup" else {"profile": fitted(small, how, **call)}
    words = f"the latent of call 'call0' has shape [2, 4, 16, 4] at step {after + 1} and had [2, 4, 16, 16] before;"
    with ertacache.apply(small.pipe, on_mismatch="compute", **given) as stats:
        ran = steps_of(small, halved(after), **call)
        steps_of(small, halved(after), **call)
    start = ran.computed_from()
    by_hand = steps_of(small, halved(after), go_on_from=(start - 1, ran.latents[start - 1]), **call) if start else None
    assert torch.equal(ran.final, (by_hand or steps_of(small, halved(after), **call)).final)
    assert start <= after + 1 and str(stats.reason).startswith(words) and len(caplog.records) == 1
    with ertacache.apply(small.pipe, **given), pytest.raises(UnsupportedPipeline) as error:
        steps_of(small, halved(after), **call)
    assert str(error.value).startswith(words)


@pytest.mark.parametrize("wrong", ["skip", "", None, True, "COMPUTE"])
def test_another_word_is_refused(wrong: Any) -> None:
    small, profile = of_flux()
    for given in ({"profile": profile}, {"speedup": 2.0}):
        with pytest.raises(InvalidArgument) as error:
            ertacache.enable(small.pipe, on_mismatch=wrong, **given)
        assert str(error.value) == f"on_mismatch is {wrong!r}; choose 'refuse' or 'compute'"
    assert torch.equal(generate(small.pipe, PROMPTS[:1], CFG_CALL), generate(flux(False), PROMPTS[:1], CFG_CALL))


def test_what_only_the_last_step_shows_is_said_at_its_end(caplog: pytest.LogCaptureFixture) -> None:
    """A schedule may predict its last step, after which no other could say it."""
    small = images.lumina2()
    call = {"cfg_trunc_ratio": 1.0, "num_inference_steps": T}
    wanted = fitted(small, "guided", MASK[:-1] + ".", **call)
    ends = {**call, "cfg_trunc_ratio": 0.95}
    words = "call names: at step 9 the profile has ['call0', 'call1'], this call made ['call0'];"
    with ertacache.apply(small.pipe, wanted, on_mismatch="compute") as stats:
        assert steps_of(small, **ends).calls == [2, 2, 0, 2, 0, 0, 2, 0, 0, 0]
    assert str(stats.reason).startswith(words)
    assert [stats.reason in record.getMessage() for record in caplog.records if "erta" in record.name] == [True]
    with ertacache.apply(small.pipe, wanted), pytest.raises(ErtacacheError) as error:
        steps_of(small, **ends)
    assert str(error.value).startswith(words)
