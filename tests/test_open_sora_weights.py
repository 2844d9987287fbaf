"""Open-Sora 1.2's transformer: names, shapes and files, and what diffusers does with any model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.hooks import apply_group_offloading
from safetensors.torch import load_file, save_file
from torch import Tensor

from ertacache.errors import InvalidArgument
from ertacache.opensora.attention import STDiT3AttnProcessor
from ertacache.opensora.transformer import STDiT3Transformer3DModel
from open_sora_small import arguments, run, transformer

KEYS = Path(__file__).parent / "data/open_sora/stdit3-keys.txt"


@pytest.fixture(scope="module")
def tiny() -> STDiT3Transformer3DModel:
    return transformer()


@pytest.fixture(scope="module")
def full_size() -> STDiT3Transformer3DModel:
    with torch.device("meta"):
        return STDiT3Transformer3DModel()


def test_names_and_shapes_are_the_published_ones(full_size: STDiT3Transformer3DModel):
    listed = dict(line.split(" ", 1) for line in KEYS.read_text().splitlines())
    found = {name: str(list(tensor.shape)) for name, tensor in full_size.state_dict().items()}
    assert found == listed
    assert len(found) == 973


def test_the_number_of_weights_is_the_published_one(full_size: STDiT3Transformer3DModel):
    parameters = sum(weight.numel() for weight in full_size.parameters())
    buffers = sum(buffer.numel() for buffer in full_size.buffers())
    assert (parameters, buffers) == (1_207_643_972, 1_228_800)
    assert sum(tensor.numel() for tensor in full_size.state_dict().values()) == 1_208_872_772
    assert {sum(w.numel() for w in block.parameters()) for block in full_size.spatial_blocks} == {21_255_696}


def test_the_null_caption_is_the_buffer(tiny: STDiT3Transformer3DModel):
    null = tiny.null_caption(3)
    assert null.shape == (3, 7, 20)
    assert all(torch.equal(row, tiny.state_dict()["y_embedder.y_embedding"]) for row in null)


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_a_saved_model_is_the_same(tiny: STDiT3Transformer3DModel, tmp_path: Path, low_cpu_mem_usage: bool):
    tiny.save_pretrained(tmp_path)
    again = STDiT3Transformer3DModel.from_pretrained(tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    before, after = tiny.state_dict(), again.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(run(again, **arguments()), run(tiny, **arguments()))


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_a_file_may_leave_the_rotary_frequencies_out(
    tiny: STDiT3Transformer3DModel, tmp_path: Path, low_cpu_mem_usage: bool
):
    tiny.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    save_file({name: tensor for name, tensor in weights.items() if name != "rope.freqs"}, file, {"format": "pt"})
    again = STDiT3Transformer3DModel.from_pretrained(
        tmp_path, low_cpu_mem_usage=low_cpu_mem_usage, torch_dtype=torch.bfloat16
    )
    assert torch.equal(again.rope.freqs.float(), tiny.rope.freqs.to(again.rope.freqs.dtype).float())
    assert again.dtype == torch.bfloat16
    assert torch.equal(run(again, **arguments()), run(transformer().bfloat16(), **arguments()))


def test_a_state_dict_may_leave_the_rotary_frequencies_out(tiny: STDiT3Transformer3DModel):
    weights = {name: tensor for name, tensor in tiny.state_dict().items() if name != "rope.freqs"}
    other = transformer(seed=5)
    other.load_state_dict(weights)
    assert torch.equal(run(other, **arguments()), run(tiny, **arguments()))
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"t_block.1.bias\""):
        other.load_state_dict({name: tensor for name, tensor in weights.items() if name != "t_block.1.bias"})


def test_the_published_configuration_is_read(tmp_path: Path):
    keys: dict[str, Any] = {
        "architectures": ["STDiT3"], "caption_channels": 20, "class_dropout_prob": 0.1, "depth": 1, "drop_path": 0.0,
        "enable_flash_attn": True, "enable_layernorm_kernel": True, "enable_sequence_parallelism": False,
        "freeze_y_embedder": True, "hidden_size": 48, "in_channels": 4, "input_size": [None, None, None],
        "input_sq_size": 512, "mlp_ratio": 4.0, "model_max_length": 300, "model_type": "STDiT3", "num_heads": 2,
        "only_train_temporal": False, "patch_size": [1, 2, 2], "pred_sigma": True, "qk_norm": True,
        "skip_y_embedder": False, "torch_dtype": "float32", "transformers_version": "4.38.2",
    }  # fmt: skip
    assert STDiT3Transformer3DModel(**keys).config == STDiT3Transformer3DModel.from_config(keys).config
    (tmp_path / "config.json").write_text(json.dumps(keys))
    config: Any = STDiT3Transformer3DModel.load_config(tmp_path)
    assert STDiT3Transformer3DModel.from_config(config).config.depth == 1
    with pytest.raises(InvalidArgument, match=r"^skip_y_embedder is True; Open-Sora 1.2 has skip_y_embedder=False"):
        STDiT3Transformer3DModel.from_config({**keys, "skip_y_embedder": True})
    with pytest.raises(InvalidArgument, match=r"^num_head is no key of .* did you mean num_heads\?; leave it out"):
        STDiT3Transformer3DModel.from_config({**keys, "num_head": 2})


def test_without_a_variance_the_output_has_the_channels_of_the_input():
    assert run(transformer(pred_sigma=False), **arguments()).shape == (2, 4, 3, 5, 7)


# What diffusers does with any model


def test_bfloat16_is_near_and_returns_float32():
    model, call = transformer(), arguments()
    plain, half = run(model, **call), run(model.bfloat16(), **call)
    assert half.dtype == torch.float32
    assert (half - plain).norm() < 0.05 * plain.norm()
    with torch.no_grad():
        assert torch.equal(model(**call).sample, half)


@pytest.mark.parametrize("conditioned", [False, True])
def test_it_compiles_as_one_graph(conditioned: bool):
    model, call = transformer(depth=1), arguments()
    if conditioned:
        call["frame_mask"] = torch.tensor([[False, True, True]] * 2)
    plain = run(model, **call)
    compiled: Any = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.equal(run(compiled, **call), plain)


def test_blocks_compile_by_themselves():
    model, call = transformer(depth=1), arguments()
    plain = run(model, **call)
    model.compile_repeated_blocks(fullgraph=True, backend="eager")
    assert torch.equal(run(model, **call), plain)
    compiled = [part for part in model.modules() if vars(part).get("_compiled_call_impl") is not None]
    assert compiled == [*model.spatial_blocks, *model.temporal_blocks]


def test_layerwise_casting_stores_the_blocks_only_in_eight_bits():
    model, call = transformer().bfloat16(), arguments()
    rounded = transformer().bfloat16()
    for blocks in (rounded.spatial_blocks, rounded.temporal_blocks):
        for part in blocks.modules():
            if isinstance(part, torch.nn.Linear):
                part.to(torch.float8_e4m3fn).to(torch.bfloat16)
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    small = {name for name, weight in model.named_parameters() if weight.dtype == torch.float8_e4m3fn}
    linear = ("qkv", "proj", "q_linear", "kv_linear", "fc1", "fc2")
    assert small == {
        name for name, _ in rounded.named_parameters() if "_blocks." in name and name.rsplit(".", 2)[-2] in linear
    }
    assert torch.equal(run(model, **call), run(rounded, **call))


@pytest.mark.parametrize(
    "offload", [{"offload_type": "block_level", "num_blocks_per_group": 1}, {"offload_type": "leaf_level"}], ids=str
)
def test_group_offloading_changes_no_bit(offload: dict[str, Any]):
    model, call = transformer(), arguments()
    plain = run(model, **call)
    apply_group_offloading(model, onload_device=torch.device("cpu"), **offload)
    assert torch.equal(run(model, **call), plain)


def test_sequential_offloading_changes_no_bit():
    from accelerate import cpu_offload

    model, call = transformer(), arguments()
    plain = run(model, **call)
    cpu_offload(model, torch.device("cpu"), offload_buffers=True)
    assert all(weight.is_meta for name, weight in model.named_parameters() if "_blocks." in name)
    assert torch.equal(run(model, **call), plain)


def test_attention_processors_and_backends_can_be_set(tiny: STDiT3Transformer3DModel):
    class Counting(STDiT3AttnProcessor):
        calls = 0

        def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
            self.calls += 1
            return super().__call__(*args, **kwargs)

    model, counting = transformer(), Counting()
    assert len(model.attn_processors) == 8
    model.set_attn_processor(counting)
    assert torch.equal(run(model, **arguments()), run(tiny, **arguments()))
    assert counting.calls == 8
    model.fuse_qkv_projections()
    model.set_attention_backend("_native_math")
    torch.testing.assert_close(run(model, **arguments()), run(tiny, **arguments()), rtol=0, atol=1e-5)


def test_gradients_flow_to_every_weight():
    model = transformer()
    model(**arguments(), frame_mask=torch.tensor([[False, True, True]] * 2)).sample.square().mean().backward()
    without = {name for name, weight in model.named_parameters() if weight.grad is None}
    assert without == {"rope.freqs"}
    with pytest.raises(ValueError, match="does not support gradient checkpointing"):
        model.enable_gradient_checkpointing()
