"""The caches that diffusers has, on a denoiser for the length of a `with` block."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ertacache.errors import CacheConflict
from ertacache.pipelines.models import blocks_of, denoiser_of, unwrapped
from ertacache.runtime.hooks import attachment_of


def refusal(pipe: Any) -> str | None:
    """Why diffusers cannot cache this denoiser; None where it can."""
    from diffusers.models.cache_utils import CacheMixin

    denoiser = unwrapped(denoiser_of(pipe))
    return None if isinstance(denoiser, CacheMixin) else f"{type(denoiser).__name__} has no enable_cache"


def block_refusal(pipe: Any) -> str | None:
    """Why diffusers cannot skip this denoiser's blocks: neither it nor this package knows them; None where it can."""
    denoiser = unwrapped(denoiser_of(pipe))
    if _has_known_lists(denoiser) or blocks_of(denoiser):
        return None
    return f"diffusers does not know the block lists of {type(denoiser).__name__} by their names"


def _has_known_lists(denoiser: nn.Module) -> bool:
    import diffusers.hooks._common as common

    known: tuple[str, ...] = vars(common)["_ALL_TRANSFORMER_BLOCK_IDENTIFIERS"]
    return any(name in known and isinstance(part, nn.ModuleList) for name, part in denoiser.named_children())


@contextmanager
def _lists_known(denoiser: nn.Module) -> Generator[None]:
    """Inside, diffusers finds the blocks, in the order they run, also where their lists have other names."""
    if _has_known_lists(denoiser) or not (blocks := blocks_of(denoiser)):
        yield
        return
    denoiser.transformer_blocks = nn.ModuleList(blocks)
    try:
        yield
    finally:
        del denoiser.transformer_blocks


def refuse_profile(pipe: Any) -> None:
    """Refuse a pipeline that a profile is applied to.

    Raises:
        CacheConflict: there is one.
    """
    if attachment_of(pipe) is not None:
        raise CacheConflict(
            f"a profile is applied to this {type(pipe).__name__}; leave its `with` block first, or call "
            "ertacache.disable(pipe)"
        )


@contextmanager
def cache_enabled(pipe: Any, config: Any) -> Generator[None]:
    """`enable_cache(config)`, and everything off again at the end, also after an exception.

    Raises:
        CacheConflict: another cache of diffusers, or a profile, is on.
    """
    denoiser: Any = unwrapped(denoiser_of(pipe))
    refuse_profile(pipe)
    if denoiser.is_cache_enabled:
        raise CacheConflict(
            f"a cache is already enabled on this {type(denoiser).__name__}; call disable_cache() on it first"
        )
    with _lists_known(denoiser):
        denoiser.enable_cache(config)
    try:
        yield
    finally:
        denoiser.disable_cache()
