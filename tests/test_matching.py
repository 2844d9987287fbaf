"""A call that does not belong is refused; the text names what differs, both values and the remedy."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxImg2ImgPipeline

import ertacache.runtime.apply as ertacache
from cached import CHANNELS, SITES, TOKENS, T, base_sigmas, call_of, fitted, latents, profile, provenance
from ertacache.core.predictor import Predictor
from ertacache.errors import ProfileMismatch
from ertacache.pipelines.guidance import TwoBranchGuidance
from ertacache.profile.profile import Profile, Rectifier, Site
from ertacache.runtime.matching import check_shape, check_weight, depends_on_guidance
from pipelines import CALL, CFG_CALL, PROMPTS, generate


def refused_in_call(pipe: Any, wanted: Profile, *words: str, call: dict[str, Any] | None = None, **more: Any) -> None:
    with ertacache.apply(pipe, wanted), pytest.raises(ProfileMismatch) as error:
        generate(pipe, PROMPTS[:1], call or call_of(pipe), **more)
    assert [word for word in words if word not in str(error.value)] == []


def accepted(pipe: Any, wanted: Profile, **more: Any) -> None:
    with ertacache.apply(pipe, wanted) as stats:
        generate(pipe, PROMPTS[:1], call_of(pipe), **more)
    assert sum(stats.predicted.values()) > 0


def channelwise(wanted: Profile) -> Profile:
    """With a rectifier folded into the predictor."""
    table = torch.zeros(T, len(wanted.predictor.targets), 1, CHANNELS)
    table[list(wanted.schedule.predicted_steps)] = 0.01
    return replace(wanted, predictor=wanted.predictor.rectified(table, table))


def test_step_count(flux: Any) -> None:
    refused_in_call(
        flux, profile(flux, "output"), "num_inference_steps", "10", "12", "call the pipeline", num_inference_steps=12
    )


@pytest.mark.parametrize("site", SITES)
def test_missing_negative_prompt(flux_cfg: Any, site: Site) -> None:
    call = {name: value for name, value in CFG_CALL.items() if name != "negative_prompt"}
    words = "call names", "['cond', 'uncond']", "made ['cond']", "negative_prompt"
    refused_in_call(flux_cfg, profile(flux_cfg, site), *words, call=call)


@pytest.mark.parametrize("site", SITES)
def test_a_call_too_many(flux: Any, site: Site) -> None:
    words = "call names", "['cond']", "'uncond'", "same kind of guidance"
    refused_in_call(flux, profile(flux, site), *words, true_cfg_scale=4.0, negative_prompt="")


def test_calls_without_a_name_are_counted(flux: Any) -> None:
    """FluxImg2ImgPipeline names no calls: they take the profile's names in order, and there may be too many."""
    pipe = FluxImg2ImgPipeline.from_pipe(flux)
    pipe.set_progress_bar_config(disable=True)
    more = {"image": torch.zeros(1, 3, 64, 64), "strength": 0.6}
    accepted(pipe, profile(pipe, "output"), **more)
    words = "call names", "['cond']", "'call1'"
    refused_in_call(pipe, profile(pipe, "output"), *words, true_cfg_scale=4.0, negative_prompt="", **more)


def of_each_kind(pipe: Any) -> list[Profile]:
    """Profiles whose coefficients hold at one guidance weight only."""
    predicted = list(profile(pipe, "output").schedule.predicted_steps)
    table = torch.zeros(T, len(profile(pipe, "hidden").predictor.targets))
    table[predicted] = 0.01
    return [
        profile(pipe, "guided"),
        fitted(pipe, "guided"),
        fitted(pipe, "output"),
        channelwise(profile(pipe, "output")),
        profile(pipe, "hidden", rectifier=Rectifier(table, table)),
    ]


def test_guidance_of_two_branches(flux_cfg: Any) -> None:
    for wanted in of_each_kind(flux_cfg):
        refused_in_call(
            flux_cfg, wanted, "guidance weight", "calibrated at 4,", "runs at 4.5;", "calibrate at", true_cfg_scale=4.5
        )
        accepted(flux_cfg, wanted, true_cfg_scale=4.02)  # less than 1% off


def test_embedded_guidance(flux: Any) -> None:
    for wanted in of_each_kind(flux):
        words = "embedded guidance", "calibrated at 4,", "runs at 3.5;", "calibrate at"
        refused_in_call(flux, wanted, *words, guidance_scale=3.5)
        accepted(flux, wanted, guidance_scale=4.02)


@pytest.mark.parametrize("site", ["output", "hidden"])
@pytest.mark.parametrize("basis", ["reuse", "residual"])
def test_reuse_belongs_to_any_guidance(flux: Any, flux_cfg: Any, site: Site, basis: str) -> None:
    accepted(flux, profile(flux, site, basis=basis), guidance_scale=2.0)
    accepted(flux_cfg, profile(flux_cfg, site, basis=basis), true_cfg_scale=7.0)
    assert not depends_on_guidance(profile(flux, site, basis=basis))


def test_guidance_is_read_in_bfloat16_too(flux_cfg: Any) -> None:
    wanted = profile(flux_cfg, "guided")
    flux_cfg.to(torch.bfloat16)
    accepted(flux_cfg, wanted)
    refused_in_call(flux_cfg, wanted, "guidance weight", true_cfg_scale=4.2)


@pytest.mark.parametrize("batched", [False, True])
def test_guidance_weight_is_read_off_the_outputs(batched: bool) -> None:
    cond, uncond = torch.randn(2, 3, 8, 4, generator=torch.Generator().manual_seed(0))
    contexts = ("cond_uncond",) if batched else ("cond", "uncond")
    outputs = [torch.cat([uncond, cond])] if batched else [cond, uncond]
    guidance = TwoBranchGuidance(contexts)

    def read(guided: torch.Tensor) -> float | None:
        for context, output in zip(contexts, outputs, strict=True):
            guidance.observe(context, output)
        return guidance.weight(guided)

    assert read(uncond + 5.5 * (cond - uncond)) == pytest.approx(5.5, rel=1e-5)
    assert read(torch.zeros(3, 8, 5)) is None
    assert guidance.weight(uncond) is None  # nothing was observed
    outputs = [torch.cat([cond, cond])] if batched else [cond, cond]
    assert read(cond) is None  # any weight would do


def test_a_fitted_profile_does_not_belong_to_another_kind_of_guidance(flux_cfg: Any) -> None:
    for wanted in of_each_kind(flux_cfg):
        with pytest.raises(ProfileMismatch, match=r"calibrated at 4, this call mixes its outputs in another way; use"):
            check_weight(wanted, 0, math.nan)
        check_weight(wanted, 0, None)
    check_weight(profile(flux_cfg, "output"), 0, math.nan)  # reuse belongs to any


def test_one_branch_has_no_guidance_weight() -> None:
    guidance = TwoBranchGuidance(("cond",))
    guidance.observe("cond", torch.ones(2, 3))
    assert guidance.weight(torch.ones(2, 3)) is None


def test_custom_sigmas(flux: Any) -> None:
    wanted = profile(flux, "output")
    near = [1.0 - 0.1 * i for i in range(T)]
    near[5] += 0.01
    accepted(flux, wanted, sigmas=near)
    far = [1.0 - 0.1 * i for i in range(T)]
    far[7] -= 0.1
    base = flux.scheduler.sigmas
    with ertacache.apply(flux, wanted), pytest.raises(ProfileMismatch) as error:
        latents(flux, sigmas=far)
    message = str(error.value)
    assert f"time grid: at step 7 the profile has sigma {wanted.base_sigmas[7]:.4f}" in message
    assert f"this call {flux.scheduler.sigmas[7]:.4f}" in message and "sigmas of the calibration" in message
    assert base[7] != flux.scheduler.sigmas[7]


def elementwise(pipe: Any) -> Profile:
    table = torch.zeros(T, 1, TOKENS, CHANNELS)
    wanted = profile(pipe, "output")
    table[list(wanted.schedule.predicted_steps)] = torch.rand(TOKENS, CHANNELS) / 50
    return replace(wanted, predictor=wanted.predictor.rectified(table, table))


def test_latent_shape_of_elementwise_coefficients(flux: Any) -> None:
    flux.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)  # its grid does not depend on the size
    near = {"base_sigmas": static_sigmas(flux), "sigmas": static_sigmas(flux)}
    wanted = replace(elementwise(flux), **near)
    accepted(flux, wanted)
    refused_in_call(flux, wanted, "latent shape", "(64, 16)", "(32, 16)", "size of the calibration", height=32)
    accepted(flux, replace(channelwise(profile(flux, "output")), **near), height=32)
    table = wanted.predictor.b
    rectifier = Rectifier(table, table)
    hidden = replace(profile(flux, "hidden", rectifier=rectifier), **near)
    refused_in_call(flux, hidden, "latent shape", "(64, 16)", "(32, 16)", height=32)
    plain = profile(flux, "guided").predictor
    guided = replace(profile(flux, "guided", predictor=plain.rectified(table, table)), **near)
    refused_in_call(flux, guided, "latent shape", "(64, 16)", "(32, 16)", height=32)


def static_sigmas(pipe: Any) -> torch.Tensor:
    scheduler = copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(sigmas=[1 - i / T for i in range(T)])
    return scheduler.sigmas


@pytest.mark.parametrize("axis", [-1, 2])
def test_channel_count(flux: Any, axis: int) -> None:
    wanted = replace(profile(flux, "output"), provenance=provenance(flux, channel_axis=axis))
    check_shape(wanted, (32, CHANNELS))
    with pytest.raises(ProfileMismatch, match=r"latent channels: the profile has 16, this pipeline 12; use the model"):
        check_shape(wanted, (TOKENS, 12))


def test_what_depends_on_guidance(flux: Any) -> None:
    assert all(depends_on_guidance(wanted) for wanted in of_each_kind(flux))
    schedule = profile(flux, "output").schedule
    plain = profile(flux, "output").predictor
    damped = Predictor(plain.targets, plain.sources, plain.a, plain.d * 0.5, plain.b)
    assert depends_on_guidance(profile(flux, "output", predictor=damped))
    line = Predictor.extrapolation(schedule, ("cond",), base_sigmas(flux))
    assert depends_on_guidance(profile(flux, "output", predictor=line))
    assert call_of(flux) is CALL
