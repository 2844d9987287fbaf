"""What was done to a model between quantising and undoing it, and models that are left as they were."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ertacache.errors import InvalidArgument
from ertacache.extras import present
from ertacache.pipelines.quantizers import quantize as quantizing
from ertacache.pipelines.quantizers.fake import FakeQuantLinear
from ertacache.pipelines.quantizers.quantize import quantize, quantized_copy
from ertacache.pipelines.quantizers.record import quantizer_of
from pipelines import flux


class Blocks(nn.Module):
    """Two layers in a list, the second under two names."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.blocks = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.blocks.append(self.blocks[1])

    def forward(self, x: Tensor, timestep: Any = 1.0) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Adapter(nn.Module):
    """As peft wraps a layer."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer, self.merged = base_layer, False

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + x.sin()


Adapter.__module__ = "peft.tuners.lora.layer"
X = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
SCHEMES = ["w4a4", "w4a4x2", "w16a16"]
TORCHAO = pytest.param("int8wo", marks=pytest.mark.skipif(not present("torchao"), reason="torchao is not installed"))


@pytest.mark.parametrize("scheme", [*SCHEMES, TORCHAO])
def test_the_layers_come_back_in_the_dtype_that_the_model_has_by_then(scheme: str):
    module, plain = Blocks(), Blocks().to(torch.bfloat16)
    undo = quantize(module, scheme)
    module.to(torch.bfloat16).eval()
    module.requires_grad_(False)
    undo()
    assert all(torch.equal(weight, dict(plain.named_parameters())[name]) for name, weight in module.named_parameters())
    assert torch.equal(module(X.bfloat16()), plain(X.bfloat16())) and quantizer_of(module) is None
    assert not any(part.training for part in module.modules())
    if scheme != "int8wo":  # whose packed weights never ask for gradients
        assert not any(weight.requires_grad for weight in module.parameters())


@pytest.mark.parametrize("scheme", [*SCHEMES, TORCHAO])
def test_an_adapter_that_was_loaded_since_stays(scheme: str):
    module, plain = Blocks(), Blocks()
    undo = quantize(module, scheme)
    for one in (module, plain):
        for n in (0, 1):
            one.blocks[n] = Adapter(one.blocks[n])
        one.blocks[2] = one.blocks[1]
    undo()
    assert isinstance(module.blocks[0], Adapter) and type(module.blocks[0].base_layer) is nn.Linear
    assert module.blocks[1] is module.blocks[2] and torch.equal(module(X), plain(X))


def test_what_was_fused_in_or_hooked_since_is_not_undone_and_can_be_undone_then():
    module, plain = Blocks(), Blocks()
    undo = quantize(module, "w4a4")
    quantised: Any = module.blocks[0]
    adapter = module.blocks[0] = Adapter(quantised)
    adapter.merged = True
    with pytest.raises(InvalidArgument, match=r"Blocks has an adapter fused into its quantised weights; call pipe.unf"):
        undo()
    adapter.merged = False
    hook = quantised.register_forward_hook(lambda *given: None)
    with pytest.raises(InvalidArgument, match=r"layer blocks.0 has hooks, .*; remove them \(pipe.remove_all_hooks\(\)"):
        undo()
    assert adapter.base_layer is quantised and isinstance(module.blocks[1], FakeQuantLinear)
    hook.remove()
    module.blocks[0] = quantised
    undo()
    undo()
    assert torch.equal(module(X), plain(X)) and type(module.blocks[0]) is nn.Linear


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_interrupt_leaves_the_models_as_they_were(scheme: str, monkeypatch: pytest.MonkeyPatch):
    """The second of two denoisers is interrupted when its layers have been changed already."""
    pipe = SimpleNamespace(transformer=Blocks(), transformer_2=Blocks(1))
    before = [dict(one.named_modules(remove_duplicate=False)) for one in vars(pipe).values()]
    mark, marked = quantizing.mark, list[nn.Module]()

    def interrupted(denoiser: nn.Module, record: Any) -> None:
        if marked:
            raise KeyboardInterrupt
        marked.append(denoiser)
        mark(denoiser, record)

    monkeypatch.setattr(quantizing, "mark", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quantize(pipe, scheme)
    assert marked == [pipe.transformer]
    for one, modules in zip(vars(pipe).values(), before, strict=True):
        after = dict(one.named_modules(remove_duplicate=False))
        assert after.keys() == modules.keys() and all(after[name] is module for name, module in modules.items())
        assert quantizer_of(one) is None and not one._forward_pre_hooks


@pytest.mark.skipif(not present("torchao"), reason="torchao is not installed")
def test_torchao_that_fails_halfway_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch):
    from ertacache.pipelines.quantizers.scheme import torchao

    whole, module = torchao().quantize_, Blocks()

    def failing(denoiser: nn.Module, config: Any, filter_fn: Any) -> None:
        whole(denoiser, config, filter_fn=lambda part, name: name == "blocks.0")
        raise RuntimeError("no kernel")

    monkeypatch.setattr(sys.modules["torchao.quantization"], "quantize_", failing)
    with pytest.raises(RuntimeError, match="no kernel"):
        quantize(module, "int8wo")
    assert quantizer_of(module) is None and torch.equal(module(X), Blocks()(X))


def test_one_module_in_two_places_is_quantised_and_copied_once():
    shared = Blocks()
    pipe = SimpleNamespace(transformer=shared, transformer_2=shared, scheduler=SimpleNamespace())
    copied = quantized_copy(pipe, "w4a4x2")
    assert copied.transformer is copied.transformer_2 is not shared and len(copied.transformer._forward_pre_hooks) == 1
    undo = quantize(pipe, "w4a4x2")
    assert len(shared._forward_pre_hooks) == 1 and torch.equal(shared(X, 1.0), copied.transformer(X, 1.0))
    undo()
    assert torch.equal(shared(X), Blocks()(X)) and not shared._forward_pre_hooks


def test_what_an_adapter_sets_in_the_configuration_is_kept():
    """Diffusers sets the mark of an IP-Adapter as an attribute, and reads it as that."""
    denoiser = flux().transformer
    denoiser.config.encoder_hid_dim_type = "ip_image_proj"
    before = dict(denoiser.config)
    undo = quantize(denoiser, "w4a4")
    assert denoiser.config.encoder_hid_dim_type == "ip_image_proj"
    denoiser.config.encoder_hid_dim_type = "text_proj"
    denoiser.register_to_config(guidance_embeds=False)
    denoiser.config.encoder_hid_dim_type = "text_proj"  # which that loses
    undo()
    assert dict(denoiser.config) == {**before, "guidance_embeds": False} and quantizer_of(denoiser) is None
    assert denoiser.config.encoder_hid_dim_type == "text_proj"
    assert not hasattr(denoiser.config, "_ertacache_quantizer")


def test_projections_that_are_fused_after_quantising_are_told():
    denoiser = flux().transformer
    quantize(denoiser, "w4a4")
    denoiser.fuse_qkv_projections()
    with pytest.raises(InvalidArgument, match=r"layer .*\.to_qkv was fused of quantised ones and computes ex"):
        quantizer_of(denoiser)
    denoiser.unfuse_qkv_projections()
    fused = flux().transformer
    fused.fuse_qkv_projections()
    quantize(fused, "w4a4")
    found: Any = quantizer_of(fused)
    assert found["scheme"] == "w4a4"
