"""SeaCache of diffusers as a compared method."""

import pytest
import torch
from diffusers import SeaCacheConfig, WanTransformer3DModel, WanVideoToVideoPipeline

from ertacache.baselines.sea_cache import SeaCache
from ertacache.errors import InvalidArgument
from ertacache.evaluation.execute import execute
from method_contract import FIRST, check_contract
from pipelines import CALL, VIDEO_CALL, cogvideox, flux, wan


@pytest.mark.parametrize(
    ("method", "blocks"),
    [
        (SeaCache(0.0), [6] * 10),
        # A threshold that no sum reaches leaves the ends, and what a limit in a row asks for.
        (SeaCache(1000.0), [6, 0, 0, 0, 0, 0, 0, 0, 0, 6]),
        (SeaCache(1000.0, max_consecutive=2), [6, 0, 0, 6, 0, 0, 6, 0, 0, 6]),
        (SeaCache(1000.0, order=1, max_consecutive=3), [6, 0, 0, 0, 6, 0, 0, 0, 6, 6]),
    ],
)
def test_wan_reuses_both_branches(method, blocks):
    executed = check_contract(wan, method, VIDEO_CALL)
    assert executed.block_calls == blocks
    assert executed.denoiser_calls == [2] * 10
    assert executed.attention_calls == [2 * count for count in blocks]


def test_the_threshold_is_of_the_sum():
    cost = [sum(execute(wan(), SeaCache(value), FIRST, VIDEO_CALL)[1].block_calls) for value in (0.25, 0.5, 1.0, 2.0)]
    assert cost == sorted(cost, reverse=True)
    assert 60 > cost[0] > cost[-1] > 12


def test_it_is_what_diffusers_makes_of_the_same_config():
    ours = execute(wan(), SeaCache(0.5, order=1, max_consecutive=2), FIRST, VIDEO_CALL)[0]
    pipe = wan()
    pipe.transformer.enable_cache(SeaCacheConfig(threshold=0.5))  # order 1 and two in a row are diffusers' defaults
    assert torch.equal(ours, execute(pipe, None, FIRST, VIDEO_CALL)[0])


def test_published_settings_run():
    settings = SeaCache.published()["WanTransformer3DModel"]
    assert settings == {"slow": SeaCache(0.2, 0, 0), "fast": SeaCache(0.35, 0, 0)}
    for method in settings.values():
        assert 0 in execute(wan(), method, FIRST, VIDEO_CALL)[1].block_calls


@pytest.mark.parametrize(
    ("build", "call", "denoiser"),
    [(flux, CALL, "FluxTransformer2DModel"), (cogvideox, VIDEO_CALL, "CogVideoXTransformer3DModel")],
)
def test_families_without_an_adapter_are_refused_because_nothing_would_be_reused(build, call, denoiser):
    pipe = build()
    reason = f"diffusers has no SeaCache adapter for {denoiser}; it would compute every step"
    assert SeaCache().refusal(pipe, call) == reason
    executed = execute(pipe, SeaCache(1000.0), FIRST, call)[1]
    assert executed.block_calls == execute(build(), None, FIRST, call)[1].block_calls


def test_other_refusals():
    pipe = wan()
    assert SeaCache().refusal(pipe, {**VIDEO_CALL, "num_inference_steps": 2}) == (
        "all 2 steps are among those that are always computed"
    )
    assert SeaCache().refusal(pipe, {**VIDEO_CALL, "num_inference_steps": 3}) is None
    parts = {name: getattr(pipe, name) for name in ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")}
    other = WanVideoToVideoPipeline(**parts)
    assert SeaCache().refusal(other, VIDEO_CALL) == (
        "WanVideoToVideoPipeline does not tell the cache its step and sigma; it would compute every step"
    )
    pipe.transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=1, attention_head_dim=12, in_channels=8, out_channels=4, text_dim=8,
        freq_dim=8, ffn_dim=8, num_layers=1,
    )  # fmt: skip
    assert SeaCache().refusal(pipe, VIDEO_CALL) == (
        "diffusers' SeaCache adapter for Wan needs as many input as output channels, not 8 and 4; it would compute "
        "every step"
    )


def test_knob():
    assert SeaCache().at(0.4) == SeaCache(0.4)
    with pytest.raises(InvalidArgument, match=r"seacache: threshold is 2\.5; choose 0 to 2"):
        SeaCache().at(2.5)
