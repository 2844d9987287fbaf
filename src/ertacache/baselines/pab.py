"""Pyramid Attention Broadcast."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from ertacache.baselines import attention_reuse, diffusers_cache, implementation
from ertacache.baselines.attention_reuse import AttentionReuse, Reuse
from ertacache.baselines.baseline import Baseline, Knob, denoiser_class
from ertacache.baselines.implementation import Implementation
from ertacache.errors import UnsupportedPipeline
from ertacache.pipelines.models import AttentionKind, attention_kinds, denoiser_of, family_of
from ertacache.runtime.hooks import attached

#: Ranges of self-, temporal and cross-attention.
_OPEN_SORA = ((2, 4, 6), (3, 5, 7), (5, 7, 9))


@dataclass(frozen=True)
class PAB(Baseline):
    """Inside of a window of timesteps an attention module runs in every n-th step only; the others repeat its output.

    The broadcast of MLPs, which the authors have for three timesteps of Open-Sora's 30, is left out.

    Args:
        self_range: n of self-attention; joint attention of image and text counts as that, as diffusers has it.
        temporal_range: n of attention along the frames where blocks have it alone, as in Open-Sora; None is self_range.
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
    temporal_range: int | None = None
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
            "STDiT3Transformer3DModel": {
                "/".join(map(str, ranges)): cls(*ranges, window=(450, 930)) for ranges in _OPEN_SORA
            },
        }

    def refusal(self, pipe: Any, call: Mapping[str, Any]) -> str | None:
        if reason := attention_reuse.refusal(pipe):
            return reason
        kinds = attention_kinds(denoiser_of(pipe))
        if self.cross_range is not None and "cross" not in kinds:
            return f"{denoiser_class(pipe)} has no cross-attention; leave cross_range at None"
        if self.temporal_range is not None and "temporal" not in kinds:
            return f"{denoiser_class(pipe)} has no blocks of temporal attention; leave temporal_range at None"
        if all(rule.every == 1 for kind, rule in self._rules().items() if kind in kinds):
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
        family = family_of(denoiser_of(pipe))
        config = PyramidAttentionBroadcastConfig(
            # Those that it has by itself find "blocks" in "temporal_blocks", and take them for spatial ones.
            spatial_attention_block_identifiers=tuple(n for n in family.block_lists if n not in family.temporal),
            temporal_attention_block_identifiers=family.temporal,
            temporal_attention_block_skip_range=self._rules()["temporal"].every,
            temporal_attention_timestep_skip_range=window,
            spatial_attention_block_skip_range=self.self_range,
            cross_attention_block_skip_range=self.cross_range,
            spatial_attention_timestep_skip_range=window,
            cross_attention_timestep_skip_range=window,
            current_timestep_callback=implementation.timestep_of(pipe),  # pyright: ignore[reportArgumentType]
        )
        return diffusers_cache.cache_enabled(pipe, config)

    def _rules(self) -> dict[AttentionKind, Reuse]:
        own, along = self.self_range, self.self_range if self.temporal_range is None else self.temporal_range
        ranges: dict[AttentionKind, int] = {"self": own, "joint": own, "temporal": along}
        if self.cross_range is not None:
            ranges["cross"] = self.cross_range
        return {kind: Reuse(every, self.window) for kind, every in ranges.items()}
