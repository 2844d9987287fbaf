"""Simulated quantisation: the rounding against brute force, which layers, and that undoing leaves nothing."""

import copy
import math
import re
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ertacache.core.group_rounding import rounded
from ertacache.errors import InvalidArgument, MissingExtra, UnsupportedPipeline
from ertacache.extras import present
from ertacache.pipelines.quantizers.fake import FakeQuantLinear
from ertacache.pipelines.quantizers.layers import DEFAULT_SKIP, linears_of
from ertacache.pipelines.quantizers.quantize import quantize, quantized_copy, restore
from ertacache.pipelines.quantizers.record import quantizer_of
from ertacache.pipelines.quantizers.scheme import Scheme
from pipelines import CALL, PROMPTS, flux

RECORD = {"by": "ertacache", "scheme": "w4a8", "group": 64, "skip": list(DEFAULT_SKIP)}


def by_hand(x: Tensor, bits: int, group: int, shift: float = 0.0) -> Tensor:
    """Number by number, in float32 as the numbers are computed."""
    rows, top = x.float().reshape(-1, x.shape[-1]), 2 ** (bits - 1) - 1
    out = torch.zeros_like(rows)
    for r in range(rows.shape[0]):
        for start in range(0, rows.shape[1], group):
            entries = rows[r, start : start + group]
            scale = torch.tensor(max(abs(float(entry)) for entry in entries)) / top
            for n, entry in enumerate(entries):
                number = 0.0 if float(scale) == 0 else min(max(round(float(entry / scale - shift)), -top), top)
                out[r, start + n] = (number + shift) * scale
    return out.view(x.shape).to(x.dtype)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("shift", [0.0, 0.25, -0.375])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("shape", "group"), [((3, 64), 64), ((2, 3, 10), 4), ((5,), 64), ((2, 7), 1), ((1, 65), 64)])
def test_rounding_equals_brute_force(shape: tuple[int, ...], group: int, bits: int, shift: float):
    x = random(*shape)
    assert torch.equal(rounded(x, bits, group, shift), by_hand(x, bits, group, shift))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_in_float32(dtype: torch.dtype):
    x = random(4, 20, dtype=dtype)
    found = rounded(x, 4, 8)
    assert found.dtype == dtype and torch.equal(found, by_hand(x, 4, 8))


def test_float64_is_computed_as_itself_and_sixteen_bits_are_the_tensor_itself():
    x = random(2, 6).double() + 1e-12
    scale = x.abs().amax(-1, keepdim=True) / 127
    assert torch.equal(rounded(x, 8, 6), (x / scale).round() * scale)
    assert rounded(x, 16, 6) is x


def test_a_group_of_zeros_and_of_the_smallest_number_stays_zero():
    x = torch.tensor([[0.0, 0.0, 1.0, -7.0], [1e-45, 0.0, 0.0, 0.0]])
    assert torch.equal(rounded(x, 4, 2), torch.tensor([[0.0, 0.0, 1.0, -7.0], [0.0, 0.0, 0.0, 0.0]]))
    assert rounded(torch.zeros(0, 4), 4, 2).shape == (0, 4)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_becomes_nan_in_its_group_alone(value: float):
    found = rounded(torch.tensor([value, 1.0, 1.0, -7.0]), 4, 2)
    assert found[:2].isnan().all() and found[2:].tolist() == [1.0, -7.0]


@pytest.mark.parametrize("bits", [-1, 0, 1, 9, 15, 17])
def test_bits_that_are_no_grid_are_refused(bits: int):
    with pytest.raises(InvalidArgument, match=rf"bits is {bits}; use 2 to 8, or 16"):
        rounded(torch.ones(4), bits, 2)


def test_a_group_without_entries_is_refused():
    with pytest.raises(InvalidArgument, match="group is 0; use 1 or more entries"):
        rounded(torch.ones(4), 4, 0)
    for group in (0, -1, 64.0, "64", True, None):
        with pytest.raises(InvalidArgument, match=rf"group is {group!r}; use 1 or more entries, such as 64"):
            quantize(Blocks(), "w4a4", group=group)  # type: ignore[arg-type]


class Blocks(nn.Module):
    """Linear layers inside and outside of repeated blocks, one of them under two names."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.x_embedder, self.proj_out = nn.Linear(6, 6), nn.Linear(6, 6)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"norm": nn.Linear(6, 6), "to_q": nn.Linear(6, 6, bias=False), "AdaLN": nn.Linear(6, 6)})
            for _ in range(2)
        )
        shared = nn.Linear(6, 6)
        for block in self.blocks:
            block["shared"] = shared

    def forward(self, x: Tensor) -> Tensor:
        x = self.x_embedder(x)
        for block in self.blocks:
            x = x + block["shared"](block["to_q"](block["norm"](x)))
        return self.proj_out(x)


def test_only_what_lies_in_the_blocks_and_is_not_skipped_is_quantised():
    names = list(linears_of(Blocks(), DEFAULT_SKIP))
    assert names == ["blocks.0.to_q", "blocks.0.shared", "blocks.1.to_q", "blocks.1.shared"]
    assert list(linears_of(Blocks(), ["*.SHARED", "blocks.1.*"])) == [
        f"blocks.0.{name}" for name in ("norm", "to_q", "AdaLN")
    ]


def test_the_forward_is_the_rounded_product_and_the_keys_stay():
    module = Blocks()
    plain, x = copy.deepcopy(module), random(3, 6)
    quantize(module, "w4a8", group=4)
    assert list(module.state_dict()) == list(plain.state_dict())
    layer: Any = module.blocks[0]["shared"]
    assert layer is module.blocks[1]["shared"] and isinstance(layer, FakeQuantLinear)
    before = plain.blocks[0]["shared"]
    assert torch.equal(layer.weight, by_hand(before.weight.detach(), 4, 4))
    expected = nn.functional.linear(by_hand(x, 8, 4), by_hand(before.weight.detach(), 4, 4), before.bias)
    # On some CPUs the last bit of a product depends on where its factors lie in memory; a step of the grid is 1e-2.
    torch.testing.assert_close(layer(x), expected, rtol=1e-6, atol=1e-6)
    assert "bits=(4, 8), group=4" in repr(layer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sixteen_bits_are_the_identity_bit_for_bit(dtype: torch.dtype):
    module, x = Blocks().to(dtype), random(3, 6, dtype=dtype)
    before = module(x)
    quantize(module, "W16A16")
    assert isinstance(module.blocks[0]["to_q"], FakeQuantLinear) and torch.equal(module(x), before)


def test_weights_alone_leave_the_activations_exact():
    module, x = Blocks(), random(3, 6)
    layer: Any = module.blocks[0]["to_q"]
    expected = nn.functional.linear(x, by_hand(layer.weight.detach(), 4, 64))
    quantize(module, "w4a16")
    assert torch.equal(module.blocks[0]["to_q"](x), expected)


def test_undoing_leaves_the_very_layers_and_no_mark():
    module, x = Blocks(), random(3, 6)
    layers, before = dict(module.named_modules(remove_duplicate=False)), module(x)
    undo = quantize(module, "w4a4")
    assert quantizer_of(module) == {**RECORD, "scheme": "w4a4"} and not torch.equal(module(x), before)
    undo()
    undo()
    after = dict(module.named_modules(remove_duplicate=False))
    assert after.keys() == layers.keys() and all(after[name] is layer for name, layer in layers.items())
    assert quantizer_of(module) is None and torch.equal(module(x), before)


def test_a_copy_leaves_the_pipeline_and_is_saved_and_restored_bit_for_bit(tmp_path: Any):
    pipe = flux()
    pipe.set_progress_bar_config(disable=True)
    before = drawn(pipe)
    copied = quantized_copy(pipe, "w4a8")
    assert quantizer_of(copied.transformer) == RECORD and quantizer_of(pipe.transformer) is None
    assert copied.scheduler is not pipe.scheduler and copied.vae is pipe.vae
    quantised = drawn(copied)
    assert torch.equal(drawn(pipe), before) and not torch.equal(quantised, before)
    copied.transformer.save_pretrained(tmp_path)
    pipe.transformer = type(pipe.transformer).from_pretrained(tmp_path)
    with pytest.raises(InvalidArgument, match=r"was saved as w4a8 and loaded without it; load its folder with ertac"):
        quantizer_of(pipe.transformer)
    restore(pipe)
    restore(pipe)
    assert quantizer_of(pipe.transformer) == RECORD and torch.equal(drawn(pipe), quantised)


def drawn(pipe: Any) -> Tensor:
    return pipe(PROMPTS[0], generator=torch.Generator().manual_seed(0), output_type="latent", **CALL).images


@pytest.mark.parametrize(
    "record",
    [
        "w4a4",
        {},
        {"scheme": "w4a4"},
        {"scheme": 4, "group": 64, "skip": []},
        {"scheme": "w4a4", "group": "64", "skip": []},
        {"scheme": "w4a4", "group": 0, "skip": []},
        {"scheme": "w4a4", "group": True, "skip": []},
        {"scheme": "w4a4", "group": 64, "skip": "*norm*"},
        {"scheme": "w4a4", "group": 64, "skip": [1]},
        {"scheme": "w4a4", "group": 64, "skip": [], "more": 1},
    ],
)
def test_a_damaged_mark_is_refused(record: Any):
    pipe = flux()
    pipe.transformer.register_to_config(_ertacache_quantizer=record)
    with pytest.raises(InvalidArgument, match="must hold scheme, group and skip: quantise the model again"):
        restore(pipe)


def test_what_is_quantised_already_is_refused():
    module = Blocks()
    quantize(module, "w8a8")
    with pytest.raises(InvalidArgument, match=r"Blocks is quantised already \(w8a8\); load the model that it was made"):
        quantize(module, "w4a4")


@pytest.mark.parametrize("text", ["", "w4", "w4a", "4", "w4a4b", "w4a4 ", "int8", "w44a4 x", "w٤a4", "w4a４", 4, None])
def test_unknown_schemes_are_refused(text: Any):
    with pytest.raises(InvalidArgument, match=rf"no scheme {text!r}(; did you mean|; there are w4a4, )"):
        quantize(Blocks(), text)


@pytest.mark.parametrize("text", ["w1a4", "w4a9", "w0a8", "w4a17", "w15a16"])
def test_schemes_of_odd_bits_are_refused(text: str):
    with pytest.raises(InvalidArgument, match="use 2 to 8, or 16"):
        Scheme.parse(text)


def test_schemes_are_read_in_either_case():
    assert [str(Scheme.parse(text)) for text in ("W4A8", "w3a16", "INT8wo", "w04a4")] == [
        "w4a8", "w3a16", "int8wo", "w4a4",
    ]  # fmt: skip


def broken(kind: str) -> nn.Module:
    module = Blocks()
    layer: Any = module.blocks[1]["to_q"]
    match kind:
        case "infinite":
            layer.weight.data[0, 0] = math.inf
        case "NaN":
            layer.weight.data[2, 1] = math.nan
        case "meta":
            layer.to("meta")
        case "float8":
            layer.weight = nn.Parameter(layer.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
        case _:
            layer.register_forward_pre_hook(lambda module, args: None)
    return module


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("infinite", "layer blocks.1.to_q has weights that are NaN or infinite; load the model"),
        ("NaN", "layer blocks.1.to_q has weights that are NaN or infinite; load the model"),
        ("meta", "layer blocks.1.to_q has no weights on this machine; quantise before offloading"),
        ("hooks", "layer blocks.1.to_q has hooks, as offloading and casting set them; quantise first"),
        ("float8", r"Blocks is quantised already \(.*torch.float8_e4m3fn.*\); load the model"),
    ],
)
def test_layers_that_cannot_be_quantised_are_refused_and_nothing_is_changed(kind: str, message: str):
    module = broken(kind)
    with pytest.raises(InvalidArgument, match=message):
        quantize(module, "w4a4")
    assert not any(isinstance(part, FakeQuantLinear) for part in module.modules())


def test_skip_lists_that_say_nothing_or_all_are_refused():
    with pytest.raises(InvalidArgument, match=r"skip is the single text '\*norm\*'; pass a list"):
        quantize(Blocks(), "w4a4", skip="*norm*")
    with pytest.raises(InvalidArgument, match=r"skip has '\*\.to_k', which no linear layer in the blocks matches"):
        quantize(Blocks(), "w4a4", skip=(*DEFAULT_SKIP, "*.to_k"))
    with pytest.raises(UnsupportedPipeline, match="Blocks has no linear layers in repeated blocks that are"):
        quantize(Blocks(), "w4a4", skip=["*blocks*"])


@pytest.mark.parametrize("skip", [None, 3, [3], [b"*norm*"], ["*norm*", None]])
def test_skip_lists_of_no_patterns_are_refused(skip: Any):
    with pytest.raises(InvalidArgument, match=re.escape(f"skip is {skip!r}; pass a list of patterns, such as")):
        quantize(Blocks(), "w4a4", skip=skip)


def test_patterns_come_in_whatever_holds_them():
    """A generator is read once, and a set has no order."""
    for skip in (iter(["*to_q", "*norm"]), {"*to_q", "*norm"}, {"*to_q": 1, "*norm": 2}):
        module = Blocks()
        quantize(module, "w4a4", skip=skip)  # type: ignore[arg-type]
        found: Any = quantizer_of(module)
        assert found["skip"] == (["*norm", "*to_q"] if isinstance(skip, set) else ["*to_q", "*norm"])
        quantised = [name for name, part in module.named_modules() if isinstance(part, FakeQuantLinear)]
        assert quantised == ["blocks.0.AdaLN", "blocks.0.shared", "blocks.1.AdaLN"]


def test_what_others_quantised_is_known():
    module = Blocks()
    layer: Any = module.blocks[0]["to_q"]
    layer.weight = nn.Parameter(torch.zeros(6, 6, dtype=torch.int8), requires_grad=False)
    assert quantizer_of(module) == {"by": "weights", "kinds": ["Parameter torch.int8"]}
    pipe = flux()
    pipe.transformer.register_to_config(quantization_config={"quant_method": "gguf", "_private": 1})
    assert quantizer_of(pipe.transformer) == {"by": "diffusers", "config": {"quant_method": "gguf"}}
    with pytest.raises(InvalidArgument, match=r"FluxTransformer2DModel is quantised already \(gguf\)"):
        quantize(pipe, "w4a4")


@pytest.mark.parametrize("scheme", ["int8wo", "int8dq", "fp8wo", "fp8dq", "int4wo", "int4dq"])
def test_torchao_is_named_where_it_is_missing(scheme: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    message = rf"the scheme '{scheme}' needs torchao; .*pip install 'ertacache\[torchao\]'"
    with pytest.raises(MissingExtra, match=message):
        quantize(Blocks(), scheme)


@pytest.mark.skipif(not present("torchao"), reason="torchao is not installed")
@pytest.mark.parametrize("scheme", ["int8wo", "int8dq", "fp8wo", "int4wo", "int4dq"])
def test_torchao_is_applied_and_undone(scheme: str):
    pipe = flux()
    pipe.set_progress_bar_config(disable=True)
    before, weights = drawn(pipe), {name: id(weight) for name, weight in pipe.transformer.named_parameters()}
    group = {} if scheme.startswith(("int8", "fp8")) else {"group": 16}
    undo = quantize(pipe, scheme, **group)
    found: Any = quantizer_of(pipe.transformer)
    assert found["scheme"] == scheme and not torch.equal(drawn(pipe), before)
    changed = {name for name, weight in pipe.transformer.named_parameters() if id(weight) != weights[name]}
    assert changed == {f"{name}.weight" for name in linears_of(pipe.transformer, DEFAULT_SKIP)}
    undo()
    assert quantizer_of(pipe.transformer) is None and torch.equal(drawn(pipe), before)


@pytest.mark.skipif(not present("torchao"), reason="torchao is not installed")
def test_groups_that_do_not_divide_are_refused_by_torchaos_schemes():
    with pytest.raises(InvalidArgument, match=r"has 6 inputs, which groups of 64 of int4wo do not divide; skip it"):
        quantize(Blocks(), "int4wo")
