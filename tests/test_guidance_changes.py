"""Guidance that is another one than in the calibration, or changes within the run: what is computed from when on."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.callbacks import SDCFGCutoffCallback, SDXLCFGCutoffCallback

import cached
import ertacache.runtime.apply as ertacache
import small_images as images
from cached import MU
from ertacache.errors import ProfileMismatch
from ertacache.profile.profile import Profile, Site
from pipelines import CALL, PROMPTS, flux
from rest_computed import MASK, PREDICTED, Callback, T, fitted, generate, go_on_plainly, refused, reused, video
from supported import Small

THREE = {"prompt": PROMPTS[:3], "negative_prompt": [""] * 3}
FITTED: tuple[Site, ...] = ("output", "guided")
W = 5.0


def to(weight: float, after: int) -> Callback:
    """Another weight from the step after that one on."""

    def callback(pipe: Any, step: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        if step == after:
            pipe._guidance_scale = weight
        return {}

    return callback


@pytest.fixture(scope="module")
def small() -> Small:
    return video()


@pytest.fixture(scope="module", params=FITTED)
def profile(small: Small, request: pytest.FixtureRequest) -> Profile:
    return fitted(small, request.param)


@pytest.mark.parametrize(
    ("weight", "after", "start"), [(2.0, 0, 0), (12.0, 1, 3), (1.0, 2, 3), (2.0, 3, 6), (7.0, 7, 9)]
)
def test_a_weight_that_changes_ends_the_prediction_at_the_next_computed_step(
    small: Small, profile: Profile, weight: float, after: int, start: int, caplog: pytest.LogCaptureFixture
) -> None:
    ran, stats = go_on_plainly(small, profile, to(weight, after), caplog)
    assert ran.computed_from() == start
    shown = max(start, after + 1)
    words = f"guidance weight: at step {shown} the profile was calibrated at 5, this call runs at {weight:g}; use that"
    assert str(stats.reason).startswith(words)
    predicted = sum(i < start for i in PREDICTED)
    assert (stats.computed, stats.predicted) == (
        {"cond_uncond": T - predicted}, {"cond_uncond": predicted} if predicted else {}
    )  # fmt: skip
    assert refused(small, profile, to(weight, after)).startswith(words)


def test_a_weight_within_a_hundredth_is_the_same(small: Small, profile: Profile, caplog: Any) -> None:
    ran, stats = go_on_plainly(small, profile, to(1.008 * W, 1), caplog)
    assert (ran.computed_from(), stats.reason) == (9, None)


def test_reuse_is_right_under_any_guidance(small: Small, caplog: pytest.LogCaptureFixture) -> None:
    wanted = reused(small)
    for call in (
        {"change": to(1.0, 3)},
        {"change": None, "use_dynamic_cfg": True},
        {"change": None, "guidance_scale": 1.0},
    ):
        ran, stats = go_on_plainly(small, wanted, caplog=caplog, **call)
        assert (ran.computed_from(), stats.reason) == (9, None)


def test_dynamic_guidance_belongs_to_its_top_weight(small: Small, caplog: pytest.LogCaptureFixture) -> None:
    wanted = fitted(small, "guided", use_dynamic_cfg=True)
    assert len(set(wanted.provenance.step_weights)) == T
    ran, stats = go_on_plainly(small, wanted, None, caplog, use_dynamic_cfg=True)
    assert (ran.computed_from(), stats.reason) == (9, None)
    for call in ({"use_dynamic_cfg": True, "guidance_scale": 2 * W}, {}):
        ran, stats = go_on_plainly(small, wanted, None, caplog, **call)
        assert ran.calls == [1] * T
        assert str(stats.reason).startswith("guidance weight: at step 0")


def test_one_branch_and_two_in_one_call(small: Small, profile: Profile, caplog: pytest.LogCaptureFixture) -> None:
    words = "guidance branches: at step 0 the profile has {} in the batch of call 'cond_uncond', this call {};"
    alone = fitted(small, profile.site, guidance_scale=1.0)
    for wanted, call, there, here in ((profile, {"guidance_scale": 1.0}, 2, 1), (alone, {}, 1, 2)):
        ran, stats = go_on_plainly(small, wanted, None, caplog, **call)
        assert ran.calls == [1] * T
        assert str(stats.reason).startswith(words.format(there, here))
        assert refused(small, wanted, None, **call).startswith(words.format(there, here))
    assert go_on_plainly(small, alone, None, caplog, guidance_scale=1.0)[1].reason is None


@pytest.mark.parametrize("count", [{"num_videos_per_prompt": 2}, THREE])
def test_a_batch_of_several_has_the_same_guidance(
    small: Small, profile: Profile, count: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    ran, stats = go_on_plainly(small, profile, None, caplog, **count)
    assert (ran.computed_from(), stats.reason) == (9, None)
    ran, stats = go_on_plainly(small, profile, to(2.0, 3), caplog, **count)
    assert ran.computed_from() == 6 and str(stats.reason).startswith("guidance weight: at step 6")


def test_an_older_profile_checks_its_first_step_only(small: Small, profile: Profile, caplog: Any) -> None:
    facts = replace(profile.provenance, calls=(), step_weights=(), step_arguments={})
    older = replace(profile, provenance=facts)
    for change in (None, to(2.0, 3)):
        ran, stats = go_on_plainly(small, older, change, caplog)
        assert (ran.computed_from(), stats.reason) == (9, None)
    assert refused(small, older, None, guidance_scale=2.0).startswith(
        "guidance weight: the profile was calibrated at 5"
    )


@pytest.mark.parametrize(
    ("make", "kind"),
    [(images.stable_diffusion, SDCFGCutoffCallback), (images.stable_diffusion_xl, SDXLCFGCutoffCallback)],
    ids=["sd", "sdxl"],
)
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' Euler solver
def test_guidance_that_a_callback_cuts_off(make: Callable[[], Small], kind: Any, caplog: Any) -> None:
    cut = make()
    off = kind(cutoff_step_ratio=None, cutoff_step_index=3)
    call = {"tensors": tuple(off.tensor_inputs)}
    for site in FITTED:
        wanted = fitted(cut, site)
        ran, stats = go_on_plainly(cut, wanted, off.callback_fn, caplog, **call, num_inference_steps=T)
        words = "guidance branches: at step 4 the profile has 2 in the batch of call 'call0', this call 1;"
        assert ran.computed_from() == 3 and str(stats.reason).startswith(words)
        assert refused(cut, wanted, off.callback_fn, **call, num_inference_steps=T).startswith(words)
    with ertacache.apply(cut.pipe, reused(cut)) as stats:  # the first step of one branch has nothing to go on from
        assert generate(cut, off.callback_fn, **call, num_inference_steps=T).calls == [1, 1, 0, 1, 1, 0, 1, 0, 0, 1]
    assert stats.reason is None


@pytest.mark.parametrize(
    ("make", "name", "there", "last", "words"),
    [
        (
            images.lumina2,
            "cfg_trunc_ratio",
            0.45,
            5,
            "call names: at step 4 the profile has",
        ),
        (
            images.z_image,
            "cfg_truncation",
            0.2,
            5,
            "guidance branches: at step 5 the profile has 2",
        ),
    ],
    ids=["lumina", "z-image"],
)
def test_guidance_that_ends_early(
    make: Callable[[], Small], name: str, there: float, last: int, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Where it shows in a predicted step, of which the pipeline holds a prediction, the next one is the first."""
    cut = make()
    whole, ends = {name: 1.0, "num_inference_steps": T}, {name: there, "num_inference_steps": T}
    for site in FITTED:
        wanted = fitted(cut, site, **whole)
        ran, stats = go_on_plainly(cut, wanted, None, caplog, **ends)
        assert ran.computed_from() == last and str(stats.reason).startswith(words)
        assert refused(cut, wanted, None, **ends).startswith(words)
        own = fitted(cut, site, **ends)
        assert predicted_calls(cut, own, **ends) > 0
        assert refused(cut, own, None, **whole).split(":")[0] in ("call names", "guidance branches")


def predicted_calls(small: Small, profile: Profile, **call: Any) -> int:
    """Predicted calls of a run as in the calibration."""
    with ertacache.apply(small.pipe, profile) as stats:
        generate(small, **call)
    return sum(stats.predicted.values())


def test_skip_layer_guidance_that_starts_later(caplog: pytest.LogCaptureFixture) -> None:
    """A third branch in the middle of the run: a call that the first step does not make."""
    skip = images.stable_diffusion_3()
    plain = {"num_inference_steps": T}
    late = {
        "skip_guidance_layers": [0], "skip_layer_guidance_scale": 2.8, "skip_layer_guidance_start": 0.25,
        "skip_layer_guidance_stop": 0.75, **plain,
    }  # fmt: skip
    for site in FITTED:
        without, within = fitted(skip, site, **plain), fitted(skip, site, **late)
        assert within.provenance.calls == ((0, {"call0": 2}), (3, {"call0": 2, "call1": 1}), (8, {"call0": 2}))
        assert predicted_calls(skip, without, **plain) == predicted_calls(skip, without, **plain) == len(PREDICTED)
        assert predicted_calls(skip, within, **late) >= len(PREDICTED)
        for wanted, call, there, here in (
            (without, late, ["call0"], ["call0", "call1"]),
            (within, plain, ["call0", "call1"], ["call0"]),
        ):
            ran, stats = go_on_plainly(skip, wanted, None, caplog, **call)
            words = f"call names: at step 3 the profile has {there}, this call made {here};"
            assert ran.computed_from() == 3 and str(stats.reason).startswith(words)
            assert refused(skip, wanted, None, **call).startswith(words)
    assert predicted_calls(skip, reused(skip, **plain), **late) == len(PREDICTED)


@torch.no_grad()
def loop_by_hand(pipe: Any, weights: list[float]) -> list[int]:
    """Calls of the transformer in each step, under an embedded guidance weight for each."""
    x, ids = pipe.prepare_latents(1, 4, 64, 64, torch.float32, "cpu", torch.Generator().manual_seed(0))
    embeds, pooled, text_ids = pipe.encode_prompt(PROMPTS[0], None, max_sequence_length=CALL["max_sequence_length"])
    pipe.scheduler.set_timesteps(sigmas=[1 - i / T for i in range(T)], mu=MU)
    calls: list[int] = []
    handle = pipe.transformer.register_forward_hook(lambda *_: calls.append(len(totals)))
    totals: list[int] = []
    for t, weight in zip(pipe.scheduler.timesteps, weights, strict=True):
        v = pipe.transformer(
            hidden_states=x, timestep=t.expand(1) / 1000, guidance=torch.tensor([weight]), pooled_projections=pooled,
            encoder_hidden_states=embeds, txt_ids=text_ids, img_ids=ids,
        ).sample  # fmt: skip
        x = pipe.scheduler.step(v, t, x, return_dict=False)[0]
        totals.append(1)
    handle.remove()
    return calls


def test_embedded_guidance_that_changes_within_the_run(caplog: pytest.LogCaptureFixture) -> None:
    pipe = flux()
    wanted = cached.fitted(pipe, "output", MASK)
    weights = [4.0] * 5 + [2.0] * 5
    words = "embedded guidance: the profile was calibrated at 4, this call runs at 2; use that"
    with ertacache.apply(pipe, wanted, on_mismatch="compute") as stats:
        assert loop_by_hand(pipe, [4.0] * T) == [i for i in range(T) if i not in PREDICTED]
        assert stats.reason is None
        assert loop_by_hand(pipe, weights) == [0, 1, 3, 6, 7, 8, 9]
        assert stats.reason is not None and stats.reason.startswith(words) and len(caplog.records) == 1
    with ertacache.apply(pipe, wanted), pytest.raises(ProfileMismatch, match=words):
        loop_by_hand(pipe, weights)
    with ertacache.apply(pipe, cached.profile(pipe, "output", MASK)) as stats:  # reuse
        assert loop_by_hand(pipe, weights) == [i for i in range(T) if i not in PREDICTED]
