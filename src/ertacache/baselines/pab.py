"""Pyramid Attention Broadcast."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from ertacache.baselines import attention_reuse, diffusers_cache, implementation
from ertacache.baselines.attention_reuse import AttentionReuse, Kind, Reuse
from ertacache.baselines.baseline import Baseline, Knob, denoiser_class
from ertacache.baselines.implementation import Implementation
from ertacache.errors import UnsupportedPipeline
from ertacache.pipelines.models import denoiser_of, family_of
from ertacache.runtime.hooks import attached


@dataclass(frozen=True)
class PAB(Baseline):
    """Inside of a window of timesteps an attention module runs in every n-th step only; the others repeat its output.

    Temporal attention and the broadcast of MLPs, which the paper has for Open-Sora, have no place in the families
    here.

    Args:
        self_range: n of self-attention; joint attention of image and text counts as that, as diffusers has it.
        cross_range: n of cross-attention; None computes it in every step.
        window: timesteps (low, high), 0 to 1000, inside of which outputs are repeated.
        implementation: diffusers' own, which is wrong under two calls per step, or ours.

    Raises:
        InvalidArgument: a range below 1, an empty window or another implementation.
    """

    key: ClassVar[str] = "pab"
    title: ClassVar[str] = "PAB"
    paper: ClassVar[str] = "Pyramid Attention Broadcast, arXiv 2408.12588"
    work: ClassVar[str] = "everything but attention: embeddings, norms, MLPs and the head"
    knob: ClassVar[Knob] = Knob("self_range", 2, 12, whole=True)

    self_range: int = 2
    cross_range: int | None = None
    window: tuple[float, float] = (100, 800)
    implementation: Implementation = "auto"

    def __post_init__(self) -> None:
        implementation.check_implementation(self.implementation)
        self._rules()

    @classmethod
    def published(cls) -> Mapping[str, Mapping[str, Self]]:
        """VideoSys' settings, which are the authors'; diffusers' defaults where they have none."""
        return {
            "CogVideoXTransformer3DModel": {"videosys": cls(window=(100, 850)), "diffusers": cls()},
            "FluxTransformer2DModel": {"diffusers": cls()},
            "WanTransformer3DModel": {"diffusers": cls()},
        }

    def refusal(self, pipe: Any, call: Mapping[str, Any]) -> str | None:
        if reason := attention_reuse.refusal(pipe):
            return reason
        kinds = {kind for _, kind in family_of(denoiser_of(pipe)).attentions}
        if self.cross_range is not None and "cross" not in kinds:
            return f"{denoiser_class(pipe)} has no cross-attention; leave cross_range at None"
        if self.self_range == 1 and self.cross_range in (None, 1):
            return "ranges of 1 reuse nothing"
        return implementation.against_diffusers(pipe, call) if self.implementation == "diffusers" else None

    def applied(self, pipe: Any, call: Mapping[str, Any]) -> AbstractContextManager[Any]:
        """As `Baseline.applied`.

        Raises:
            UnsupportedPipeline: for the reason that `refusal` gives.
        """
        if reason := self.refusal(pipe, call):
            raise UnsupportedPipeline(f"{self.key}: {reason}")
        if not implementation.by_diffusers(self.implementation, pipe, call):
            return attached(pipe, AttentionReuse(self._rules()))
        from diffusers import PyramidAttentionBroadcastConfig

        window: Any = self.window
        config = PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=self.self_range,
            cross_attention_block_skip_range=self.cross_range,
            spatial_attention_timestep_skip_range=window,
            cross_attention_timestep_skip_range=window,
            current_timestep_callback=implementation.timestep_of(pipe),  # pyright: ignore[reportArgumentType]
        )
        return diffusers_cache.cache_enabled(pipe, config)

    def _rules(self) -> dict[Kind, Reuse]:
        own = Reuse(self.self_range, self.window)
        cross: dict[Kind, Reuse] = {}
        if self.cross_range is not None:
            cross["cross"] = Reuse(self.cross_range, self.window)
        return {"self": own, "joint": own, **cross}
