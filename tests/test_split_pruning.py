"""Pruning of FLUX and Wan transformers: exact where nothing is removed, and the least significant goes first."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel, FluxTransformer2DModel, WanTransformer3DModel
from torch import Tensor, nn

from ertacache.errors import InvalidArgument, UnsupportedPipeline
from ertacache.split.pruning import narrow, prune, ratios_by_rank
from ertacache.split.significance import (
    Significance,
    output_shift,
    record_calls,
    significance,
    unit_significance,
)
from pipelines import CALL, PROMPTS, flux
from small_wan_videos import image_to_video

FLUX: dict[str, Any] = {
    "patch_size": 1, "in_channels": 8, "num_layers": 2, "num_single_layers": 3, "attention_head_dim": 8,
    "num_attention_heads": 4, "joint_attention_dim": 12, "pooled_projection_dim": 6, "axes_dims_rope": (2, 2, 4),
}  # fmt: skip
WAN: dict[str, Any] = {
    "patch_size": (1, 2, 2), "num_attention_heads": 4, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4,
    "text_dim": 10, "freq_dim": 16, "ffn_dim": 20, "num_layers": 3, "rope_max_seq_len": 16,
}  # fmt: skip


def _flux(guidance: bool = True, **more: Any) -> tuple[Any, list[dict[str, Any]]]:
    torch.manual_seed(0)
    config: dict[str, Any] = {**FLUX, "guidance_embeds": guidance, **more}
    model = FluxTransformer2DModel(**config).eval()
    call: dict[str, Any] = {
        "hidden_states": torch.randn(2, 9, 8),
        "encoder_hidden_states": torch.randn(2, 5, 12),
        "pooled_projections": torch.randn(2, 6),
        "timestep": torch.tensor([0.3, 0.3]),
        "img_ids": torch.randint(0, 3, (9, 3)).float(),
        "txt_ids": torch.zeros(5, 3),
    }
    return model, [call | {"guidance": torch.tensor([4.0, 4.0])} if guidance else call]


def _wan(**more: Any) -> tuple[Any, list[dict[str, Any]]]:
    torch.manual_seed(0)
    model = WanTransformer3DModel(**{**WAN, **more}).eval()
    call: dict[str, Any] = {
        "hidden_states": torch.randn(2, 4, 2, 4, 4),
        "timestep": torch.tensor([300, 300]),
        "encoder_hidden_states": torch.randn(2, 5, 10),
    }
    return model, [call, call | {"timestep": torch.tensor([700, 700])}]


def _plain() -> tuple[Any, list[dict[str, Any]]]:
    return _flux(guidance=False)


def _without_norm() -> tuple[Any, list[dict[str, Any]]]:
    return _wan(cross_attn_norm=False)


Build = Callable[[], tuple[Any, list[dict[str, Any]]]]
ALL: list[Build] = [_flux, _plain, _wan, _without_norm]


@torch.no_grad()
def _outputs(model: Any, calls: list[dict[str, Any]]) -> list[Tensor]:
    return [model(**call, return_dict=False)[0] for call in calls]


def _same(one: Any, other: Any, calls: list[dict[str, Any]]) -> bool:
    return all(map(torch.equal, _outputs(one, calls), _outputs(other, calls)))


@pytest.mark.parametrize("build", ALL)
def test_a_model_of_which_nothing_is_removed_is_the_model(build: Build):
    model, calls = build()
    found = significance(model, calls)
    whole: Any = prune(model, found)
    assert type(whole) is type(model)
    assert dict(whole.config) == dict(model.config)
    assert not whole.training
    assert _same(whole, model, calls)
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(whole.parameters(), model.parameters(), strict=True))
    assert _same(narrow(model, found, dict.fromkeys(unit_significance(model, calls, found), 1.0)), model, calls)


@pytest.mark.parametrize(
    ("build", "blocks", "config"),
    [
        (_flux, (1, 2), {**FLUX, "num_attention_heads": 2, "num_layers": 1, "num_single_layers": 2}),
        (_plain, (0, 3), {**FLUX, "num_attention_heads": 2, "num_layers": 0}),
        (_wan, (2,), {**WAN, "num_attention_heads": 2, "ffn_dim": 10, "num_layers": 2}),
    ],
)
def test_a_smaller_model_has_the_configuration_and_the_weights_of_its_size(
    tmp_path: Path, build: Build, blocks: tuple[int, ...], config: dict[str, Any]
):
    model, calls = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small: Any = prune(model, significance(model, calls), 0.5, blocks)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    fresh = type(model)(**{**dict(model.config), **config})
    assert dict(small.config) == dict(fresh.config)
    shapes = {name: value.shape for name, value in fresh.state_dict().items()}
    assert {name: value.shape for name, value in small.state_dict().items()} == shapes
    small.save_pretrained(tmp_path)
    assert _same(type(model).from_pretrained(tmp_path), small, calls)


@pytest.mark.parametrize("build", ALL)
def test_the_significance_of_blocks_and_heads_is_that_of_models_without_them(build: Build):
    model, calls = build()
    found, whole = significance(model, calls), _outputs(model, calls)
    for name, shifts in found.blocks.items():
        for n, shift in enumerate(shifts):
            without = copy.deepcopy(model)
            del getattr(without, name)[n]
            assert shift == pytest.approx(output_shift(whole, _outputs(without, calls)), rel=1e-6)
    width = model.config.attention_head_dim
    for name, shifts in found.heads.items():
        assert len(shifts) == 4
        for n, shift in enumerate(shifts):
            without = copy.deepcopy(model)
            with torch.no_grad():
                for weight in _readers(without, name):
                    weight[:, n * width : (n + 1) * width] = 0
            assert shift == pytest.approx(output_shift(whole, _outputs(without, calls)), rel=1e-6)


def _readers(model: Any, attention: str) -> list[Tensor]:
    """What reads the heads of an attention module."""
    if attention.startswith("single"):
        return [model.get_submodule(attention.removesuffix(".attn")).proj_out.weight]
    module = model.get_submodule(attention)
    return [module.to_out[0].weight, *([module.to_add_out.weight] if hasattr(module, "to_add_out") else [])]


@pytest.mark.parametrize(
    ("build", "space", "layers"),
    [
        (_flux, "transformer_blocks.1.ff", ["transformer_blocks.1.ff.net.2"]),
        (_flux, "time_text_embed.text_embedder", ["time_text_embed.text_embedder.linear_2"]),
        (_wan, "blocks.0.ffn", ["blocks.0.ffn.net.2"]),
        (_wan, "text", [f"blocks.{n}.attn2.to_{part}" for n in range(3) for part in "kv"]),
    ],
)
def test_the_significance_of_a_channel_is_the_shift_of_what_reads_it(build: Build, space: str, layers: list[str]):
    model, calls = build()
    inputs: dict[str, list[Tensor]] = {name: [] for name in layers}
    for name in layers:
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: inputs[name].append(args[0]))
    _outputs(model, calls)
    found = significance(model, calls).channels[space]
    power = torch.zeros(len(found))
    for name in layers:
        rows = torch.cat([part.flatten(0, -2) for part in inputs[name][: len(calls)]])
        for n in range(len(found)):
            without = rows.clone()
            without[:, n] = 0
            weight = model.get_submodule(name).weight
            power[n] += ((rows - without) @ weight.T).square().sum(1).mean()
    assert torch.allclose(found, power.sqrt(), rtol=1e-4)


def test_the_least_significant_go():
    model, _ = _flux()
    scores = {name: torch.tensor([0.3, 0.1, 0.4, 0.2]) for name in _measured(model).heads}
    found = Significance(
        {"transformer_blocks": torch.tensor([2.0, 1.0]), "single_transformer_blocks": torch.tensor([1.0, 3.0, 2.0])},
        scores,
        {name: torch.arange(len(value)).float() for name, value in _measured(model).channels.items()},
    )
    small: Any = prune(model, found, 0.5, (1, 2))
    heads = torch.cat([torch.arange(0, 8), torch.arange(16, 24)])
    block, kept = model.transformer_blocks[0], small.transformer_blocks[0]
    assert torch.equal(kept.attn.to_q.weight, block.attn.to_q.weight[heads][:, 16:])
    assert torch.equal(kept.attn.to_add_out.weight, block.attn.to_add_out.weight[16:][:, heads])
    assert torch.equal(kept.ff.net[2].weight, block.ff.net[2].weight[16:][:, 64:])
    gates = torch.cat([torch.arange(32 * n + 16, 32 * n + 32) for n in range(6)])
    assert torch.equal(kept.norm1.linear.bias, block.norm1.linear.bias[gates])
    for n, old in enumerate((1, 2)):
        block, kept = model.single_transformer_blocks[old], small.single_transformer_blocks[n]
        columns = torch.cat([heads, torch.arange(32 + 64, 32 + 128)])
        assert torch.equal(kept.proj_out.weight, block.proj_out.weight[16:][:, columns])


def _measured(model: Any) -> Significance:
    return significance(model, _flux()[1])


@pytest.mark.parametrize("build", ALL)
def test_the_paper_s_three_ratios_by_rank(build: Build):
    model, calls = build()
    found = significance(model, calls)
    scores = unit_significance(model, calls, found)
    names = [name for name, _ in model.named_modules() if name in scores]
    assert sorted(names) == sorted(scores)  # attention modules and feed-forward layers by their places
    shares = ratios_by_rank(scores, (2, 3))
    ranked = sorted(scores, key=lambda name: scores[name])
    assert [shares[name] for name in ranked] == [0.25, 0.25, 0.5, *[0.75] * (len(scores) - 3)]
    thin = narrow(model, found, shares)
    for name, share in shares.items():
        module: Any = thin.get_submodule(name)
        if name in found.heads:
            assert module.to_q.out_features == 4 * share * model.config.attention_head_dim
        else:
            first = module if isinstance(module, nn.Linear) else module.net[0].proj
            assert first.weight.shape[0] == share * len(found.channels[name])
    assert [output.shape for output in _outputs(thin, calls)] == [output.shape for output in _outputs(model, calls)]


def test_a_unit_s_significance_is_that_of_the_model_with_half_of_it():
    model, calls = _flux()
    found = significance(model, calls)
    scores, whole = unit_significance(model, calls, found), _outputs(model, calls)
    for unit, score in scores.items():
        half = narrow(model, found, {unit: 0.5})
        assert score == pytest.approx(output_shift(whole, _outputs(half, calls)), rel=1e-4)


def test_the_ranks_of_the_paper_in_proportion():
    shares = ratios_by_rank({f"unit {n}": float(-n) for n in range(28)})
    assert list(shares) == [f"unit {n}" for n in reversed(range(28))]
    assert list(shares.values()) == [0.25] * 19 + [0.5] * 2 + [0.75] * 7


def test_the_shift_is_that_of_means_and_spreads():
    whole, pruned = torch.tensor([[1.0, 2.0], [3.0, 2.0]]), torch.tensor([[4.0, 6.0], [4.0, 6.0]])
    # Means [2, 2] and [4, 6], deviations [1, 0] and [0, 0].
    assert output_shift([whole], [pruned]) == pytest.approx(20**0.5 + 1)
    assert output_shift([whole, whole[:1]], [pruned, pruned[:1]]) == pytest.approx(20**0.5 + 1 + 5)


def test_calls_are_recorded_as_the_denoiser_gets_them():
    pipe = flux()
    call = {**CALL, "num_inference_steps": 5, "prompt": PROMPTS[0], "output_type": "latent"}
    calls = record_calls(pipe, {**call, "generator": torch.Generator().manual_seed(0)}, every=2)
    assert len(calls) == 3
    assert [float(one["timestep"]) for one in calls] == pytest.approx(pipe.scheduler.sigmas[:5:2].tolist())
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(calls[0]["hidden_states"], pipe._pack_latents(noise, 1, 4, 16, 16))
    assert not pipe.transformer._forward_pre_hooks
    assert pipe.transformer(**calls[0]).sample.shape == (1, 64, 16)
    with pytest.raises(InvalidArgument, match=r"every is 0; record each call \(1\) or every 2nd, 3rd, ..."):
        record_calls(pipe, call, every=0)


def test_other_models_are_refused():
    model, calls = _flux()
    found = significance(model, calls)
    other = CogVideoXTransformer3DModel(num_attention_heads=2, attention_head_dim=8, num_layers=1, text_embed_dim=8)
    with pytest.raises(UnsupportedPipeline, match="cannot prune CogVideoXTransformer3DModel; there are FluxTransf"):
        significance(other, calls)
    with pytest.raises(UnsupportedPipeline, match="cannot prune Linear; there are FluxTransformer2DModel, WanTransf"):
        prune(nn.Linear(2, 2), found)
    with pytest.raises(UnsupportedPipeline, match=r"WanTransformer3DModel with image_dim=\d+; only models without it"):
        significance(image_to_video().pipe.transformer, calls)
    model.transformer_blocks[0].attn.fuse_projections()
    with pytest.raises(UnsupportedPipeline, match=r"weight transformer_blocks\.0\.attn\.to_qkv\.weight .* unfuse"):
        significance(model, calls)


def test_sizes_that_are_none_are_refused():
    model, calls = _flux()
    found = significance(model, calls)
    with pytest.raises(InvalidArgument, match=r"no calls to measure on; record some with record_calls\(pipe, call\)"):
        significance(model, [])
    for ratio in (0.0, 0.1, 1.5, float("nan")):
        with pytest.raises(InvalidArgument, match=rf"ratio is {ratio}, of 4 heads; give a share in \(0, 1\] that"):
            prune(model, found, ratio)
    for blocks in ((1,), (3, 1), (1, -1)):
        with pytest.raises(InvalidArgument, match=r"kept of each stack: transformer_blocks has 2, single_tr.* has 3"):
            prune(model, found, blocks=blocks)
    with pytest.raises(InvalidArgument, match=r"no unit 'width'; there are transformer_blocks\.0\.attn, "):
        narrow(model, found, {"width": 0.5})
    with pytest.raises(InvalidArgument, match=r"ratio is 2\.0, of 4 transformer_blocks\.0\.attn"):
        narrow(model, found, {"transformer_blocks.0.attn": 2.0})
    for bounds in ((2, 1), (-1, 1), (0, 3)):
        with pytest.raises(InvalidArgument, match=r"bounds are .*; two ranks from 0 to 2 units, the smaller one first"):
            ratios_by_rank({"a": 1.0, "b": 2.0}, bounds)
