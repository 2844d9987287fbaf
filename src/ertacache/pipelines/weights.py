"""Names for the weights of a pipeline, from a few entries of every tensor: the whole of none is read."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ertacache.pipelines.models import denoisers_of, unwrapped
from ertacache.profile.fingerprint import text_hash
from ertacache.profile.weights import ENTRIES, Fingerprint

#: Entries of each tensor that name the weights of a whole pipeline.
_SAMPLED = 64
#: What `fuse_qkv_projections` makes of weights that are there already.
FUSED = {"to_qkv", "to_kv", "to_added_qkv"}
#: What holds one number of a weight in each of its elements; anything narrower is packed or rounded on purpose.
_WHOLE = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def fingerprint_of(pipe: Any) -> str:
    """The fingerprint of the weights of a pipeline's denoisers; empty where none of them can be read.

    The same for one checkpoint in float32, bfloat16 and float16, with fused projections, compiled, and offloaded. What
    is quantised, sharded or on a disk is left out.
    """
    weights = dict(sorted(item for n, part in enumerate(denoisers_of(pipe)) for item in _weights(part, f"{n}.")))
    sampled = _sampled([one if one is not None and one.dtype in _WHOLE else None for one in weights.values()], ENTRIES)
    if all(values is None for values in sampled):
        return ""
    unknown = torch.full((ENTRIES,), torch.nan)
    entries = torch.stack([unknown if values is None else values for values in sampled]).bfloat16()
    return str(Fingerprint(text_hash(list(weights)), entries))


def weights_hash(pipe: Any) -> str:
    """A name for the weights of all parts of a pipeline: a few entries of every tensor, exact on any machine."""
    parts = sorted((name, part) for name, part in vars(pipe).items() if isinstance(part, nn.Module))
    named = [item for name, part in parts for item in _weights(part, f"{name}.")]
    digest = hashlib.sha256()
    for (name, tensor), values in zip(named, _sampled([one for _, one in named], _SAMPLED), strict=True):
        kind = "" if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}"
        digest.update(f"{name} {kind} {None if values is None else values.tolist()}".encode())
    return digest.hexdigest()


def _weights(model: nn.Module, prefix: str) -> Iterator[tuple[str, Tensor | None]]:
    """Every weight by its name, in the order of the model; None for one whose numbers are not to be had."""
    on_disk = _on_disk(unwrapped(model))
    for place, module in unwrapped(model).named_modules():
        own = dict(module.named_parameters(recurse=False, remove_duplicate=False))
        computed = vars(module)["_non_persistent_buffers_set"]
        own |= {name: one for name, one in module.named_buffers(recurse=False) if name not in computed}
        for name, weight in own.items():
            path = [part for part in (*place.split("."), name) if part and part != "_orig_mod"]
            if FUSED.isdisjoint(path):
                held = None if id(weight) in on_disk else _held(module, name) if weight.is_meta else weight
                yield prefix + ".".join(path), _readable(held)


def _on_disk(model: nn.Module) -> set[int]:
    """The tensors whose numbers diffusers' group offload keeps in a file, and leaves unset between two calls."""
    registries = (getattr(module, "_diffusers_hook", None) for module in model.modules())
    hooks = (hook for registry in registries if registry is not None for hook in registry.hooks.values())
    found: list[Any] = [getattr(hook, "group", None) for hook in hooks]
    groups = [group for group in found if getattr(group, "offload_to_disk_path", None)]
    return {
        id(tensor)
        for group in groups
        for part in (*(tensors for one in group.modules for tensors in (one.parameters(), one.buffers())),
                     group.parameters, group.buffers)
        for tensor in part
    }  # fmt: skip


def _held(module: nn.Module, name: str) -> Tensor | None:
    """Where accelerate's sequential offload keeps a weight in the host's memory: the map of the module's hook."""
    outer = getattr(module, "_hf_hook", None)
    for hook in getattr(outer, "hooks", (outer,)):
        kept = getattr(hook, "weights_map", None)
        # A map of files would read the whole weight.
        if kept is not None and isinstance(getattr(kept, "dataset", kept), dict):
            return kept.get(name)
    return None


def _readable(weight: Tensor | None) -> Tensor | None:
    """The weight as a plain tensor; None for a packed or sharded one, which is a class of its own."""
    if weight is None:
        return None
    plain = weight.detach()
    return plain if type(plain) is Tensor and not plain.is_meta and plain.numel() else None


def _sampled(weights: Sequence[Tensor | None], count: int) -> list[Tensor | None]:
    """`count` entries of each tensor as float32 on the CPU, spaced evenly; one transfer for each device and dtype."""
    groups = defaultdict[tuple[torch.device, torch.dtype], list[tuple[int, Tensor]]](list)
    for n, weight in enumerate(weights):
        if weight is not None:  # float8 can only be read as bytes
            numbers = weight.view(torch.uint8) if weight.itemsize == 1 else weight
            groups[numbers.device, numbers.dtype].append((n, numbers))
    found: list[Tensor | None] = [None] * len(weights)
    for (device, _), group in groups.items():
        steps = torch.arange(1, count + 1, device=device)
        places = {size: steps * size // (count + 1) for size in {numbers.numel() for _, numbers in group}}
        rows = torch.stack([numbers.take(places[numbers.numel()]) for _, numbers in group]).float().cpu()
        for (n, _), row in zip(group, rows, strict=True):
            found[n] = row
    return found
