"""What differs from model family to model family, as one row of data each."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from ertacache.errors import UnsupportedPipeline


@dataclass(frozen=True, slots=True)
class Family:
    """How to serve one denoiser class.

    Attributes:
        denoiser: class name of the denoiser.
        channel_axis: axis of the channels in what the solver integrates, batch axis included, as a negative
            index where the layout fixes it from the end.
        block_lists: attribute names of the block stacks, in the order they run; empty where site `hidden` is
            not served.
        attentions: attribute of each attention module in a block, with what it attends to: "self" (image or
            video tokens only), "cross" (text only) or "joint" (both at once).
    """

    denoiser: str
    channel_axis: int
    block_lists: tuple[str, ...] = ()
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
)

#: Any other denoiser: sites `output` and `guided`, channels where torch puts them.
GENERIC = Family("*", channel_axis=1)


def denoiser_of(pipe: Any) -> nn.Module:
    """The one module that a pipeline calls in every step.

    Raises:
        UnsupportedPipeline: there is none, or there are several.
    """
    found = [name for name in ("transformer", "unet") if isinstance(getattr(pipe, name, None), nn.Module)]
    if len(found) != 1 or isinstance(getattr(pipe, "transformer_2", None), nn.Module):
        raise UnsupportedPipeline(
            f"{type(pipe).__name__} has {found or 'no'} denoiser modules; pass a diffusers pipeline with "
            "exactly one `transformer` or `unet`"
        )
    return getattr(pipe, found[0])


def unwrapped(denoiser: nn.Module) -> nn.Module:
    """The module itself where torch.compile has wrapped it."""
    return getattr(denoiser, "_orig_mod", denoiser)


def family_of(denoiser: nn.Module) -> Family:
    """The row of a denoiser, or the generic one."""
    name = type(unwrapped(denoiser)).__name__
    return next((family for family in FAMILIES if family.denoiser == name), GENERIC)


def blocks_of(denoiser: nn.Module) -> list[nn.Module]:
    """Its blocks in the order they run; empty where they are not known."""
    inner = unwrapped(denoiser)
    return [block for name in family_of(inner).block_lists for block in getattr(inner, name)]
