"""Rows of the table of combinations: what changes the denoiser's weights, or adds to them."""

import functools
import tempfile
from typing import Any

import torch
from torch import nn

import small_images as images
import small_token_images as tokens
from combinations import Row
from supported import Small

_NEEDS_PEFT = ("peft",)


def _linears(module: nn.Module, multiple: int = 1) -> list[tuple[nn.Module, str, nn.Linear]]:
    """Every linear layer with its parent and its name there."""
    return [
        (parent, name, child)
        for parent in list(module.modules())
        for name, child in parent.named_children()
        if type(child) is nn.Linear and child.in_features % multiple == 0
    ]


def quantised(config: str) -> Any:
    def on(pipe: Any) -> None:
        from torchao import quantization

        quantization.quantize_(pipe.transformer, getattr(quantization, config)())

    return on


def quantised_while_loading(pipe: Any) -> None:
    from diffusers import FluxTransformer2DModel, TorchAoConfig
    from torchao.quantization import Int8WeightOnlyConfig

    with tempfile.TemporaryDirectory() as folder:
        pipe.transformer.save_pretrained(folder)
        pipe.transformer = FluxTransformer2DModel.from_pretrained(
            folder, quantization_config=TorchAoConfig(Int8WeightOnlyConfig()), torch_dtype=torch.float32
        )


def gguf_linears(pipe: Any) -> None:
    """Every linear layer whose rows are whole blocks of Q8_0, as diffusers' reader of GGUF files makes them."""
    import gguf
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

    kind = gguf.GGMLQuantizationType.Q8_0
    for parent, name, linear in _linears(pipe.transformer, multiple=32):
        packed = torch.from_numpy(gguf.quants.quantize(linear.weight.detach().numpy(), kind))
        layer = GGUFLinear(linear.in_features, linear.out_features, linear.bias is not None, torch.float32)
        layer.weight, layer.bias = GGUFParameter(packed, quant_type=kind), linear.bias
        setattr(parent, name, layer)


def cast_in_fp8(pipe: Any) -> None:
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


@functools.cache
def lora_weights(seed: int = 0, rank: int = 2) -> dict[str, torch.Tensor]:
    """A LoRA of the small FLUX in diffusers' layout."""
    generator, weights = torch.Generator().manual_seed(seed), dict[str, torch.Tensor]()
    for name, module in tokens.flux().pipe.transformer.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(("to_q", "to_k", "to_v")):
            key = f"transformer.{name}.lora"
            weights[f"{key}_A.weight"] = torch.randn(rank, module.in_features, generator=generator) * 0.3
            weights[f"{key}_B.weight"] = torch.randn(module.out_features, rank, generator=generator) * 0.3
    return weights


def load_lora(pipe: Any, seed: int = 0, name: str = "style", **more: Any) -> None:
    weights = {key: weight.clone() for key, weight in lora_weights(seed).items()}  # peft swaps tensors with its own
    pipe.load_lora_weights(weights, adapter_name=name, **more)


def unload_lora(pipe: Any) -> None:
    pipe.unload_lora_weights()


def lora_scaled(pipe: Any) -> None:
    load_lora(pipe)
    pipe.set_adapters(["style"], [0.5])


def two_loras(pipe: Any) -> None:
    load_lora(pipe)
    load_lora(pipe, 1, "other")
    pipe.set_adapters(["style", "other"], [0.7, 0.3])


def lora_swapped(pipe: Any) -> None:
    load_lora(pipe)
    load_lora(pipe, 1, hotswap=True)


def lora_fused(pipe: Any) -> None:
    load_lora(pipe)
    pipe.fuse_lora()


def lora_unfused(pipe: Any) -> None:
    pipe.unfuse_lora()
    pipe.unload_lora_weights()


def _with_picture_embeds() -> Small:
    small = images.stable_diffusion_xl()
    embeds = torch.randn(2, 1, 16, generator=torch.Generator().manual_seed(0))
    small.inputs, small.batch_size = {"ip_adapter_image_embeds": [embeds]}, 1
    return small


def load_ip_adapter(pipe: Any) -> None:
    """Weights of the published layout into the small SDXL's U-Net."""
    generator = torch.Generator().manual_seed(0)
    unet, width = pipe.unet, pipe.unet.config.cross_attention_dim

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.1

    projection = {"proj.weight": draw(4 * width, 16), "proj.bias": torch.zeros(4 * width)}
    projection |= {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    adapter = dict[str, torch.Tensor]()
    crossing = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for n, name in enumerate(crossing):
        inner = unet.get_submodule(name.removesuffix(".processor")).to_q.out_features
        adapter |= {f"{2 * n + 1}.to_{part}_ip.weight": draw(inner, width) for part in "kv"}
    unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": adapter}])


def free_u(pipe: Any) -> None:
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)


_WARNED = "on before a profile that was calibrated without it: a warning of other weights"

ROWS = {
    "torchao int8, weights only": Row(
        "`quantize_(pipe.transformer, Int8WeightOnlyConfig())`", tokens.flux, quantised("Int8WeightOnlyConfig"),
        same=False, needs=("torchao",),
    ),
    "torchao int8, weights and activations": Row(
        "`quantize_(pipe.transformer, Int8DynamicActivationInt8WeightConfig())`", tokens.flux,
        quantised("Int8DynamicActivationInt8WeightConfig"), same=False, rounding=1e-3, needs=("torchao",),
        notes="activations next to an edge of their grid of 8 bits fall on either side of it",
    ),
    "torchao while loading": Row(
        "`from_pretrained(..., quantization_config=TorchAoConfig(...))`", tokens.flux, quantised_while_loading,
        same=False, conflict="was replaced while a profile is applied", needs=("torchao",),
        notes="another denoiser object in the pipeline: load it first",
    ),
    "GGUF": Row(
        "`GGUFLinear`, as `from_single_file(..., quantization_config=GGUFQuantizationConfig(...))` makes them",
        tokens.flux, gguf_linears, same=False, needs=("gguf",),
    ),
    "fp8 layerwise casting": Row(
        "`pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, ...)`", tokens.flux,
        cast_in_fp8, same=False,
    ),
    "another dtype": Row(
        "`pipe.to(torch.bfloat16)`", tokens.flux, lambda pipe: pipe.to(torch.bfloat16), same=False, rounding=0.02
    ),
    "fused QKV projections": Row(
        "`pipe.transformer.fuse_qkv_projections()`", tokens.flux, lambda pipe: pipe.transformer.fuse_qkv_projections(),
        lambda pipe: pipe.transformer.unfuse_qkv_projections(), rounding=1e-5,
    ),
    "LoRA": Row(
        "`pipe.load_lora_weights(...)`", tokens.flux, load_lora, unload_lora, same=False, needs=_NEEDS_PEFT,
        notes=_WARNED,
    ),
    "LoRA, scaled": Row(
        '`pipe.set_adapters(["style"], [0.5])`', tokens.flux, lora_scaled, unload_lora, same=False, needs=_NEEDS_PEFT
    ),
    "LoRA, scaled in the call": Row(
        '`joint_attention_kwargs={"scale": 0.5}`', tokens.flux, load_lora, unload_lora, same=False,
        call={"joint_attention_kwargs": {"scale": 0.5}}, needs=_NEEDS_PEFT,
    ),
    "several LoRAs": Row(
        '`pipe.set_adapters(["style", "other"], [0.7, 0.3])`', tokens.flux, two_loras, unload_lora, same=False,
        needs=_NEEDS_PEFT,
    ),
    "LoRA, swapped": Row(
        "`pipe.load_lora_weights(..., hotswap=True)`", tokens.flux, lora_swapped, unload_lora, same=False,
        needs=_NEEDS_PEFT,
    ),
    "LoRA, fused": Row(
        "`pipe.fuse_lora()`, later `pipe.unfuse_lora()`", tokens.flux, lora_fused, lora_unfused, same=False,
        rounding=1e-6, needs=_NEEDS_PEFT,
        notes=f"{_WARNED}; unfused weights keep their rounding, with or without a profile",
    ),
    "IP-Adapter": Row(
        "`pipe.load_ip_adapter(...)`", _with_picture_embeds, load_ip_adapter, same=False,
        notes=_WARNED,
    ),
    "FreeU": Row(
        "`pipe.enable_freeu(...)`", images.stable_diffusion_xl, free_u, lambda pipe: pipe.disable_freeu(), same=False,
        slow=True,
    ),
}  # fmt: skip
