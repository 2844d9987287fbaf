"""FasterCache, by diffusers and by us."""

import logging
import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import FasterCacheConfig

from branches import batched_wan, one_cache_per_branch
from dummy_pipeline import mixture_pipeline
from ertacache.baselines.cfg_cache import BranchDifference, split_frequencies
from ertacache.baselines.faster_cache import BranchReuse, FasterCache
from ertacache.errors import CacheConflict, InvalidArgument, UnsupportedPipeline
from ertacache.evaluation.execute import execute
from method_contract import FIRST, check_contract
from pipelines import CALL, CFG_CALL, VIDEO_CALL, cogvideox, flux, wan

# Timesteps of ten steps, rounded down:
# FLUX 1000 966 926 880 825 759 677 575 441 259, Wan 999 964 923 875 818 750 667 563 429 251, CogVideoX 999 899 ... 99.
ONE_CALL = {**VIDEO_CALL, "guidance_scale": 1.0}
DIFFUSERS_WARNS = pytest.mark.filterwarnings("ignore:torch.meshgrid")
#: Settings that are all away from their defaults.
OTHER = FasterCache(
    attention_range=3, attention_window=(-1, 900), weight=0.3, uncond_range=3, uncond_window=(-1, 850),
    low_alpha=1.3, low_window=(400, 1000), high_alpha=0.7, high_window=(-1, 700),
)  # fmt: skip


def flux_base():
    return flux(False)


def config_of(method, timestep, **more):
    return FasterCacheConfig(
        spatial_attention_block_skip_range=method.attention_range,
        spatial_attention_timestep_skip_range=method.attention_window,
        unconditional_batch_skip_range=method.uncond_range,
        unconditional_batch_timestep_skip_range=method.uncond_window,
        low_frequency_weight_update_timestep_range=method.low_window,
        high_frequency_weight_update_timestep_range=method.high_window,
        alpha_low_frequency=method.low_alpha,
        alpha_high_frequency=method.high_alpha,
        attention_weight_callback=lambda _: method.weight,
        current_timestep_callback=timestep,
        **more,
    )


def by_hand(pipe, call, config):
    pipe.transformer.enable_cache(config)
    return execute(pipe, None, FIRST, call)[0]


def changed(method, implementation):
    return FasterCache(**{**vars(method), "implementation": implementation})


@pytest.mark.parametrize("implementation", ["diffusers", "ours"])
def test_embedded_guidance_has_the_attention_part(implementation):
    executed = check_contract(flux, FasterCache(implementation=implementation), CALL)
    assert executed.attention_calls == [6, 6, 6, 6, 6, 6, 6, 0, 6, 0]
    assert executed.denoiser_calls == [1] * 10


def test_packed_latents_have_the_attention_part_in_both_branches():
    executed = check_contract(flux_base, FasterCache(), CFG_CALL)
    assert executed.attention_calls == [12, 12, 12, 12, 12, 12, 12, 0, 12, 0]
    assert executed.denoiser_calls == [2] * 10


def test_a_batch_of_both_branches_loses_one_of_them():
    executed = check_contract(cogvideox, FasterCache(), VIDEO_CALL)
    assert executed.elements == [2, 2, 2, 2, 1, 2, 1, 1, 1, 1]
    assert executed.attention_calls == [3, 3, 3, 3, 3, 3, 3, 0, 3, 0]


def test_the_second_of_two_calls_is_left_out():
    executed = check_contract(wan, FasterCache(), VIDEO_CALL)
    assert executed.denoiser_calls == [2, 2, 2, 2, 2, 2, 2, 1, 1, 1]
    # 3 blocks with self- and cross-attention; only self-attention is reused, and only in the one call that is left.
    assert executed.attention_calls == [12, 12, 12, 12, 12, 12, 12, 3, 6, 3]


def test_a_range_of_one_leaves_the_cfg_cache_alone():
    executed = check_contract(wan, FasterCache(attention_range=1), VIDEO_CALL)
    assert executed.attention_calls == [12, 12, 12, 12, 12, 12, 12, 6, 6, 6]


@pytest.mark.parametrize("implementation", ["auto", "diffusers", "ours"])
@pytest.mark.parametrize("method", [FasterCache(), OTHER], ids=["defaults", "other"])
@pytest.mark.parametrize(
    ("build", "call"), [(flux, CALL), (wan, ONE_CALL), (cogvideox, ONE_CALL)], ids=["flux", "wan", "cogvideox"]
)
def test_with_one_branch_both_are_what_diffusers_makes_by_hand(build, call, method, implementation):
    pipe = build()
    config = config_of(method, lambda: pipe.current_timestep, is_guidance_distilled=True)
    found = execute(build(), changed(method, implementation), FIRST, call)[0]
    assert torch.equal(found, by_hand(pipe, call, config))
    assert not torch.equal(found, execute(build(), None, FIRST, call)[0])


@DIFFUSERS_WARNS
@pytest.mark.parametrize("method", [FasterCache(), OTHER], ids=["defaults", "other"])
def test_a_batch_of_both_branches_is_what_diffusers_makes_by_hand(method):
    pipe = cogvideox()
    config = config_of(method, lambda: pipe.current_timestep, tensor_format="BFCHW")
    found = execute(cogvideox(), method, FIRST, VIDEO_CALL)[0]
    assert torch.equal(found, by_hand(pipe, VIDEO_CALL, config))


def test_with_packed_latents_each_branch_is_what_a_denoiser_of_its_own_makes():
    pipe = flux_base()

    def config():
        return config_of(OTHER, lambda: pipe.current_timestep, is_guidance_distilled=True)

    expected = execute(one_cache_per_branch(pipe, config), None, FIRST, CFG_CALL)[0]
    assert torch.equal(execute(flux_base(), OTHER, FIRST, CFG_CALL)[0], expected)
    mixing = flux_base()
    config = config_of(OTHER, lambda: mixing.current_timestep, is_guidance_distilled=True)
    assert not torch.equal(by_hand(mixing, CFG_CALL, config), expected)


@DIFFUSERS_WARNS
@pytest.mark.parametrize("method", [FasterCache(), OTHER], ids=["defaults", "other"])
def test_wan_is_what_diffusers_makes_of_both_branches_in_one_batch(method):
    # Latents of 10 × 12, so that low frequencies are more than the mean.
    call = {**VIDEO_CALL, "height": 80, "width": 96, "num_inference_steps": 16}
    expected = batched_wan(wan(), FIRST, call, lambda timestep: config_of(method, timestep, tensor_format="BCFHW"))
    found, executed = execute(wan(), method, FIRST, call, decode=False)
    assert found.shape[-2:] == (10, 12)
    assert sum(executed.denoiser_calls) < 32
    assert (found - expected).abs().max() < 1e-5
    assert (found - batched_wan(wan(), FIRST, call, lambda timestep: None)).abs().max() > 1e-3


@pytest.mark.parametrize("implementation", ["diffusers", "ours"])
def test_a_window_from_the_start_on_still_computes_the_first_step(implementation):
    method = FasterCache(attention_window=(-1, 1001), implementation=implementation)
    executed = check_contract(flux, method, CALL)
    assert executed.attention_calls == [6, 0] * 5


def test_equal_prompts_make_both_branches_equal_so_that_guidance_changes_nothing():
    prompt = FIRST.texts[0]
    call = {**VIDEO_CALL, "negative_prompt": prompt}
    method = FasterCache(attention_range=1)
    plain = execute(wan(), None, FIRST, {**call, "guidance_scale": 1.0}, decode=False)[0]
    guided, executed = execute(wan(), method, FIRST, call, decode=False)
    assert executed.denoiser_calls[-1] == 1
    assert (guided - plain).abs().max() < 1e-5


def test_it_is_quiet_about_what_diffusers_says_of_its_own_code(caplog):
    pipe = cogvideox()
    with FasterCache().applied(pipe, VIDEO_CALL):
        assert caplog.records == []
    assert logging.getLogger("diffusers.hooks.faster_cache").level == logging.NOTSET


def test_low_and_high_frequencies_add_up():
    x = torch.randn(2, 3, 4, 11, 14, generator=torch.Generator().manual_seed(0))
    low, high = split_frequencies(x)
    assert torch.allclose(low + high, x, atol=1e-6)
    assert torch.allclose((low * high).sum((-1, -2)), torch.zeros(2, 3, 4), atol=1e-4)


@pytest.mark.parametrize(
    ("rows", "columns", "is_low"),
    [
        (0, 0, True),
        (2, 0, True),
        (0, 2, True),
        (1, 1, True),
        (1, 2, False),
        (2, 2, False),
        (3, 0, False),
        (5, 5, False),
    ],
)
def test_low_is_what_lies_within_a_fifth_of_the_shorter_side(rows, columns, is_low):
    height, width = 10, 14
    phase = rows * torch.arange(height)[:, None] / height + columns * torch.arange(width) / width
    wave = torch.cos(2 * math.pi * phase)
    low, high = split_frequencies(wave)
    assert torch.allclose(low if is_low else high, wave, atol=1e-5)
    assert torch.allclose(high if is_low else low, torch.zeros_like(wave), atol=1e-5)


def test_the_uncond_branch_is_rebuilt_exactly_where_its_difference_stays():
    generator = torch.Generator().manual_seed(0)
    cond, uncond, later = (torch.randn(2, 4, 3, 10, 12, generator=generator) for _ in range(3))
    difference = BranchDifference()
    assert difference.rebuild(cond, 1.0, 1.0) is None
    difference.keep(uncond, cond)
    rebuilt = difference.rebuild(later, 1.0, 1.0)
    assert (rebuilt - (later + uncond - cond)).abs().max() < 1e-5
    assert difference.rebuild(later.to(torch.bfloat16), 1.0, 1.0).dtype == torch.bfloat16
    difference.clear()
    assert difference.rebuild(cond, 1.0, 1.0) is None


def test_the_factors_compound_until_both_branches_are_computed_again():
    cond = torch.zeros(1, 1, 10, 10)
    mean = torch.full_like(cond, 3.0)
    checks = ((torch.arange(10)[:, None] + torch.arange(10)) % 2 * 2.0 - 1).expand_as(cond)
    difference = BranchDifference()
    difference.keep(mean + checks, cond)
    assert torch.allclose(difference.rebuild(cond, 1.1, 2.0), 1.1 * mean + 2 * checks, atol=1e-5)
    assert torch.allclose(difference.rebuild(cond, 1.1, 1.0), 1.21 * mean + 2 * checks, atol=1e-5)
    difference.keep(mean + checks, cond)
    assert torch.allclose(difference.rebuild(cond, 1.0, 1.0), mean + checks, atol=1e-5)


def test_the_unconditional_call_may_not_come_first():
    run = SimpleNamespace(step=0, steps_done=0, T=2, scheduler=SimpleNamespace(timesteps=torch.tensor([999, 500])))
    controller = BranchReuse(FasterCache())
    controller.begin(run)
    with pytest.raises(UnsupportedPipeline, match="the unconditional call came before the conditional one"):
        controller.call(run, "uncond", torch.zeros(1, 4, 2, 2, 2), lambda: torch.zeros(1, 4, 2, 2, 2))


@pytest.mark.parametrize(
    ("method", "build", "call", "reason"),
    [
        (FasterCache(implementation="diffusers"), wan, VIDEO_CALL, "two denoiser calls, and diffusers keeps one state"),
        (FasterCache(implementation="ours"), cogvideox, VIDEO_CALL, "its two branches come in one batch"),
        (FasterCache(attention_range=1), flux, CALL, "attention_range 1 reuses nothing where there is no CFG-cache"),
        (FasterCache(attention_range=1), flux_base, CFG_CALL, "attention_range 1 reuses nothing"),
        (FasterCache(attention_range=1), wan, ONE_CALL, "attention_range 1 reuses nothing"),
        (FasterCache(), mixture_pipeline, {}, "the attention modules of NamedMixtureModule are not known"),
    ],
)
def test_it_refuses_what_it_cannot_do(method, build, call, reason):
    pipe = build()
    assert reason in method.refusal(pipe, call)
    with pytest.raises(UnsupportedPipeline, match=f"fastercache: .*{reason}"):
        method.applied(pipe, call)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention_range": 0}, "a range is 0; choose a whole number of steps"),
        ({"uncond_range": 1}, "uncond_range is 1; choose at least 2"),
        ({"uncond_range": 2.5}, "a range is 2.5; choose a whole number of steps"),
        ({"attention_window": (5, 5)}, r"a window is \(5, 5\)"),
        ({"uncond_window": (641, -1)}, r"a window is \(641, -1\)"),
        ({"low_window": (9, 1)}, r"a window is \(9, 1\)"),
        ({"high_window": (9, 2)}, r"a window is \(9, 2\)"),
        ({"implementation": "x"}, "implementation is 'x'"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(InvalidArgument, match=message):
        FasterCache(**settings)


def test_a_second_cache_is_refused():
    pipe = wan()
    pipe.transformer.enable_cache(config_of(OTHER, lambda: 0.0, is_guidance_distilled=True))
    with pytest.raises(CacheConflict, match="cache is enabled on"), FasterCache().applied(pipe, VIDEO_CALL):
        pass


def test_nothing_is_kept_after_a_run():
    pipe = wan()
    with FasterCache().applied(pipe, VIDEO_CALL) as attachment:
        execute(pipe, None, FIRST, VIDEO_CALL)
        kept = attachment.controller
        assert (kept._kept, kept._cond, kept._difference.rebuild(torch.zeros(1), 1.0, 1.0)) == ({}, None, None)


@pytest.mark.parametrize(("build", "call"), [(flux, CALL), (wan, VIDEO_CALL), (cogvideox, VIDEO_CALL)])
def test_published_settings_run(build, call):
    pipe = build()
    everything = execute(pipe, None, FIRST, call)[1]
    for method in FasterCache.published()[type(pipe.transformer).__name__].values():
        executed = execute(pipe, method, FIRST, call)[1]
        assert sum(executed.attention_calls) < sum(everything.attention_calls)


def test_the_authors_settings_for_cogvideox_say_what_their_script_counts_in_steps():
    method = FasterCache.published()["CogVideoXTransformer3DModel"]["authors"]
    timesteps = {counter: 999 - 20 * (counter - 1) for counter in range(1, 51)}

    def counters(window):
        return [counter for counter, timestep in timesteps.items() if window[0] < timestep < window[1]]

    assert counters(method.attention_window) == counters(method.uncond_window) == list(range(18, 51))
    assert counters(method.low_window) == list(range(1, 41))
    assert counters(method.high_window) == list(range(30, 51))
    assert (method.attention_range, method.uncond_range, method.weight) == (3, 5, 0.3)
    assert (method.low_alpha, method.high_alpha) == (1.1, 1.1)
