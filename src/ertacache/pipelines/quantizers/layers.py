"""Which layers of a denoiser a quantiser takes, and what keeps it from taking them."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from itertools import accumulate

import torch
from torch import nn

from ertacache.errors import InvalidArgument, UnsupportedPipeline
from ertacache.pipelines.quantizers.scheme import Scheme

#: Names of layers within the blocks that stay as they are, in letters of either size: the modulation of norms and
#: whatever embeds, which are small and which published quantisers keep in 16 bits.
DEFAULT_SKIP = ("*norm*", "*modulation*", "*ada_ln*", "*adaln*", "*emb*")
_WHOLE = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def linears_of(denoiser: nn.Module, skip: Sequence[str]) -> dict[str, nn.Linear]:
    """The linear layers within repeated blocks, by their names, without those that a pattern of `skip` matches.

    What lies outside of the blocks (embedders, the projections at both ends) is in no list of modules, and is left out
    by that. A layer that has two names has both here.
    """
    lists = {name for name, module in denoiser.named_modules() if isinstance(module, nn.ModuleList)}
    return {
        name: module
        for name, module in denoiser.named_modules(remove_duplicate=False)
        if type(module) is nn.Linear and not lists.isdisjoint(_ancestors(name)) and not _matched(name, skip)
    }


def _ancestors(name: str) -> list[str]:
    """ "a", "a.b" and "a.b.c" of "a.b.c"."""
    return list(accumulate(name.split("."), "{}.{}".format))


def _matched(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name.lower(), pattern.lower()) for pattern in patterns)


def check_layers(denoiser: nn.Module, layers: dict[str, nn.Linear], scheme: Scheme, group: int) -> None:
    """Refuse what cannot be quantised, before anything is.

    Raises:
        UnsupportedPipeline: there is no layer to quantise.
        InvalidArgument: an adapter is loaded, or a layer has hooks, weights that are not there, not whole or not
            finite, or inputs that the groups do not divide.
    """
    if not layers:
        raise UnsupportedPipeline(
            f"{type(denoiser).__name__} has no linear layers in repeated blocks that are not skipped; skip fewer"
        )
    if any(type(module).__module__.startswith("peft.") for module in denoiser.modules()):
        raise InvalidArgument(
            f"{type(denoiser).__name__} carries an adapter; fuse it (pipe.fuse_lora(), pipe.unload_lora_weights()) or "
            "load it after quantising"
        )
    for name, layer in layers.items():
        if (problem := _problem(layer, scheme, group)) is not None:
            raise InvalidArgument(f"layer {name} {problem}")


def _problem(layer: nn.Linear, scheme: Scheme, group: int) -> str | None:
    """Why a layer cannot be quantised, after its name; None where it can."""
    weight = layer.weight
    if "forward" in (own := vars(layer)) or own["_forward_pre_hooks"] or own["_forward_hooks"]:
        return "has hooks, as offloading and casting set them; quantise first, then offload"
    if weight.is_meta:
        return "has no weights on this machine; quantise before offloading"
    if weight.dtype not in _WHOLE:
        return f"is {weight.dtype}, rounded already; load the model in float32, float16 or bfloat16"
    if not weight.isfinite().all():
        return "has weights that are NaN or infinite; load the model in float32 or bfloat16"
    if not scheme.divides(layer.in_features, group):
        return f"has {layer.in_features} inputs, which groups of {group} of {scheme} do not divide; skip it"
    return None


def check_skip(denoisers: Sequence[nn.Module], skip: Sequence[str]) -> tuple[str, ...]:
    """The patterns as a tuple; ones that are not the default's have to match a layer.

    Raises:
        InvalidArgument: a single text, or a pattern that matches nothing.
    """
    if isinstance(skip, str):
        raise InvalidArgument(f"skip is the single text {skip!r}; pass a list of patterns: [{skip!r}]")
    for pattern in skip:
        names = (name for denoiser in denoisers for name in linears_of(denoiser, ()))
        if pattern not in DEFAULT_SKIP and not any(_matched(name, [pattern]) for name in names):
            raise InvalidArgument(
                f"skip has {pattern!r}, which no linear layer in the blocks matches; give patterns such as "
                "'*.attn.to_q' or '*.0.*'"
            )
    return tuple(skip)
