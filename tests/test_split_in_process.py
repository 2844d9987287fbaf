"""Several models in one run: whose turn it is, what counts as the run's own call, and a profile over the switch."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import cached
import ertacache
from ertacache.calibration.pipeline_run import call_pipeline
from ertacache.calibration.prompts import Prompts
from ertacache.errors import CacheConflict, InvalidArgument, SplitMismatch
from ertacache.split import split
from pipelines import CFG_CALL, PROMPTS, flux, generate, wan
from small_images import stable_diffusion
from split_dummies import mixtures

CALL: dict[str, Any] = {**CFG_CALL, "num_inference_steps": 6}


def models(count: int = 2) -> list[Any]:
    """Pipelines of one size around different weights."""
    return [flux(guidance_embeds=False, seed=10 * n) for n in range(count)]


def latents(pipe: Any, **more: Any) -> Tensor:
    return generate(pipe, PROMPTS[:1], {**CALL, **more}, output_type="latent")


def by_hand(pipes: list[Any], plan: list[int]) -> Tensor:
    """The same run with the model swapped in the pipeline by a callback."""
    large, denoisers = pipes[0], [pipe.transformer for pipe in pipes]
    large.transformer = denoisers[plan[0]]

    def swap(pipe: Any, i: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        pipe.transformer = denoisers[plan[min(i + 1, len(plan) - 1)]]
        return given

    found = latents(large, callback_on_step_end=swap)
    large.transformer = denoisers[0]
    return found


def test_the_first_and_the_last_switch_are_one_model_each() -> None:
    large, small = models()
    for switch, model, calls in ((6, 0, [12, 0]), (0, 1, [0, 12])):
        alone = by_hand([large, small], [model] * 6)
        with split(large, small, switch=switch) as stats:
            assert torch.equal(latents(large), alone)
        assert stats.calls == calls and stats.runs == 1


def test_three_models_and_back() -> None:
    pipes, plan = models(3), [1, 0, 2, 0, 1, 1]
    blocks, mixed = by_hand(pipes, [0, 0, 1, 1, 1, 2]), by_hand(pipes, plan)
    with split(*pipes, switch=(2, 5)) as stats:
        assert torch.equal(latents(pipes[0]), blocks)
    assert stats.calls == [4, 6, 2]
    with split(*pipes, models=plan) as stats:
        assert torch.equal(latents(pipes[0]), mixed)
    assert stats.calls == [4, 6, 2]


def test_a_denoiser_alone_is_enough() -> None:
    large, small = models()
    expected = by_hand([large, small], [0, 0, 1, 1, 1, 1])
    with split(large, small.transformer, switch=2) as stats:
        assert torch.equal(latents(large), expected)
    assert stats.calls == [4, 8]


def test_the_pipeline_is_what_it_was() -> None:
    large, small = models()
    parts = (large.scheduler, large.transformer, small.scheduler, small.transformer)
    plain, before = latents(large), [set(vars(part)) for part in parts]
    with pytest.raises(RuntimeError, match="on purpose"), split(large, small, switch=3):
        latents(large)
        raise RuntimeError("on purpose")
    assert [set(vars(part)) for part in parts] == before and torch.equal(latents(large), plain)


def test_calls_of_a_callback_are_nobodys() -> None:
    large, small = models()
    inside: list[Tensor] = []
    other = copy.copy(large)
    other.scheduler = type(large.scheduler).from_config(large.scheduler.config)  # no copy: its runs are not followed

    def call(pipe: Any, i: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        if i == 3:
            inside.append(latents(other))
        return given

    plain = latents(large)
    with split(large, small, switch=2) as stats:
        mixed = latents(large, callback_on_step_end=call)
    assert torch.equal(inside[0], plain) and torch.equal(mixed, by_hand([large, small], [0, 0, 1, 1, 1, 1]))
    assert stats.outside == 12 and stats.calls == [4, 8]


def test_a_run_that_was_broken_off_leaves_nothing_behind() -> None:
    large, small = models()

    def stop(*_: Any) -> dict[str, Any]:
        raise RuntimeError("on purpose")

    with split(large, small, switch=1) as stats:
        with pytest.raises(RuntimeError, match="on purpose"):
            latents(large, callback_on_step_end=stop)
        stats.calls[:] = [0, 0]
        latents(large)
    assert stats.calls == [2, 10]


def test_a_profile_inside_follows_whichever_model_computes() -> None:
    large, small = models()
    profile = cached.profile(large, "output", cached.MASK)
    T, computed = len(cached.MASK), cached.MASK.count("#")
    call = {**CFG_CALL, "num_inference_steps": T}
    with split(large, small, switch=T // 2) as stats, ertacache.apply(large, profile) as counted:
        generate(large, PROMPTS[:1], call, output_type="latent")
    first = cached.MASK[: T // 2].count("#")
    assert stats.calls == [2 * first, 2 * (computed - first)]
    assert sum(counted.predicted.values()) == 2 * (T - computed)


def test_a_calibration_inside_fits_across_the_switch() -> None:
    large, small = models()
    with split(large, small, switch=3) as stats:
        found = ertacache.calibrate(
            large, PROMPTS[:3], compute_steps=4, schedule="uniform", holdout=0.3, show_progress=False,
            **{**CALL, "num_inference_steps": 8},
        )  # fmt: skip
    assert found.schedule.K == 4 and stats.outside == 0 and min(stats.calls) > 0


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "neither": ({}, "neither of switch and models is given; pass switch=12, or the model of each step"),
    "both": ({"switch": 1, "models": [0]}, "both of switch and models is given"),
    "negative": ({"switch": -1}, "switch is -1; give the step at which each of the 1 other models takes over"),
    "true": ({"switch": True}, "switch is True; give the step"),
    "one too many": ({"switch": (1, 2)}, r"switch is \(1, 2\); give the step at which each of the 1 other"),
    "no such model": (
        {"models": [0, 2]},
        r"models is \[0, 2\]; name a model for each step: 0 for the large one, up",
    ),
    "no steps": ({"models": []}, r"models is \[\]; name a model"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_plan_that_cannot_be(case: str) -> None:
    changes, message = REFUSED[case]
    large, small = models()
    with pytest.raises(InvalidArgument, match=message), split(large, small, **changes):
        pass


def test_switches_that_fall_and_no_other_model() -> None:
    large, small = models()
    with pytest.raises(InvalidArgument, match=r"switch is \(3, 2\); .* rising from 0 on"):
        with split(large, small, small, switch=(3, 2)):
            pass
    with pytest.raises(InvalidArgument, match="there is one model only; give another pipeline to take over"):
        with split(large, switch=2):
            pass


def test_a_plan_of_another_length_is_refused_in_the_call() -> None:
    large, small = models()
    with (
        split(large, small, switch=7),
        pytest.raises(InvalidArgument, match="switch is 7 and the solver makes 6"),
    ):
        latents(large)
    with (
        split(large, small, models=[0, 1]),
        pytest.raises(InvalidArgument, match="models names 2 steps and"),
    ):
        latents(large)


def test_one_split_at_a_time_and_the_profile_last() -> None:
    large, small = models()
    with split(large, small, switch=1), pytest.raises(CacheConflict, match="this pipeline is split already; leave"):
        with split(large, small, switch=2):
            pass
    with ertacache.apply(large, cached.profile(large, "output", cached.MASK)):
        with pytest.raises(CacheConflict, match="a profile is already applied to this FlowMatchEuler"):
            with split(large, small, switch=2):
                pass


def test_models_that_share_no_space() -> None:
    large, guided, unet = flux(guidance_embeds=False, seed=0), flux(guidance_embeds=True), stable_diffusion().pipe
    with pytest.raises(SplitMismatch, match=r"model 1: denoiser.guidance_embeds: the large one has False, the"):
        with split(large, guided, switch=1):
            pass
    with pytest.raises(SplitMismatch, match=r"model 2: denoiser.in_channels: the large one has \d+, the other one 4"):
        with split(large, flux(guidance_embeds=False), wan(), switch=(1, 2)):
            pass
    scaled = stable_diffusion().pipe
    scaled.vae.register_to_config(scaling_factor=0.5)
    with pytest.raises(SplitMismatch, match=r"model 1: vae.scaling_factor: the large one has 1.0, the other one 0.5"):
        with split(unet, scaled, switch=1):
            pass
    velocity = stable_diffusion().pipe
    velocity.scheduler.register_to_config(prediction_type="v_prediction")
    with pytest.raises(SplitMismatch, match=r"model 1: scheduler.prediction_type: the large one has 'epsilon'"):
        with split(unet, velocity, switch=1):
            pass


def test_a_pipeline_of_ones_own_may_call_the_denoiser_by_helpers_of_its_own() -> None:
    large, small = mixtures()
    call = {"num_inference_steps": 3, "guidance_scale": 2.0}
    prompts, found = Prompts(("prompt 0 of class 1",), 0), list[Tensor]()
    for switch in (0, 1):
        with split(large, small, switch=switch) as stats:
            found.append(call_pipeline(large, prompts, call, decode=False))
        assert stats.calls == [2 * switch, 6 - 2 * switch] and stats.outside == 0
    assert torch.equal(found[0], call_pipeline(small, prompts, call, decode=False))
    assert not torch.equal(*found)
