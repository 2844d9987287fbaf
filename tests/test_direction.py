"""The guidance direction of the computed steps as a history: formula (P) on it bit for bit, and where it is refused."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

import cached
import profile_maker
from cached import CHANNELS, MU, TOKENS
from ertacache.core.predictor import Predictor
from ertacache.pipelines.branches import DIRECTION
from ertacache.profile.profile import Profile
from ertacache.runtime.apply import apply
from ertacache.runtime.retarget import retargeted
from ertacache.runtime.run_stats import RunStats
from numbered_profile import straight
from pipelines import CFG_CALL, PROMPTS, VIDEO_CALL, cogvideox, flux, wan
from rest_computed import MASK, PREDICTED, T, fitted, generate, go_on_plainly, refused
from supported import Small

SOURCES = ("guided", DIRECTION)
LEVELS = {"guided": 3, DIRECTION: 2}


def directed(profile: Profile, *coef: int) -> Profile:
    """The profile with weights of three guided outputs and two directions, all of them different."""
    a = torch.randn(T, 1, 2, 3, *coef, generator=torch.Generator().manual_seed(3)) * 0.05
    a[:, :, 0, 0] += 0.9
    for i in range(T):
        for s, source in enumerate(SOURCES):
            a[i, :, s, 0 if profile.schedule.computed[i] else min(LEVELS[source], profile.schedule.depth(i)) :] = 0
    zero = torch.zeros(T, 1, *coef)
    return replace(profile, predictor=Predictor(("guided",), SOURCES, a, zero, zero), rectifier=None)


def of_flux() -> tuple[Small, Profile]:
    pipe = flux(guidance_embeds=False)
    return Small(pipe, CFG_CALL, tuple(PROMPTS)), cached.profile(pipe, "guided", MASK)


def of_video(make: Callable[[], Any]) -> tuple[Small, Profile]:
    small = Small(make(), VIDEO_CALL, tuple(PROMPTS[:3]))
    return small, fitted(small, "guided")


MODELS: dict[str, Callable[[], tuple[Small, Profile]]] = {
    "FLUX, two calls": of_flux,
    "Wan, two calls": lambda: of_video(wan),
    "CogVideoX, one call": lambda: of_video(cogvideox),
}


@pytest.fixture(scope="module", params=MODELS)
def served(request: pytest.FixtureRequest) -> tuple[Small, Profile]:
    small, profile = MODELS[request.param]()
    return small, directed(profile)


@dataclass
class Seen:
    """Of one run: what the denoiser returned before each step of the solver, and what that was given."""

    outputs: list[list[Tensor]] = field(default_factory=lambda: [[]])
    given: list[Tensor] = field(default_factory=list[Tensor])

    def direction(self, i: int) -> Tensor:
        """c − u of a step: of two calls the first less the second, of one batch the second half less the first."""
        calls = self.outputs[i]
        if len(calls) == 2:
            return calls[0] - calls[1]
        uncond, cond = calls[0].chunk(2)
        return cond - uncond


@contextmanager
def seen(pipe: Any) -> Iterator[Seen]:
    found, step = Seen(), pipe.scheduler.step

    def returned(module: Any, args: Any, output: Any) -> None:
        found.outputs[-1].append((output[0] if isinstance(output, tuple) else output.sample).clone())

    def stepped(model_output: Tensor, *args: Any, **kwargs: Any) -> Any:
        found.given.append(model_output.clone())
        found.outputs.append([])
        return step(model_output, *args, **kwargs)

    stepped.__signature__ = inspect.signature(step)  # type: ignore[attr-defined]
    handle = pipe.transformer.register_forward_hook(returned)
    pipe.scheduler.step = stepped
    try:
        yield found
    finally:
        handle.remove()
        del pipe.scheduler.step


def by_hand(profile: Profile, found: Seen, i: int) -> Tensor:
    """Formula (P) in float32, level by level."""
    computed = [j for j in reversed(profile.schedule.computed_steps) if j < i]
    total = torch.zeros_like(found.given[i], dtype=torch.float32)
    for level, j in enumerate(computed[:3]):
        for s, source in enumerate(SOURCES):
            weight = profile.predictor.a[i, 0, s, level]
            value = found.given[j] if source == "guided" else found.direction(j)
            if weight.ndim:
                total.addcmul_(value.float(), weight)
            elif weight != 0:
                total.add_(value.float(), alpha=float(weight))
    return total.to(found.given[i].dtype)


def check_formula(small: Small, profile: Profile, **call: Any) -> RunStats:
    with seen(small.pipe) as found, apply(small.pipe, profile) as stats:
        generate(small, **call)
    for i in PREDICTED:
        assert not found.outputs[i] and torch.equal(found.given[i], by_hand(profile, found, i)), i
    return stats


def test_predictions_follow_the_formula_bit_for_bit(served: tuple[Small, Profile]) -> None:
    small, profile = served
    stats = check_formula(small, profile)
    calls = profile.provenance.contexts
    assert stats.computed == dict.fromkeys(calls, T - len(PREDICTED))
    assert stats.predicted == dict.fromkeys(calls, len(PREDICTED))  # answered by placeholders


def test_the_direction_matters(served: tuple[Small, Profile]) -> None:
    small, profile = served
    a = profile.predictor.a.clone()
    a[:, :, 1] = 0
    finals: list[Tensor] = []
    for own in (profile, replace(profile, predictor=replace(profile.predictor, a=a))):
        with apply(small.pipe, own):
            finals.append(generate(small).final)
    assert (finals[0] - finals[1]).abs().max() > 1e-3


def test_one_weight_per_channel_and_bfloat16() -> None:
    small, profile = of_flux()
    check_formula(small, directed(profile, 1, CHANNELS))
    small.pipe.to(torch.bfloat16)
    check_formula(small, directed(profile))
    check_formula(small, directed(profile, 1, CHANNELS))


def test_a_batch_of_two_is_two_batches_of_one(served: tuple[Small, Profile]) -> None:
    small, profile = served

    def final(*numbers: int) -> Tensor:
        arguments = {**small.call, "num_inference_steps": T, "output_type": "latent"}
        arguments["negative_prompt"] = [""] * len(numbers)
        generators = [torch.Generator().manual_seed(n) for n in numbers]
        return small.pipe(prompt=[small.prompts[n] for n in numbers], generator=generators, **arguments)[0]

    with torch.no_grad(), apply(small.pipe, profile):
        torch.testing.assert_close(final(0, 1), torch.cat([final(0), final(1)]), rtol=1e-4, atol=1e-4)


def test_bytes_are_those_of_each_depth_and_a_history_on_the_host_gives_the_same() -> None:
    small, profile = of_flux()
    profile, one = directed(profile), TOKENS * CHANNELS * 4
    with apply(small.pipe, profile) as stats:
        plain = generate(small).final
    assert (stats.extra_bytes, stats.host_bytes) == (5 * one, 0)
    with apply(small.pipe, profile, offload_history="cpu") as stats:
        assert torch.equal(generate(small).final, plain)
    assert (stats.extra_bytes, stats.host_bytes) == (0, 5 * one)


def test_a_loop_may_write_in_what_it_was_given() -> None:
    """The direction is that of what was returned, not of what became of it."""
    small, profile = of_flux()
    profile = directed(profile)
    finals: list[Tensor] = []
    for spoils in (False, True):
        with apply(small.pipe, profile) as stats:
            finals.append(_loop_of_one_s_own(small.pipe, spoils))
        assert stats.predicted["uncond"] == len(PREDICTED)
    assert torch.equal(*finals)


@torch.no_grad()
def _loop_of_one_s_own(pipe: Any, spoils: bool) -> Tensor:
    x, ids = pipe.prepare_latents(1, 4, 64, 64, torch.float32, "cpu", torch.Generator().manual_seed(0))
    text = {name: pipe.encode_prompt(words, None) for name, words in (("cond", PROMPTS[0]), ("uncond", ""))}
    pipe.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / T, T), mu=MU)
    for t in pipe.scheduler.timesteps:
        given: list[Tensor] = []
        for name, (embeds, pooled, text_ids) in text.items():
            with pipe.transformer.cache_context(name):
                output = pipe.transformer(
                    hidden_states=x, timestep=t.expand(1) / 1000, pooled_projections=pooled,
                    encoder_hidden_states=embeds, txt_ids=text_ids, img_ids=ids,
                )  # fmt: skip
            given.append(output.sample)
        guided = given[1] + 4.0 * (given[0] - given[1])
        for output in given if spoils else ():
            output.fill_(torch.nan)
        x = pipe.scheduler.step(guided, t, x).prev_sample
    return x


# -- where there are not two branches ----------------------------------------------------------------------

WORDS = "guidance direction: the profile predicts from the difference of two branches, and step {} made 'cond' [1, "


def test_a_run_of_one_call_is_refused_before_anything_is_predicted(caplog: pytest.LogCaptureFixture) -> None:
    pipe = flux()
    small = Small(pipe, {**CFG_CALL, "true_cfg_scale": 1.0}, tuple(PROMPTS))
    profile = directed(cached.profile(pipe, "guided", MASK))
    assert profile.provenance.contexts == ("cond",)
    words = WORDS.format(0)
    assert refused(small, profile, None).startswith(words)
    ran, stats = go_on_plainly(small, profile, None, caplog)
    assert str(stats.reason).startswith(words) and not stats.predicted
    assert torch.equal(ran.final, generate(small).final)


def test_guidance_that_goes_within_the_run_ends_the_prediction(caplog: pytest.LogCaptureFixture) -> None:
    small = Small(wan(), VIDEO_CALL, tuple(PROMPTS[:3]))
    small.pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)  # which goes on from a latent alone
    profile = fitted(small, "guided")
    facts = replace(profile.provenance, calls=(), step_weights=())  # an older one, which checks its first step only
    profile = directed(replace(profile, provenance=facts))

    def switch_off(pipe: Any, step: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        if step == 4:
            pipe._guidance_scale = 1.0
        return {}

    words = WORDS.format(6)
    assert refused(small, profile, switch_off).startswith(words)
    ran, stats = go_on_plainly(small, profile, switch_off, caplog)
    assert str(stats.reason).startswith(words) and ran.computed_from() == 6


# -- in a profile ------------------------------------------------------------------------------------------


def test_another_grid_takes_the_direction_along() -> None:
    """Each new step has the row of one old step, and the oldest direction that is held the weight of older ones."""
    profile = directed(replace(profile_maker.make(), **_ten_steps()))
    found = retargeted(profile, straight(15))
    assert found.predictor.sources == SOURCES
    old = profile.predictor.a
    for i in found.schedule.predicted_steps:
        held = found.schedule.depth(i)
        folded = old.clone()
        if held < 3:
            folded[:, :, :, held - 1] = old[:, :, :, held - 1 :].sum(3)
            folded[:, :, :, held:] = 0
        assert any(torch.equal(found.predictor.a[i], folded[j]) for j in profile.schedule.predicted_steps), i
        assert found.predictor.a[i, 0, 1].any()
    assert torch.equal(retargeted(profile, straight(T)).predictor.a, old)


def _ten_steps() -> dict[str, Any]:
    schedule = cached.Schedule.from_mask(MASK)
    return {
        "schedule": schedule,
        "predictor": Predictor.plain_reuse(schedule, ("guided",)),
        "base_sigmas": straight(T),
        "sigmas": straight(T),
        "provenance": profile_maker.facts(num_inference_steps=T),
    }
