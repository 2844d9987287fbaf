"""What the transformer of Open-Sora 1.2 refuses, before any work."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ertacache.errors import InvalidArgument, meant

#: Keys of the published configuration that change nothing in inference.
_WITHOUT_EFFECT = frozenset(
    {
        "architectures", "class_dropout_prob", "drop_path", "dtype", "enable_flash_attn", "enable_layernorm_kernel",
        "enable_sequence_parallelism", "freeze_y_embedder", "input_size", "only_train_temporal", "torch_dtype",
        "transformers_version",
    }
)  # fmt: skip
#: Those that do, with the one value that is served.
_FIXED = {"model_type": "STDiT3", "qk_norm": True, "skip_y_embedder": False}


def check_other_keys(given: Mapping[str, Any], own: frozenset[str]) -> None:
    """Refuse a key of a configuration that is neither an `own` one of the model nor without effect: `InvalidArgument`.

    Keys that begin with an underscore, and `quantization_config`, are those of diffusers.
    """
    for name, value in given.items():
        if name in _FIXED:
            if value != _FIXED[name]:
                raise InvalidArgument(f"{name} is {value!r}; Open-Sora 1.2 has {name}={_FIXED[name]!r} only")
        elif name not in own | _WITHOUT_EFFECT and not name.startswith("_") and name != "quantization_config":
            raise InvalidArgument(
                f"{name} is no key of Open-Sora 1.2's transformer{meant(name, own)}; leave it out, or convert a "
                "checkpoint of that version"
            )


def check_sizes(hidden_size: int, num_heads: int, patch_size: tuple[int, ...], numbers: Mapping[str, float]) -> None:
    """Refuse a configuration that no model can have: `InvalidArgument`."""
    for name, value in {"hidden_size": hidden_size, "num_heads": num_heads, **numbers}.items():
        if value <= 0:
            raise InvalidArgument(f"{name} is {value}; give a positive number")
    if hidden_size % num_heads:
        raise InvalidArgument(f"hidden_size {hidden_size} is no multiple of num_heads {num_heads}; change one of them")
    if (hidden_size // num_heads) % 2:
        raise InvalidArgument(
            f"a head has hidden_size / num_heads = {hidden_size // num_heads} channels, an odd number, and the rotary "
            "embedding turns pairs of them; change one of the two"
        )
    if hidden_size % 4:
        raise InvalidArgument(
            f"hidden_size is {hidden_size}; the position embedding needs a multiple of 4: sine and cosine of two places"
        )
    if len(patch_size) != 3 or patch_size[0] != 1 or min(patch_size) < 1:
        raise InvalidArgument(
            f"patch_size is {tuple(patch_size)}; give three sizes of which the first, of the frames, is 1: (1, 2, 2)"
        )


def check_latents(x: Tensor, channels: int) -> None:
    """Refuse latents that are not [B, channels, T, H, W]: `InvalidArgument`."""
    if x.ndim != 5 or x.shape[1] != channels or 0 in x.shape:
        raise InvalidArgument(
            f"hidden_states has shape {list(x.shape)}; give latents [B, {channels}, frames, height, width]"
        )


def check_captions(captions: Tensor, mask: Tensor | None, batch: int, channels: int, tokens: int) -> None:
    """Refuse captions, or a mask of them, that do not fit the batch or the model: `InvalidArgument`.

    That a token counts in each row is looked at where that costs no wait, see `_is_readable`.
    """
    shape = list(captions.shape)
    if captions.ndim != 3 or shape[0] != batch or not 0 < shape[1] <= tokens or shape[2] != channels:
        raise InvalidArgument(
            f"encoder_hidden_states has shape {shape}; give captions [{batch}, up to {tokens} tokens, {channels}]"
        )
    if mask is None:
        return
    if list(mask.shape) != shape[:2]:
        raise InvalidArgument(
            f"encoder_attention_mask has shape {list(mask.shape)}; it must be that of the captions, {shape[:2]}, with "
            "a row for each sample, both branches of guidance included"
        )
    if mask.is_floating_point() or mask.is_complex():
        raise InvalidArgument(
            f"encoder_attention_mask is of {mask.dtype}; give bool, or integers of 0 and 1 as the tokenizer does"
        )
    if _is_readable(mask) and not bool(mask.any(dim=1).all()):
        raise InvalidArgument(
            "encoder_attention_mask has a row in which no token counts; a caption has at least its end token, and the "
            "null caption counts as many as the caption beside it"
        )


def check_frame_mask(mask: Tensor | None, batch: int, frames: int) -> None:
    """Refuse a mask of frames that is not [B, T] bool: `InvalidArgument`."""
    if mask is not None and (mask.dtype != torch.bool or list(mask.shape) != [batch, frames]):
        raise InvalidArgument(
            f"frame_mask is {mask.dtype} of shape {list(mask.shape)}; give bool [{batch}, {frames}], True where a "
            "frame is generated"
        )


def check_scalar(name: str, value: Any, batch: int, what: str, *, zero: bool = False) -> None:
    """Refuse what is not one positive number for the batch, or one for each sample of it [1 or B]: `InvalidArgument`.

    Whether it is positive is looked at where that costs no wait, see `_is_readable`.
    """
    if not isinstance(value, Tensor) or list(value.shape) not in ([1], [batch]):
        found = "missing" if value is None else list(value.shape) if isinstance(value, Tensor) else repr(value)
        raise InvalidArgument(f"{name} is {found}; give a tensor [1] or [{batch}] with {what}")
    if _is_readable(value) and not bool(((value > 0) | ((value == 0) & zero)).all()):
        raise InvalidArgument(f"{name} is {value.tolist()}; give {what}, {'not negative' if zero else 'positive'}")


def _is_readable(tensor: Tensor) -> bool:
    """Whether its numbers can be looked at without waiting for a device, or breaking a graph: on the CPU."""
    return not torch.compiler.is_compiling() and tensor.device.type == "cpu" and type(tensor) is Tensor
