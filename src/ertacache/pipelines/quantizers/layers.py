"""Which layers of a denoiser a quantiser takes, and what keeps it from taking them."""

from collections.abc import Iterable, Mapping, Sequence, Set
from fnmatch import fnmatchcase
from itertools import accumulate
from typing import Any

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
    if any(map(_is_adapter, denoiser.modules())):
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
    if _hooked(layer):
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


def _hooked(layer: nn.Linear) -> bool:
    own = vars(layer)
    return bool("forward" in own or own["_forward_pre_hooks"] or own["_forward_hooks"])


def _is_adapter(module: nn.Module) -> bool:
    return type(module).__module__.startswith("peft.")


def check_undo(denoisers: Sequence[nn.Module], layers: Mapping[str, nn.Linear]) -> None:
    """Refuse to undo what was built upon since.

    Args:
        layers: the quantised ones.

    Raises:
        InvalidArgument: an adapter is fused into quantised weights, or a layer has hooks.
    """
    for denoiser in denoisers:
        if any(_is_adapter(module) and getattr(module, "merged", False) for module in denoiser.modules()):
            raise InvalidArgument(
                f"{type(denoiser).__name__} has an adapter fused into its quantised weights; call pipe.unfuse_lora(), "
                "and undo then"
            )
    for name, layer in layers.items():
        if _hooked(layer):
            raise InvalidArgument(
                f"layer {name} has hooks, as offloading and casting set them; remove them (pipe.remove_all_hooks()), "
                "and undo then"
            )


def check_skip(denoisers: Sequence[nn.Module], skip: Sequence[str]) -> tuple[str, ...]:
    """The patterns as a tuple; ones that are not the default's have to match a layer.

    Raises:
        InvalidArgument: a single text, no texts, or a pattern that matches nothing.
    """
    given: Any = skip
    if isinstance(given, str):
        raise InvalidArgument(f"skip is the single text {skip!r}; pass a list of patterns: [{skip!r}]")
    patterns = tuple[Any, ...](given) if isinstance(given, Iterable) else (given,)
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise InvalidArgument(f"skip is {given!r}; pass a list of patterns, such as ['*.attn.to_q']")
    # A set is iterated in an order of its own in every process, and the order is part of what ties a profile.
    patterns = tuple(sorted(patterns)) if isinstance(given, Set) else patterns
    for pattern in patterns:
        names = (name for denoiser in denoisers for name in linears_of(denoiser, ()))
        if pattern not in DEFAULT_SKIP and not any(_matched(name, [pattern]) for name in names):
            raise InvalidArgument(
                f"skip has {pattern!r}, which no linear layer in the blocks matches; give patterns such as "
                "'*.attn.to_q' or '*.0.*'"
            )
    return patterns
