"""Open-Sora under a profile: calls counted, both branches told apart, sizes and given frames as without one."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import ertacache.runtime.apply as ertacache
from ertacache.calibration.calibrate import calibrate
from ertacache.calibration.method import Method
from ertacache.core.schedule import Schedule
from ertacache.errors import ProfileMismatch
from ertacache.pipelines.branches import DIRECTION, direction_of
from ertacache.profile.profile import Profile
from small_open_sora import small
from supported import MASK, SITES, Small, T, check, generate, watched

FITTED = Method("fitted", "guided", Schedule.from_mask(MASK), levels=2, directions=1, ridge=1e-3)


@pytest.fixture(scope="module")
def one() -> Small:
    return small()


def calibrated(one: Small, **choices: Any) -> Profile:
    return calibrate(one.pipe, one.prompts, holdout=1 / 3, show_progress=False, **choices, **one.call)


@pytest.mark.parametrize("site", SITES)
def test_calls_follow_the_schedule_and_nothing_is_left_behind(one: Small, site: str):
    found = check(one, site)
    assert (found.computed, found.predicted) == ({"cond_uncond": MASK.count("#")}, {"cond_uncond": MASK.count(".")})
    assert {"both branches in one call", "more channels out than in"} <= set(found.notes)


def test_a_profile_that_computes_all_steps_changes_no_bit(one: Small):
    profile = calibrated(one, schedule="#" * T)
    plain = generate(one)
    with ertacache.apply(one.pipe, profile) as stats:
        assert torch.equal(generate(one), plain)
    assert stats.computed == {"cond_uncond": T} and not any(stats.predicted.values())


def test_the_direction_is_conditional_less_unconditional(one: Small):
    """The weight that the pipeline guides by is read off its calls, although it negates what it gives the solver."""
    outputs: list[Tensor] = []
    handle = one.pipe.transformer.register_forward_hook(lambda *given: outputs.append(given[-1][0]))
    generate(one)
    handle.remove()
    uncond, cond = outputs[0][:, :4].chunk(2)
    guided = -(uncond + 4.0 * (cond - uncond))
    found = direction_of({"cond_uncond": outputs[0]}, guided)
    assert found is not None and torch.equal(found, cond - uncond)

    profile = calibrated(one, method=FITTED)
    assert profile.predictor.sources == ("guided", DIRECTION)
    assert abs(float(profile.provenance.guidance_weight or 0) - 4.0) < 1e-3
    plain = generate(one)
    with watched(one.pipe) as watch, ertacache.apply(one.pipe, profile) as stats:
        cached = generate(one)
    assert watch.steps[:T] == [["cond_uncond"] if mark == "#" else [] for mark in MASK]
    assert stats.predicted == {"cond_uncond": MASK.count(".")}
    assert not torch.equal(cached, plain) and torch.equal(generate(one), plain)


def test_another_guidance_weight_is_seen(one: Small):
    profile = calibrated(one, method=FITTED)
    other = replace(one, call={**one.call, "guidance_scale": 4.4})
    with ertacache.apply(one.pipe, profile), pytest.raises(ProfileMismatch, match="guidance weight"):
        generate(other)


def test_given_frames_stay_as_they_are_under_a_profile(one: Small):
    image = torch.rand(3, 32, 43, generator=torch.Generator().manual_seed(9))
    given = replace(one, inputs={"image": image}, batch_size=1)
    profile = calibrate(
        one.pipe, one.prompts, schedule=MASK, site="guided", basis="fitted", history=2, holdout=1 / 3,
        show_progress=False, batch_size=1, inputs=[given.inputs] * 3, **one.call,
    )  # fmt: skip
    plain = generate(given)
    with ertacache.apply(one.pipe, profile) as stats:
        cached = generate(given)
    assert stats.predicted == {"cond_uncond": MASK.count(".")}
    assert torch.equal(cached[:, :, :1], plain[:, :, :1]) and not torch.equal(cached[:, :, 1:], plain[:, :, 1:])
