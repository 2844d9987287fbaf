"""TaylorSeer as diffusers has it, on all modules that the published method predicts."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from ertacache.baselines import diffusers_cache
from ertacache.baselines.baseline import Baseline, Knob, denoiser_class, steps_of
from ertacache.pipelines.models import denoiser_of, unwrapped


@dataclass(frozen=True, slots=True)
class _Parts:
    """Patterns of module names within one denoiser class.

    Attributes:
        predicted: modules whose output is predicted: attention and feed-forward, as published.
        dropped: modules that feed a predicted one and nothing else; they return zeros in a predicted step.
    """

    predicted: tuple[str, ...]
    dropped: tuple[str, ...] = ()


#: A single block of FLUX projects attention and feed-forward together, so the published method predicts its `proj_out`.
_PARTS = {
    "FluxTransformer2DModel": _Parts(
        predicted=(r"transformer_blocks\.\d+\.(attn|ff|ff_context)", r"single_transformer_blocks\.\d+\.proj_out"),
        dropped=(r"single_transformer_blocks\.\d+\.(attn|proj_mlp)",),
    ),
    "WanTransformer3DModel": _Parts(predicted=(r"blocks\.\d+\.(attn1|attn2|ffn)",)),
    "CogVideoXTransformer3DModel": _Parts(predicted=(r"transformer_blocks\.\d+\.(attn1|ff)",)),
    "STDiT3Transformer3DModel": _Parts(predicted=(r"(spatial|temporal)_blocks\.\d+\.(attn|cross_attn|mlp)",)),
}


@dataclass(frozen=True)
class TaylorSeer(Baseline):
    """Every attention and feed-forward output is extrapolated from its last computed values by a Taylor series.

    In step s, with divided differences Δʲ of the last computed outputs and c the last computed step, a module returns
    Σ_j Δʲ (s − c)ʲ / j!. Without patterns, diffusers hooks the attention of FLUX only, and nothing at all on Wan and
    CogVideoX; the rows above name what the authors' code predicts.

    diffusers computes the steps before `warmup`, then `warmup` + 1 and every `interval` steps from there; the authors
    count the interval from the last step of the warm-up. After three steps of it and with N = 6 that is 4, 10, 16, ...
    here and 8, 14, 20, ... there. A warm-up of -1 gives the schedule of both without one: 0, N, 2N, ...

    Args:
        interval: N; steps from one computed step to the next.
        order: highest power of the series.
        warmup: diffusers' `disable_cache_before_step`; the steps before it are computed.
    """

    key: ClassVar[str] = "taylorseer"
    title: ClassVar[str] = "TaylorSeer (diffusers)"
    paper: ClassVar[str] = "arXiv 2503.06923; diffusers' TaylorSeerCacheConfig"
    work: ClassVar[str] = "the embeddings, the modulation of every block and the head"
    knob: ClassVar[Knob] = Knob("interval", 1, 15, whole=True)

    interval: int = 5
    order: int = 1
    warmup: int = 3

    @classmethod
    def published(cls) -> Mapping[str, Mapping[str, Self]]:
        # T = 50. FLUX: 3.57 and 4.99 times fewer operations. Wan: what the authors' code for it sets.
        return {
            "FluxTransformer2DModel": {"slow": cls(4, order=2), "fast": cls(6, order=1)},
            "WanTransformer3DModel": {"fast": cls(5, order=1, warmup=-1)},
        }

    def variants(self) -> tuple[Self, ...]:
        """Every order up to 2."""
        return tuple(replace(self, order=order) for order in sorted({self.order, 0, 1, 2}))

    def refusal(self, pipe: Any, call: Mapping[str, Any]) -> str | None:
        if reason := diffusers_cache.refusal(pipe):
            return reason
        if denoiser_class(pipe) not in _PARTS:
            return f"the attention and feed-forward modules of {denoiser_class(pipe)} are not known"
        T = steps_of(call)
        return f"all {T} steps are warm-up; set warmup below {T}" if self.warmup >= T else None

    def applied(self, pipe: Any, call: Mapping[str, Any]) -> AbstractContextManager[None]:
        from diffusers import TaylorSeerCacheConfig

        parts = _PARTS[denoiser_class(pipe)]
        config = TaylorSeerCacheConfig(
            cache_interval=self.interval,
            disable_cache_before_step=self.warmup,
            max_order=self.order,
            # In the dtype of the outputs, as published; diffusers' bfloat16 would round those of a wider model.
            taylor_factors_dtype=unwrapped(denoiser_of(pipe)).dtype,  # pyright: ignore[reportArgumentType]
            cache_identifiers=list(parts.predicted),
            skip_predict_identifiers=list(parts.dropped),
        )
        return diffusers_cache.cache_enabled(pipe, config)
