"""Which axis of every weight of a transformer counts what, so that a narrower model is a choice along axes."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ertacache.errors import UnsupportedPipeline
from ertacache.pipelines.models import unwrapped

#: What is chosen along one axis, in the order in which it lies there: names of spaces, \1 for the module's own.
_Axes = dict[int, tuple[str, ...]]

#: The channels of the residual stream.
WIDTH = "width"


@dataclass(frozen=True, slots=True)
class Layout:
    """How to prune one class.

    Attributes:
        block_lists: attributes of the block stacks, and the entries of the configuration that count them.
        rules: patterns of weight names, without `.weight` and `.bias`, with the spaces of their axes; the first match
            counts. A bias has the first axis only.
        feed_forward: the entry of the configuration with the width of the feed-forward layers; None where it is a
            multiple of the width of the model.
        unserved: entries that must not be set, since what they add has no rules.
    """

    block_lists: tuple[tuple[str, str], ...]
    rules: tuple[tuple[str, _Axes], ...]
    feed_forward: str | None = None
    unserved: tuple[str, ...] = ()


_FLUX = Layout(
    block_lists=(("transformer_blocks", "num_layers"), ("single_transformer_blocks", "num_single_layers")),
    rules=(
        (r"(time_text_embed\.\w+)\.linear_1", {0: (r"\1",)}),
        (r"(time_text_embed\.\w+)\.linear_2", {0: ("condition",), 1: (r"\1",)}),
        (r"(x_embedder|context_embedder)", {0: (WIDTH,)}),
        (r"(.*)\.(norm1|norm1_context)\.linear", {0: (WIDTH,) * 6, 1: ("condition",)}),
        (r"(.*)\.norm\.linear", {0: (WIDTH,) * 3, 1: ("condition",)}),
        (r"(.*\.attn)\.(to_[qkv]|add_[qkv]_proj)", {0: (r"\1",), 1: (WIDTH,)}),
        (r"(.*\.attn)\.(to_out\.0|to_add_out)", {0: (WIDTH,), 1: (r"\1",)}),
        (r".*\.attn\.norm_\w+", {}),
        (r"(.*\.(ff|ff_context))\.net\.0\.proj", {0: (r"\1",), 1: (WIDTH,)}),
        (r"(.*\.(ff|ff_context))\.net\.2", {0: (WIDTH,), 1: (r"\1",)}),
        (r"(.*\.proj_mlp)", {0: (r"\1",), 1: (WIDTH,)}),
        (r"(.*)\.proj_out", {0: (WIDTH,), 1: (r"\1.attn", r"\1.proj_mlp")}),
        (r"norm_out\.linear", {0: (WIDTH,) * 2, 1: ("condition",)}),
        (r"proj_out", {1: (WIDTH,)}),
    ),
)
_WAN = Layout(
    block_lists=(("blocks", "num_layers"),),
    rules=(
        (r"patch_embedding", {0: (WIDTH,)}),
        (r"(condition_embedder\.(time|text)_embedder)\.linear_1", {0: (r"\1",)}),
        (r"(condition_embedder\.time_embedder)\.linear_2", {0: (WIDTH,), 1: (r"\1",)}),
        (r"(condition_embedder\.text_embedder)\.linear_2", {0: ("text",), 1: (r"\1",)}),
        (r"condition_embedder\.time_proj", {0: (WIDTH,) * 6, 1: (WIDTH,)}),
        (r"(.*\.)?scale_shift_table", {2: (WIDTH,)}),
        (r"(.*\.attn2)\.to_[kv]", {0: (r"\1",), 1: ("text",)}),
        (r"(.*\.attn[12])\.to_[qkv]", {0: (r"\1",), 1: (WIDTH,)}),
        (r"(.*\.attn[12])\.norm_[qk]", {0: (r"\1",)}),
        (r"(.*\.attn[12])\.to_out\.0", {0: (WIDTH,), 1: (r"\1",)}),
        (r".*\.norm2", {0: (WIDTH,)}),
        (r"(.*\.ffn)\.net\.0\.proj", {0: (r"\1",), 1: (WIDTH,)}),
        (r"(.*\.ffn)\.net\.2", {0: (WIDTH,), 1: (r"\1",)}),
        (r"proj_out", {1: (WIDTH,)}),
    ),
    feed_forward="ffn_dim",
    unserved=("image_dim", "added_kv_proj_dim"),
)
_LAYOUTS = {"FluxTransformer2DModel": _FLUX, "WanTransformer3DModel": _WAN}


def layout_of(model: nn.Module) -> Layout:
    """The layout of a transformer.

    Raises:
        UnsupportedPipeline: another class, or one with parts that have no rules: image embeddings, adapters, fused or
            quantised weights.
    """
    inner = unwrapped(model)
    name = type(inner).__name__
    layout = _LAYOUTS.get(name)
    if layout is None:
        raise UnsupportedPipeline(f"cannot prune {name}; there are {', '.join(_LAYOUTS)}")
    config: Mapping[str, object] = getattr(inner, "config", {})
    for entry in layout.unserved:
        if config.get(entry) is not None:
            raise UnsupportedPipeline(f"cannot prune {name} with {entry}={config[entry]}; only models without it")
    for key, tensor in inner.state_dict().items():
        if _rule(layout, key) is None or not tensor.is_floating_point() or tensor.itemsize == 1:
            raise UnsupportedPipeline(
                f"cannot prune {name} with the weight {key} ({tensor.dtype}); unload adapters, unfuse projections and "
                "load it unquantised"
            )
    return layout


def axes_of(layout: Layout, key: str, tensor: Tensor) -> _Axes:
    """The spaces along each axis of a weight that has any."""
    rule = _rule(layout, key)
    return {axis: spaces for axis, spaces in (rule or {}).items() if axis < tensor.ndim}


def sizes_of(layout: Layout, state: Mapping[str, Tensor]) -> dict[str, int]:
    """How long every space is."""
    found: dict[str, int] = {}
    for key, tensor in state.items():
        for axis, spaces in axes_of(layout, key, tensor).items():
            if len(set(spaces)) == 1:
                found[spaces[0]] = tensor.shape[axis] // len(spaces)
    return found


def readers(layout: Layout, state: Mapping[str, Tensor], space: str) -> Iterator[tuple[str, slice]]:
    """The weights [out, in] that read a space, with its place along their second axis."""
    sizes = sizes_of(layout, state)
    for key, tensor in state.items():
        start = 0
        for name in axes_of(layout, key, tensor).get(1, ()):
            if name == space:
                yield key, slice(start, start + sizes[name])
            start += sizes[name]


def chosen(layout: Layout, state: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of all weights with what is kept of every space.

    Args:
        kept: indexes along each space, ascending; a space that is not named is kept whole.
    """
    sizes = sizes_of(layout, state)
    result: dict[str, Tensor] = {}
    for key, tensor in state.items():
        picked = tensor.detach()
        for axis, spaces in axes_of(layout, key, tensor).items():
            start, parts = 0, list[Tensor]()
            for name in spaces:
                parts.append(start + kept.get(name, torch.arange(sizes[name])))
                start += sizes[name]
            picked = picked.index_select(axis, torch.cat(parts).to(tensor.device))
        result[key] = picked.clone()
    return result


def _rule(layout: Layout, key: str) -> _Axes | None:
    name = key.removesuffix(".weight").removesuffix(".bias")
    for pattern, axes in layout.rules:
        if match := re.fullmatch(pattern, name):
            return {axis: tuple(match.expand(space) for space in spaces) for axis, spaces in axes.items()}
    return None
