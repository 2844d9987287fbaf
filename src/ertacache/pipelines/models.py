"""What differs from model family to model family, as one row of data each."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from ertacache.errors import UnsupportedPipeline

#: What an attention module attends to. "self" is within a frame, or over all of them; "temporal" along them.
AttentionKind = Literal["self", "temporal", "cross", "joint"]


@dataclass(frozen=True, slots=True)
class Family:
    """How to serve one denoiser class.

    Attributes:
        denoiser: class name of the denoiser.
        channel_axis: axis of the channels in what the solver integrates, batch axis included, as a negative
            index where the layout fixes it from the end.
        block_lists: attribute names of the block stacks, in the order they run; empty where site `hidden` is
            not served.
        alternating: whether the lists run in turn, a block of each, and not one list after the other.
        surplus: whether the output has channels after those of the latent, which the pipeline drops: the variance of
            the noise, of which its solver makes no use.
        temporal: those of `block_lists` whose "self" attention is along the frames of a video, not within one.
        attentions: attribute of each attention module in a block, with what it attends to: "self" (image or
            video tokens only), "cross" (text only) or "joint" (both at once).
    """

    denoiser: str
    channel_axis: int
    block_lists: tuple[str, ...] = ()
    alternating: bool = False
    surplus: bool = False
    temporal: tuple[str, ...] = ()
    attentions: tuple[tuple[str, Literal["self", "cross", "joint"]], ...] = ()


FAMILIES = (
    Family(
        "FluxTransformer2DModel",
        channel_axis=-1,
        block_lists=("transformer_blocks", "single_transformer_blocks"),
        attentions=(("attn", "joint"),),
    ),
    Family(
        "WanTransformer3DModel",
        channel_axis=1,
        block_lists=("blocks",),
        attentions=(("attn1", "self"), ("attn2", "cross")),
    ),
    Family(
        "CogVideoXTransformer3DModel",
        channel_axis=2,
        block_lists=("transformer_blocks",),
        attentions=(("attn1", "joint"),),
    ),
    Family(
        "STDiT3Transformer3DModel",
        channel_axis=1,
        block_lists=("spatial_blocks", "temporal_blocks"),
        alternating=True,
        surplus=True,
        temporal=("temporal_blocks",),
        attentions=(("attn", "self"), ("cross_attn", "cross")),
    ),
)

#: Any other denoiser: sites `output` and `guided`, channels where torch puts them.
GENERIC = Family("*", channel_axis=1)
#: One whose solver integrates tokens [B, N, C], as of Qwen-Image, FLUX.2, Chroma and LTX-Video.
_GENERIC_TOKENS = Family("*", channel_axis=-1)

#: Pipelines that take one prompt per call, and that in no list.
_ONE_PROMPT = ("WanVACEPipeline",)
#: What the query projection of an attention module is called, alone or with others in one.
QUERIES = ("to_q", "qkv", "q_linear")
#: Modules of pipelines that are no part of diffusers and are run as its own.
PIPELINE_MODULES = ("ertacache.opensora.",)


def denoisers_of(pipe: Any) -> tuple[nn.Module, ...]:
    """The modules of which a pipeline calls one in every step, in the order in which they take over from each other.

    That is one but for Wan2.2's, whose `transformer_2` takes over below `boundary_ratio`; a pipeline without that
    ratio calls its `transformer` only.

    Raises:
        UnsupportedPipeline: there is none, or one of each kind.
    """
    found = [name for name in ("transformer", "transformer_2", "unet") if _has(pipe, name)]
    config: Any = getattr(pipe, "config", {})
    if "transformer" in found and "boundary_ratio" in config and config["boundary_ratio"] is None:
        found = [name for name in found if name != "transformer_2"]
    if not found or ("unet" in found and len(found) > 1):
        raise UnsupportedPipeline(
            f"{type(pipe).__name__} has {found or 'no'} denoiser modules; pass a diffusers pipeline with "
            "exactly one `transformer` or `unet`, or with a `transformer` and a `transformer_2`"
        )
    return tuple(getattr(pipe, name) for name in found)


def denoiser_of(pipe: Any) -> nn.Module:
    """The one module that a pipeline calls in every step.

    Raises:
        UnsupportedPipeline: there is none, or there are several.
    """
    first, *others = denoisers_of(pipe)
    if others:
        raise UnsupportedPipeline(
            f"{type(pipe).__name__} has {1 + len(others)} denoisers that take over from each other; this method "
            "serves one: use a profile (ertacache.calibrate), which serves both"
        )
    return first


def boundary_of(pipe: Any) -> float | None:
    """The share of the noise below which a second denoiser takes over, where a pipeline has one."""
    config: Any = getattr(pipe, "config", {})
    return config["boundary_ratio"] if "boundary_ratio" in config else None


def takes_one_prompt(pipe: Any) -> bool:
    """Whether a call of a pipeline takes one prompt, and that as it is, not in a list."""
    return type(pipe).__name__ in _ONE_PROMPT


def _has(pipe: Any, name: str) -> bool:
    return isinstance(getattr(pipe, name, None), nn.Module)


def unwrapped(denoiser: nn.Module) -> nn.Module:
    """The module itself where torch.compile has wrapped it."""
    return getattr(denoiser, "_orig_mod", denoiser)


def family_of(denoiser: nn.Module) -> Family:
    """The row of a denoiser, or the generic one."""
    name = type(unwrapped(denoiser)).__name__
    return next((family for family in FAMILIES if family.denoiser == name), GENERIC)


def family_for(denoiser: nn.Module, ndim: int) -> Family:
    """The row of a denoiser whose solver integrates latents of `ndim` axes, batch axis included."""
    family = family_of(denoiser)
    return _GENERIC_TOKENS if family is GENERIC and ndim == 3 else family


def blocks_of(denoiser: nn.Module) -> list[nn.Module]:
    """Its blocks in the order they run; empty where they are not known."""
    inner = unwrapped(denoiser)
    family = family_of(inner)
    lists: list[Iterable[nn.Module]] = [getattr(inner, name) for name in family.block_lists]
    return [block for group in (zip(*lists, strict=True) if family.alternating else lists) for block in group]


def attention_modules(denoiser: nn.Module) -> list[tuple[nn.Module, AttentionKind]]:
    """The attention modules of its blocks in the order they run, with their kinds; empty where they are not known."""
    inner = unwrapped(denoiser)
    family = family_of(inner)
    temporal = {block for name in family.temporal for block in getattr(inner, name)}
    return [
        (getattr(block, name), "temporal" if kind == "self" and block in temporal else kind)
        for block in blocks_of(inner)
        for name, kind in family.attentions
    ]


def attention_kinds(denoiser: nn.Module) -> set[AttentionKind]:
    """The kinds that it has."""
    return {kind for _, kind in attention_modules(denoiser)}
