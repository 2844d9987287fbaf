"""DBCache of cache-dit, alone and with each of its calibrators."""

import os
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from ertacache.baselines.baseline import Baseline, Knob, denoiser_class, steps_of
from ertacache.baselines.diffusers_cache import refuse_profile
from ertacache.baselines.implementation import branches
from ertacache.errors import CacheConflict, MissingExtra
from ertacache.extras import require
from ertacache.pipelines.models import blocks_of, denoiser_of, family_of

#: What cache-dit leaves on a denoiser when it is disabled.
_LEFT = ("forward", "_is_patched")


@dataclass(frozen=True)
class DBCache(Baseline):
    """The first Fn blocks run in every step; while their residual moves by less than a threshold, the middle is reused.

    The last Bn blocks then run on the reused residual. Each of two guidance branches decides for itself where they are
    calls of their own. cache-dit has to be told so: by itself it takes every FLUX call for a step, and every other
    Wan call for an unconditional one, also without guidance. Its state is dropped at each call of the pipeline.

    In the meantime `__call__` of the pipeline's class is cache-dit's, other pipelines of the class included, which give
    the same output all the same; afterwards the class is as it was. FLUX runs a copy of its forward that cache-dit
    would leave on the denoiser; here it is taken off.

    Args:
        threshold: relative change of the first blocks' residual; from 1 on, cache-dit always reuses.
        fn: blocks at the start of the stack that run in every step; at least 1.
        bn: blocks at its end that run in every step.
        warmup: steps at the start of a run that are computed.
        max_continuous: most steps that are reused in a row; -1 for no limit.
    """

    key: ClassVar[str] = "dbcache"
    title: ClassVar[str] = "DBCache (cache-dit)"
    paper: ClassVar[str] = "cache-dit, github.com/vipshop/cache-dit"
    work: ClassVar[str] = "the embeddings, the first Fn and the last Bn blocks and the head"
    knob: ClassVar[Knob] = Knob("threshold", 0.0, 1.0)
    batch: ClassVar[str] = "one decision for the whole batch, from the mean over its entries"
    extra: ClassVar[str] = "cache-dit"

    threshold: float = 0.12
    fn: int = 1
    bn: int = 0
    warmup: int = 2
    max_continuous: int = 4

    @classmethod
    def published(cls) -> Mapping[str, Mapping[str, Self]]:
        # F1B0_W4MC3_R0.12 and F1B0_W4MC6_R0.24 of cache-dit's own benchmark, T = 50; both with and without calibrator.
        return {
            "FluxTransformer2DModel": {
                "slow": cls(0.12, fn=1, bn=0, warmup=4, max_continuous=3),
                "fast": cls(0.24, fn=1, bn=0, warmup=4, max_continuous=6),
            }
        }

    def refusal(self, pipe: Any, call: Mapping[str, Any]) -> str | None:
        try:
            cache_dit = _cache_dit()
        except MissingExtra as error:
            return str(error)
        denoiser = denoiser_of(pipe)
        if hasattr(denoiser, "_orig_mod"):
            return "the denoiser is compiled, and cache-dit would not reach its blocks; pass it as it was before"
        blocks, T = len(blocks_of(denoiser)), steps_of(call)
        if not blocks or not cache_dit.BlockAdapterRegister.is_supported(pipe):
            return f"cache-dit or this package does not know the blocks of {denoiser_class(pipe)}"
        if self.fn < 1 or self.fn + self.bn >= blocks:
            return f"fn {self.fn} and bn {self.bn} leave none of {blocks} blocks to reuse; choose fn >= 1, and less"
        return f"all {T} steps are warm-up; set warmup below {T}" if self.warmup >= T else None

    def applied(self, pipe: Any, call: Mapping[str, Any]) -> AbstractContextManager[None]:
        """See `Baseline.applied`.

        Raises:
            MissingExtra: cache-dit is not installed.
            CacheConflict: cache-dit is on for a pipeline of the class, or a cache of diffusers on the denoiser.
        """
        config = _cache_dit().DBCacheConfig(
            Fn_compute_blocks=self.fn,
            Bn_compute_blocks=self.bn,
            residual_diff_threshold=self.threshold,
            max_warmup_steps=self.warmup,
            max_continuous_cached_steps=self.max_continuous,
            enable_separate_cfg=branches(pipe, call) == "calls",
            num_inference_steps=steps_of(call),
        )
        return _enabled(pipe, config, self._calibrator())

    def _calibrator(self) -> Any:
        return None


@dataclass(frozen=True)
class DBCacheTaylorSeer(DBCache):
    """DBCache whose residual is extrapolated by a Taylor series over the computed steps instead of reused.

    cache-dit takes differences from the fourth step of a run on, so order j acts at the end of a warm-up of 3 + j steps
    at the earliest; after a warm-up of 3 the residual is reused until the next computed step.

    Args:
        order: highest power of the series.
    """

    key: ClassVar[str] = "dbcache-taylorseer"
    title: ClassVar[str] = "DBCache + TaylorSeer (cache-dit)"

    order: int = 1

    def variants(self) -> tuple[Self, ...]:
        """Every order up to 2."""
        return tuple(replace(self, order=order) for order in sorted({self.order, 1, 2}))

    def _calibrator(self) -> Any:
        return _cache_dit().TaylorSeerCalibratorConfig(taylorseer_order=self.order)


@dataclass(frozen=True)
class DBCacheDMD(DBCache):
    """DBCache whose residual is continued by the linear operator that leads from each computed one to the next.

    Dynamic mode decomposition: v̂(s) = Φ Λ^s b, with modes Φ and eigenvalues Λ of the operator fitted to the last
    `history` computed residuals. cache-dit fits it from four evenly spaced ones on, and draws a line until then.

    Args:
        history: computed residuals that are kept.
        ridge: added to the singular values that are divided by.
    """

    key: ClassVar[str] = "dbcache-dmd"
    title: ClassVar[str] = "DBCache + DMD (cache-dit)"

    history: int = 6
    ridge: float = 1e-8

    def _calibrator(self) -> Any:
        return _cache_dit().DMDCalibratorConfig(dmd_history=self.history, dmd_ridge=self.ridge)


@dataclass(frozen=True)
class DBCacheFoCa(DBCache):
    """DBCache whose residual is forecast by an ODE solver over its last values, predicted ones among them.

    The paper has BDF2 as a predictor and Heun's rule as the corrector of the features. cache-dit's calibrator averages
    the slope between the two newest computed steps, which it takes for one step apart, and that between the two newest
    values, and holds on to the computed value beyond three steps.
    """

    key: ClassVar[str] = "dbcache-foca"
    title: ClassVar[str] = "DBCache + FoCa (cache-dit)"
    paper: ClassVar[str] = "arXiv 2508.16211; cache-dit, github.com/vipshop/cache-dit"

    def _calibrator(self) -> Any:
        return _cache_dit().FoCaCalibratorConfig()


def _cache_dit() -> Any:
    """The module `cache_dit`, told to log errors only unless the user has said otherwise."""
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "error")
    require("DBCache", "cache_dit")
    try:
        import cache_dit
    except ImportError as error:  # there, but made for another diffusers
        raise MissingExtra(
            f"cache-dit cannot be imported ({error}); install one that fits with: pip install 'ertacache[cache-dit]'"
        ) from error
    return cache_dit


@contextmanager
def _enabled(pipe: Any, config: Any, calibrator: Any) -> Generator[None]:
    cache_dit, denoiser = _cache_dit(), denoiser_of(pipe)
    refuse_profile(pipe)
    # It keeps one original `__call__` per class, so a second pipeline of the class would lose it.
    if getattr(type(pipe), "_is_cached", False):
        raise CacheConflict(
            f"cache-dit is already enabled on a {type(pipe).__name__}; call cache_dit.disable_cache on that one first"
        )
    if getattr(denoiser, "is_cache_enabled", False):
        raise CacheConflict(
            f"a cache is already enabled on this {type(denoiser).__name__}; call disable_cache() on it first"
        )
    lists = [getattr(denoiser, name) for name in family_of(denoiser).block_lists]
    before, names = dict(vars(denoiser)), [set(vars(blocks)) for blocks in lists]
    parts = vars(denoiser)["_modules"]
    order = list(parts)
    try:
        cache_dit.enable_cache(pipe, cache_config=config, calibrator_config=calibrator)
        yield
    finally:
        cache_dit.disable_cache(pipe)
        for name in _LEFT:
            vars(denoiser).pop(name, None)
            if name in before:
                setattr(denoiser, name, before[name])
        # It takes the lists out and puts them in again at the end; diffusers' caches go by the order of the parts.
        parts.update({name: parts.pop(name) for name in order})
        for blocks, known in zip(lists, names, strict=True):
            for name in set(vars(blocks)) - known:
                delattr(blocks, name)
