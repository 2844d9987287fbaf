"""FasterCache: attention extrapolated from the last two steps, and the unconditional branch from the conditional."""

import logging
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor

from ertacache.baselines import attention_reuse, diffusers_cache, implementation
from ertacache.baselines.attention_reuse import AttentionReuse, Reuse, check_window, inside
from ertacache.baselines.baseline import Baseline, Knob, denoiser_class
from ertacache.baselines.cfg_cache import BranchDifference
from ertacache.baselines.implementation import Implementation, branches
from ertacache.errors import InvalidArgument, UnsupportedPipeline
from ertacache.pipelines.models import AttentionKind, denoiser_of, family_of
from ertacache.runtime.hooks import attached
from ertacache.runtime.run import Run

#: Latents that keep height and width; FLUX packs them into tokens, which have no spatial frequencies.
_SPATIAL = ("WanTransformer3DModel", "CogVideoXTransformer3DModel", "STDiT3Transformer3DModel")


@dataclass(frozen=True)
class FasterCache(Baseline):
    """Dynamic feature reuse in the self-attention, and the CFG-cache where guidance has two branches.

    With the CFG-cache, attention is reused only in steps that rebuild the unconditional branch, as diffusers has it:
    a step that computes both branches computes all of both. FLUX has no CFG-cache, since its latents are packed;
    there each branch reuses its own attention.

    Args:
        attention_range: inside of its window attention runs in every n-th step, counted from the first step of the
            run; 1 runs it in all and leaves the CFG-cache alone.
        attention_window: timesteps (low, high), 0 to 1000.
        weight: w of F₁ + w·(F₁ − F₂). Constant, as in diffusers; the paper lets it rise from 0 to 1.
        uncond_range: inside of its window the unconditional branch runs in every n-th step.
        uncond_window: timesteps (low, high).
        low_alpha, high_alpha: factors of the stored low and high frequencies in each rebuilt step of their windows.
        low_window, high_window: timesteps (low, high).
        implementation: diffusers' own, which is wrong under two calls per step, or ours.

    Raises:
        InvalidArgument: an attention_range below 1, an uncond_range below 2, an empty window or another
            implementation.
    """

    key: ClassVar[str] = "fastercache"
    title: ClassVar[str] = "FasterCache"
    paper: ClassVar[str] = "FasterCache, arXiv 2410.19355"
    work: ClassVar[str] = "everything but self-attention in the conditional branch, with the MLPs of every step"
    knob: ClassVar[Knob] = Knob("attention_range", 2, 12, whole=True)

    attention_range: int = 2
    attention_window: tuple[float, float] = (-1, 681)
    weight: float = 0.5
    uncond_range: int = 5
    uncond_window: tuple[float, float] = (-1, 641)
    low_alpha: float = 1.1
    low_window: tuple[float, float] = (99, 901)
    high_alpha: float = 1.1
    high_window: tuple[float, float] = (-1, 301)
    implementation: Implementation = "auto"

    def __post_init__(self) -> None:
        implementation.check_implementation(self.implementation)
        self.rules()
        self.skipped()
        if self.uncond_range < 2:
            raise InvalidArgument(f"uncond_range is {self.uncond_range}; choose at least 2: every other step")
        check_window(self.low_window)
        check_window(self.high_window)

    @classmethod
    def published(cls) -> Mapping[str, Mapping[str, Self]]:
        """The authors' script for CogVideoX-2B at 50 steps, told in timesteps, and what diffusers documents."""
        authors = cls(
            attention_range=3, attention_window=(-1, 660), weight=0.3, uncond_window=(-1, 660),
            low_window=(200, 1001), high_window=(-1, 420),
        )  # fmt: skip
        return {
            "CogVideoXTransformer3DModel": {"authors": authors, "diffusers": cls(weight=0.3, low_window=(99, 641))},
            "FluxTransformer2DModel": {"diffusers": cls()},
            "WanTransformer3DModel": {"diffusers": cls()},
        }

    def refusal(self, pipe: Any, call: Mapping[str, Any]) -> str | None:
        if reason := attention_reuse.refusal(pipe):
            return reason
        if self.attention_range == 1 and not self._has_cfg_cache(pipe, call):
            return "attention_range 1 reuses nothing where there is no CFG-cache"
        if self.implementation == "diffusers":
            return implementation.against_diffusers(pipe, call)
        if branches(pipe, call) == "batch" and not implementation.by_diffusers(self.implementation, pipe, call):
            return "its two branches come in one batch, which only diffusers' implementation takes apart"
        return None

    def applied(self, pipe: Any, call: Mapping[str, Any]) -> AbstractContextManager[Any]:
        """As `Baseline.applied`.

        Raises:
            UnsupportedPipeline: for the reason that `refusal` gives.
        """
        if reason := self.refusal(pipe, call):
            raise UnsupportedPipeline(f"{self.key}: {reason}")
        if implementation.by_diffusers(self.implementation, pipe, call):
            return _quietly_enabled(pipe, self._config(pipe, call))
        if self._has_cfg_cache(pipe, call):
            return attached(pipe, BranchReuse(self))
        return attached(pipe, AttentionReuse(self.rules(), self.weight))

    def rules(self) -> dict[AttentionKind, Reuse]:
        """Kind of attention -> when it is reused."""
        rule = Reuse(self.attention_range, self.attention_window)
        return {"self": rule, "temporal": rule, "joint": rule}

    def skipped(self) -> Reuse:
        """When the unconditional branch is rebuilt."""
        return Reuse(self.uncond_range, self.uncond_window)

    def _has_cfg_cache(self, pipe: Any, call: Mapping[str, Any]) -> bool:
        return branches(pipe, call) != "one" and denoiser_class(pipe) in _SPATIAL

    def _config(self, pipe: Any, call: Mapping[str, Any]) -> Any:
        from diffusers import FasterCacheConfig

        config: Any = FasterCacheConfig  # its annotations have windows of whole numbers
        return config(
            spatial_attention_block_skip_range=self.attention_range,
            spatial_attention_timestep_skip_range=self.attention_window,
            unconditional_batch_skip_range=self.uncond_range,
            unconditional_batch_timestep_skip_range=self.uncond_window,
            low_frequency_weight_update_timestep_range=self.low_window,
            high_frequency_weight_update_timestep_range=self.high_window,
            alpha_low_frequency=self.low_alpha,
            alpha_high_frequency=self.high_alpha,
            attention_weight_callback=lambda _: self.weight,  # pyright: ignore[reportUnknownLambdaType]
            tensor_format="BCFHW" if family_of(denoiser_of(pipe)).channel_axis == 1 else "BFCHW",
            is_guidance_distilled=branches(pipe, call) == "one",
            current_timestep_callback=implementation.timestep_of(pipe),
        )


@contextmanager
def _quietly_enabled(pipe: Any, config: Any) -> Generator[None]:
    # diffusers says each time that it is experimental, and calls torch in a way that torch warns about.
    logger = logging.getLogger("diffusers.hooks.faster_cache")
    level = logger.level
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.meshgrid")
        logger.setLevel(logging.ERROR)
        try:
            with diffusers_cache.cache_enabled(pipe, config):
                yield
        finally:
            logger.setLevel(level)


class BranchReuse(AttentionReuse):
    """Dynamic feature reuse and CFG-cache over two calls per step, the conditional one first."""

    call_names = ("cond", "uncond")

    def __init__(self, settings: FasterCache) -> None:
        super().__init__(settings.rules(), settings.weight)
        self._settings = settings
        self._skipped = settings.skipped()
        self._difference = BranchDifference()
        self._cond: Tensor | None = None

    def begin(self, run: Run) -> None:
        super().begin(run)
        self._difference.clear()
        self._cond = None

    def call(self, run: Run, context: str, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """The outputs are [B, *, H, W].

        Raises:
            UnsupportedPipeline: the unconditional call comes first.
        """
        skipped = self._skipped.at(run.steps_done, self.timestep(run))
        if context != "uncond":
            self._cond = self.attend(run, context, compute, reuse=skipped)
            return self._cond
        if self._cond is None:
            raise UnsupportedPipeline(
                "fastercache: the unconditional call came before the conditional one that it is rebuilt from; use a "
                "pipeline that makes the conditional call first"
            )
        rebuilt = self._difference.rebuild(self._cond, *self._factors(run)) if skipped else None
        if rebuilt is not None:
            return rebuilt
        # Computed as it is: this branch runs too seldom for its attention to be reused.
        uncond = compute()
        self._difference.keep(uncond, self._cond)
        return uncond

    def end_step(self, run: Run, x_next: Tensor) -> None:
        super().end_step(run, x_next)
        self._cond = None
        if run.step == run.T - 1:
            self._difference.clear()

    def _factors(self, run: Run) -> tuple[float, float]:
        settings, timestep = self._settings, self.timestep(run)
        return (
            settings.low_alpha if inside(settings.low_window, timestep) else 1.0,
            settings.high_alpha if inside(settings.high_window, timestep) else 1.0,
        )
