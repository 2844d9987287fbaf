"""FirstBlockCache as diffusers has it."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

from ertacache.baselines import diffusers_cache
from ertacache.baselines.baseline import Baseline, Knob


@dataclass(frozen=True)
class FirstBlockCache(Baseline):
    """The first block runs in every step; while its residual moves by less than a threshold, the others are reused.

    Args:
        threshold: relative change of the first block's residual.
    """

    key: ClassVar[str] = "first-block-cache"
    title: ClassVar[str] = "FirstBlockCache (diffusers)"
    paper: ClassVar[str] = "ParaAttention; diffusers' FirstBlockCacheConfig"
    work: ClassVar[str] = "the embeddings, the first block and the head"
    knob: ClassVar[Knob] = Knob("threshold", 0.0, 2.0)
    batch: ClassVar[str] = "one decision for the whole batch, from the mean over its entries"

    threshold: float = 0.05

    def refusal(self, pipe: Any, call: Mapping[str, Any]) -> str | None:
        return diffusers_cache.refusal(pipe) or diffusers_cache.block_refusal(pipe)

    def applied(self, pipe: Any, call: Mapping[str, Any]) -> AbstractContextManager[None]:
        from diffusers import FirstBlockCacheConfig

        return diffusers_cache.cache_enabled(pipe, FirstBlockCacheConfig(threshold=self.threshold))
