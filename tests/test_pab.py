"""Pyramid Attention Broadcast, by diffusers and by us."""

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import PyramidAttentionBroadcastConfig

from branches import batched_wan, one_cache_per_branch
from dummy_pipeline import mixture_pipeline
from ertacache.baselines.implementation import against_diffusers, branches, by_diffusers, timestep_of
from ertacache.baselines.pab import PAB
from ertacache.errors import CacheConflict, InvalidArgument, UnsupportedPipeline
from ertacache.evaluation.execute import execute
from method_contract import FIRST, check_contract
from pipelines import CALL, CFG_CALL, VIDEO_CALL, cogvideox, flux, wan

# Timesteps of ten steps, rounded down:
# FLUX 1000 966 926 880 825 759 677 575 441 259, Wan 999 964 923 875 818 750 667 563 429 251, CogVideoX 999 899 ... 99.
ONE_CALL = {**VIDEO_CALL, "guidance_scale": 1.0}


def flux_base():
    return flux(False)


def diffusers_config(pipe, **settings):
    return PyramidAttentionBroadcastConfig(
        **{"spatial_attention_block_skip_range": 2, **settings}, current_timestep_callback=lambda: pipe.current_timestep
    )


def by_hand(pipe, call, config):
    pipe.transformer.enable_cache(config)
    return execute(pipe, None, FIRST, call)[0]


@pytest.mark.parametrize("implementation", ["diffusers", "ours"])
@pytest.mark.parametrize(
    ("build", "call", "per_step"),
    [(flux, CALL, [6, 6, 6, 6, 6, 0, 6, 0, 6, 0]), (cogvideox, VIDEO_CALL, [3, 3, 3, 0, 3, 0, 3, 0, 3, 3])],
    ids=["flux", "cogvideox"],
)
def test_it_skips_every_other_attention_inside_the_window(build, call, per_step, implementation):
    executed = check_contract(build, PAB(implementation=implementation), call)
    assert executed.attention_calls == per_step
    assert executed.block_calls == [per_step[0]] * 10
    assert executed.denoiser_calls == [1] * 10


def test_two_calls_per_step_keep_their_states_apart():
    executed = check_contract(flux_base, PAB(), CFG_CALL)
    assert executed.attention_calls == [12, 12, 12, 12, 12, 0, 12, 0, 12, 0]
    assert executed.denoiser_calls == [2] * 10
    executed = check_contract(wan, PAB(), VIDEO_CALL)
    assert executed.attention_calls == [12, 12, 12, 12, 12, 6, 12, 6, 12, 6]


def test_cross_attention_has_a_range_of_its_own():
    executed = check_contract(wan, PAB(self_range=2, cross_range=3), VIDEO_CALL)
    # Of 3 blocks and 2 calls: self-attention rests in steps 5, 7 and 9, cross-attention in 5, 7 and 8.
    assert executed.attention_calls == [12, 12, 12, 12, 12, 0, 12, 0, 6, 6]


@pytest.mark.parametrize("implementation", ["auto", "diffusers", "ours"])
@pytest.mark.parametrize(
    ("build", "call", "settings"),
    [
        (flux, CALL, {"self_range": 3}),
        (cogvideox, VIDEO_CALL, {"self_range": 3, "window": (100, 850)}),
        (wan, ONE_CALL, {"self_range": 2, "cross_range": 4, "window": (100, 850)}),
    ],
    ids=["flux", "cogvideox", "wan"],
)
def test_with_one_call_per_step_both_are_what_diffusers_makes_by_hand(build, call, settings, implementation):
    pipe, window = build(), settings.get("window", (100, 800))
    config = diffusers_config(
        pipe,
        spatial_attention_block_skip_range=settings["self_range"],
        cross_attention_block_skip_range=settings.get("cross_range"),
        spatial_attention_timestep_skip_range=window,
        cross_attention_timestep_skip_range=window,
    )
    expected = by_hand(pipe, call, config)
    plain = execute(build(), None, FIRST, call)[0]
    found = execute(build(), PAB(**settings, implementation=implementation), FIRST, call)[0]
    assert torch.equal(found, expected)
    assert not torch.equal(found, plain)


@pytest.mark.parametrize(("build", "call"), [(flux_base, CFG_CALL), (wan, VIDEO_CALL)], ids=["flux", "wan"])
def test_with_two_calls_each_branch_is_what_a_denoiser_of_its_own_makes(build, call):
    pipe = build()
    expected = execute(one_cache_per_branch(pipe, lambda: diffusers_config(pipe)), None, FIRST, call)[0]
    assert torch.equal(execute(build(), PAB(), FIRST, call)[0], expected)
    mixing = build()
    assert not torch.equal(by_hand(mixing, call, diffusers_config(mixing)), expected)


def test_wan_is_what_diffusers_makes_of_both_branches_in_one_batch():
    def config(timestep):
        return PyramidAttentionBroadcastConfig(spatial_attention_block_skip_range=2, current_timestep_callback=timestep)

    expected = batched_wan(wan(), FIRST, VIDEO_CALL, config)
    plain = batched_wan(wan(), FIRST, VIDEO_CALL, lambda timestep: None)
    found = execute(wan(), PAB(), FIRST, VIDEO_CALL, decode=False)[0]
    assert (found - expected).abs().max() < 1e-5
    assert (found - plain).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("build", "call", "expected"),
    [
        (flux, CALL, "one"),
        (flux_base, CFG_CALL, "calls"),
        (flux_base, {**CFG_CALL, "negative_prompt": None}, "one"),
        (flux_base, {**CFG_CALL, "true_cfg_scale": 1.0}, "one"),
        (flux_base, {**CALL, "true_cfg_scale": 2.0, "negative_prompt_embeds": 0}, "calls"),
        (wan, VIDEO_CALL, "calls"),
        (wan, {}, "calls"),
        (wan, ONE_CALL, "one"),
        (cogvideox, VIDEO_CALL, "batch"),
        (cogvideox, ONE_CALL, "one"),
        (mixture_pipeline, {}, "calls"),
    ],
)
def test_how_the_branches_come_is_read_from_the_call(build, call, expected):
    pipe = build()
    assert branches(pipe, call) == expected
    if build is not mixture_pipeline:
        assert by_diffusers("auto", pipe, call) == (expected != "calls")


def test_a_pipeline_without_the_argument_for_guidance_has_one_branch():
    class Unguided:
        transformer = flux().transformer
        scheduler = None

        def __call__(self, prompt):
            pass

    assert branches(Unguided(), {}) == "one"
    assert against_diffusers(Unguided(), {}) == "Unguided has no current_timestep"


def test_diffusers_is_asked_for_no_reuse_in_the_first_step_and_outside_of_a_run():
    pipe, seen = flux(), []
    timestep = timestep_of(pipe)
    assert timestep() == float("inf")
    pipe("a", **CALL, output_type="latent", callback_on_step_end=lambda *_: seen.append(timestep()) or {})
    assert seen[0] == float("inf")
    assert seen[1:] == pipe.scheduler.timesteps[1:].tolist()


@pytest.mark.parametrize(
    ("method", "build", "call", "reason"),
    [
        (PAB(implementation="diffusers"), wan, VIDEO_CALL, "two denoiser calls, and diffusers keeps one state"),
        (PAB(implementation="diffusers"), flux_base, CFG_CALL, "two denoiser calls, and diffusers keeps one state"),
        (PAB(cross_range=4), flux, CALL, "FluxTransformer2DModel has no cross-attention; leave cross_range at None"),
        (PAB(self_range=1), wan, VIDEO_CALL, "ranges of 1 reuse nothing"),
        (PAB(), mixture_pipeline, {}, "the attention modules of NamedMixtureModule are not known"),
    ],
)
def test_it_refuses_what_it_cannot_do(method, build, call, reason):
    pipe = build()
    assert reason in method.refusal(pipe, call)
    with pytest.raises(UnsupportedPipeline, match=f"pab: .*{reason}"):
        method.applied(pipe, call)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"self_range": 0}, "a range is 0; choose a whole number of steps"),
        ({"self_range": 2.5}, "a range is 2.5; choose a whole number of steps"),
        ({"cross_range": -1}, "a range is -1; choose a whole number of steps"),
        ({"window": (800, 100)}, r"a window is \(800, 100\); choose timesteps with low < high"),
        ({"window": (float("nan"), 1)}, r"a window is \(nan, 1\)"),
        ({"implementation": "theirs"}, "implementation is 'theirs'; choose 'auto', 'diffusers' or 'ours'"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(InvalidArgument, match=message):
        PAB(**settings)


def test_the_knob_is_the_range():
    assert PAB().at(4.0) == PAB(self_range=4)
    with pytest.raises(InvalidArgument, match="pab: self_range is 13; choose 2 to 12"):
        PAB().at(13)


@pytest.mark.parametrize("implementation", ["diffusers", "ours"])
def test_a_second_cache_is_refused(implementation):
    pipe = flux()
    pipe.transformer.enable_cache(diffusers_config(pipe))
    with (
        pytest.raises(CacheConflict, match=r"cache is (already )?enabled on"),
        PAB(implementation=implementation).applied(pipe, CALL),
    ):
        pass


@pytest.mark.parametrize(
    "prepare",
    [lambda part: add_hook_to_module(part, ModelHook()), lambda part: part.compile(backend="eager")],
    ids=["offloaded", "compiled"],
)
def test_attention_that_is_offloaded_or_compiled_is_reused_as_well(prepare):
    pipe = wan()
    for block in pipe.transformer.blocks:
        prepare(block.attn1)
    expected = execute(wan(), PAB(), FIRST, VIDEO_CALL)[0]
    found, executed = execute(pipe, PAB(), FIRST, VIDEO_CALL)
    assert torch.equal(found, expected)
    assert executed.attention_calls == [12, 12, 12, 12, 12, 6, 12, 6, 12, 6]


def test_nothing_is_kept_after_a_run():
    pipe = wan()
    with PAB().applied(pipe, VIDEO_CALL) as attachment:
        execute(pipe, None, FIRST, VIDEO_CALL)
        assert attachment.controller._kept == {}


@pytest.mark.parametrize(("build", "call"), [(flux, CALL), (wan, VIDEO_CALL), (cogvideox, VIDEO_CALL)])
def test_published_settings_run(build, call):
    pipe = build()
    settings = PAB.published()[type(pipe.transformer).__name__]
    for method in settings.values():
        executed = execute(pipe, method, FIRST, call)[1]
        assert sum(executed.attention_calls) < sum(execute(pipe, None, FIRST, call)[1].attention_calls)
    assert settings["diffusers"].window == (100, 800)


def test_the_authors_window_for_cogvideox():
    published = PAB.published()["CogVideoXTransformer3DModel"]["videosys"]
    assert (published.self_range, published.cross_range, published.window) == (2, None, (100, 850))
