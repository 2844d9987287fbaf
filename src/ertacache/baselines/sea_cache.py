"""SeaCache as diffusers has it."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from ertacache.baselines import diffusers_cache
from ertacache.baselines.baseline import Baseline, Knob, denoiser_class, steps_of
from ertacache.pipelines.models import denoiser_of, unwrapped

#: Computed at each end of a run, as published: there is nothing to reuse before and nothing to correct after.
_ENDS = 1


@dataclass(frozen=True)
class SeaCache(Baseline):
    """The residual of the block stack is reused while the filtered latent, added up over the steps, moves little.

    The filter keeps of each frequency the share that is signal at the step's σ (Eq. 7 of the paper). diffusers filters
    the latent itself, the authors the modulated tokens of the first block: thresholds are not on one scale.

    It acts in `WanPipeline` alone. It needs a way to the latent, which diffusers has for Wan and Cosmos 3, and the
    step, σ and T of every denoiser call, which no other pipeline of the known families gives; where one is missing,
    diffusers computes every step and only logs it.

    Args:
        threshold: of the summed relative change, as a share.
        order: 0 reuses the last residual, as published; 1 extrapolates from the last two, diffusers' default.
        max_consecutive: most steps that are reused in a row; 0 for no limit, as published. diffusers' default is 2.
    """

    key: ClassVar[str] = "seacache"
    title: ClassVar[str] = "SeaCache (diffusers)"
    paper: ClassVar[str] = "arXiv 2602.18993; diffusers' SeaCacheConfig"
    work: ClassVar[str] = "the embeddings and the head"
    knob: ClassVar[Knob] = Knob("threshold", 0.0, 2.0)
    batch: ClassVar[str] = "one decision for the whole batch, from the mean over its entries"

    threshold: float = 0.2
    order: int = 0
    max_consecutive: int = 0

    @classmethod
    def published(cls) -> Mapping[str, Mapping[str, Self]]:
        # The authors' settings for the 1.3B model at T = 50.
        return {"WanTransformer3DModel": {"slow": cls(0.2), "fast": cls(0.35)}}

    def refusal(self, pipe: Any, call: Mapping[str, Any]) -> str | None:
        from diffusers import WanPipeline

        if denoiser_class(pipe) != "WanTransformer3DModel":
            return f"diffusers has no SeaCache adapter for {denoiser_class(pipe)}; it would compute every step"
        config: Any = unwrapped(denoiser_of(pipe)).config
        if config.in_channels != config.out_channels:
            return (
                f"diffusers' SeaCache adapter for Wan needs as many input as output channels, not {config.in_channels} "
                f"and {config.out_channels}; it would compute every step"
            )
        if not isinstance(pipe, WanPipeline):
            return f"{type(pipe).__name__} does not tell the cache its step and sigma; it would compute every step"
        T = steps_of(call)
        return f"all {T} steps are among those that are always computed" if T <= 2 * _ENDS else None

    def applied(self, pipe: Any, call: Mapping[str, Any]) -> AbstractContextManager[None]:
        from diffusers import SeaCacheConfig

        config = SeaCacheConfig(
            threshold=self.threshold,
            residual_order=self.order,
            retention_steps=_ENDS,
            cache_end_steps=_ENDS,
            max_consecutive_cached=self.max_consecutive,
        )
        return diffusers_cache.cache_enabled(pipe, config)
