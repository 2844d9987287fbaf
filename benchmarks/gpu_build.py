"""A pipeline of diffusers around random weights, made on the device within seconds and without a download."""

import gc
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

#: What a denoiser of full size calculates in.
DTYPE = torch.bfloat16
#: Shares of the layers that are tried where the whole model does not fit.
SHARES = (1.0, 0.75, 0.5, 0.25, 0.125)


@dataclass(frozen=True)
class Size:
    """One size of a model.

    Attributes:
        config: of the denoiser.
        call: arguments of the pipeline call, `num_inference_steps` among them.
        tokens: length of a text's embedding.
        activations: bytes that a step needs beside the weights, roughly; the check of free memory adds them.
        step_seconds: of an uncached step on one current data-centre GPU, roughly; only until one was measured.
    """

    config: dict[str, Any]
    call: dict[str, Any]
    tokens: int
    activations: int = 0
    step_seconds: float = 0.01


@dataclass(frozen=True, eq=False)
class Model:
    """A row of the table.

    Attributes:
        denoiser: name of its class in diffusers, or in `ertacache.opensora`.
        layers: keys of the configuration that count layers.
        contexts: names of the denoiser calls of a step.
        scheduler: the published one.
        vae: an autoencoder with the published factors and next to no width.
        encode: (size, dtype) -> what stands in for `encode_prompt`.
    """

    name: str
    pipeline: str
    denoiser: str
    full: Size
    tiny: Size
    layers: tuple[str, ...]
    contexts: tuple[str, ...]
    scheduler: Callable[[], Any]
    vae: Callable[[], Any]
    encode: Callable[[Size, torch.dtype], Callable[..., Any]]
    empty: tuple[str, ...] = ("text_encoder", "tokenizer")


@dataclass
class Built:
    """A pipeline with random weights.

    Attributes:
        device: where it calculates.
        layers: "19 + 38", or "9 + 19 of 19 + 38" where the whole model did not fit.
        weights: bytes of the denoiser's weights.
    """

    model: Model
    size: Size
    pipe: Any
    device: torch.device
    layers: str
    weights: int


def build(model: Model, size: Size, device: torch.device, free: int, seed: int) -> Built | str:
    """The pipeline with as many layers as fit into `free` bytes; the reason where not even an eighth of them does."""
    for share in SHARES:
        config = reduced(model, size.config, share)
        weights = weight_bytes(model, config, device)
        if weights + size.activations <= free:
            break
    else:
        return f"an eighth of its layers needs {gib(weights + size.activations)}, and {gib(free)} are free"
    dtype = dtype_on(device)
    torch.manual_seed(seed)
    with made_on(device, dtype):
        denoiser = _class(model.denoiser)(**config).eval().requires_grad_(False)
        vae = model.vae()
    _keep_wide(denoiser)
    pipe = _class(model.pipeline)(
        **dict.fromkeys(model.empty), scheduler=model.scheduler(), vae=vae, transformer=denoiser
    )
    pipe.encode_prompt = model.encode(size, dtype)
    pipe.set_progress_bar_config(disable=True)
    counts, whole = ([str(made[key]) for key in model.layers] for made in (config, size.config))
    layers = " + ".join(counts) + (f" of {' + '.join(whole)}" if share < 1 else "")
    return Built(model, size, pipe, device, layers, weights)


def reduced(model: Model, config: dict[str, Any], share: float) -> dict[str, Any]:
    """The configuration with a share of its layers, one of each kind at least."""
    return {**config, **{key: max(1, int(config[key] * share)) for key in model.layers}}


def weight_bytes(model: Model, config: dict[str, Any], device: torch.device) -> int:
    """Bytes of the denoiser's weights, counted without making them."""
    with made_on(torch.device("meta"), dtype_on(device)):
        denoiser = _class(model.denoiser)(**config)
    return sum(weight.numel() * weight.dtype.itemsize for weight in denoiser.parameters())


def dtype_on(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU; float32 on the CPU, where bfloat16 is slow and proves nothing more."""
    return torch.float32 if device.type == "cpu" else DTYPE


def release() -> None:
    """Give the memory of what nobody holds any more back to the device."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def gib(count: int) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.3g} GiB"


@contextmanager
def made_on(device: torch.device, dtype: torch.dtype) -> Generator[None]:
    """Modules made inside have their weights there, in that dtype, from the start."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)


def _keep_wide(denoiser: nn.Module) -> None:
    """What diffusers keeps in float32 when it loads published weights."""
    wide: list[str] = getattr(denoiser, "_keep_in_fp32_modules", None) or []
    for name, weight in denoiser.named_parameters():
        if any(part in wide for part in name.split(".")):
            weight.data = weight.data.float()


def _class(name: str) -> Any:
    import diffusers

    from ertacache import opensora

    return getattr(diffusers, name, None) or getattr(opensora, name)
