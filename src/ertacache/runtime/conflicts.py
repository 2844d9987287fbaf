"""What keeps a controller from a pipeline, or makes it leave one: other caches, compiling, threads, shared outputs."""

from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from ertacache.errors import CacheConflict, UnsupportedPipeline
from ertacache.pipelines.models import denoisers_of, unwrapped
from ertacache.pipelines.overrides import Overrides, overrides_of
from ertacache.runtime.caller import elsewhere, places
from ertacache.runtime.run import Run

#: A variable by which the call of a pipeline is known.
_STEPS = "num_inference_steps"
#: By what an attachment can be found on a denoiser.
CALLS = ("cache_context", "_compiled_call_impl", "forward")


def where_attached(denoisers: tuple[nn.Module, ...], scheduler: Any) -> list[tuple[Any, tuple[str, ...]]]:
    """Where an attachment can be found: by any of these methods of any of these instances."""
    instances = [place for denoiser in denoisers for place in (denoiser, unwrapped(denoiser))]
    return [(scheduler, ("step", "set_timesteps")), *((instance, CALLS) for instance in instances)]


def refuse_conflicts(denoisers: tuple[nn.Module, ...], scheduler: Any) -> None:
    """Refuse a second profile on the same parts, and any other cache: `CacheConflict`."""
    for instance, names in where_attached(denoisers, scheduler):
        if (found := overrides_of(instance, *names)) is not None and found.exclusive:
            raise CacheConflict(
                f"a profile is already applied to this {type(instance).__name__}; call ertacache.disable on the "
                "pipeline that has it, or leave its `with` block, first"
            )
    for inner in map(unwrapped, denoisers):
        if getattr(inner, "is_cache_enabled", False) or getattr(inner, "_is_cached", False) or _has_cache_hooks(inner):
            raise CacheConflict(
                f"another cache is enabled on {type(inner).__name__}; take it off (pipe.transformer.disable_cache()) "
                "first"
            )


def check_intact(overrides: Overrides, denoisers: tuple[nn.Module, ...], scheduler: Any, pipe: Any) -> None:
    """Refuse a denoiser that was compiled or replaced after the profile was applied: `CacheConflict`.

    Its calls would pass by the profile, or a compiler would trace the profile along with the model. Asked wherever a
    run comes by: a callback may compile in the middle of one.

    Args:
        denoisers, scheduler: that the profile was applied to.
        pipe: the pipeline that had them then, if it is still there.
    """
    now = denoisers_of(pipe) if pipe is not None and pipe.scheduler is scheduler else denoisers
    for denoiser, current in zip(denoisers, now, strict=False):
        if overrides.covered() or (current is not denoiser and _same(current, denoiser)):
            raise _changed(denoiser, "compiled")
        if current is not denoiser:
            raise _changed(denoiser, "replaced")


def refuse_tracing(denoiser: nn.Module) -> None:
    """Refuse a compiler that has come around a denoiser with a profile, in the middle of a run: `CacheConflict`.

    A compiler that may break its graph then goes on without one, and `check_intact` says the same.
    """
    if torch.compiler.is_compiling():
        raise _changed(denoiser, "compiled")


def _changed(denoiser: nn.Module, what: str) -> CacheConflict:
    return CacheConflict(
        f"{type(unwrapped(denoiser)).__name__} was {what} while a profile is applied to it; call "
        "ertacache.disable(pipe), finish changing the pipeline (compile, replace or copy the denoiser), then apply it "
        "again"
    )


def check_one_thread(run: Run, frames: list[FrameType]) -> None:
    """Refuse a scheduler that another thread is in the middle of a run with: `UnsupportedPipeline`."""
    begun = run.begun - places(frames)
    calls = frozenset(place for place in begun if place[1].co_name == "__call__" and _STEPS in place[1].co_varnames)
    if elsewhere(calls):
        raise UnsupportedPipeline(
            f"another thread is in the middle of a run with this {type(run.scheduler).__name__}, which keeps the state "
            "of one run only: diffusers cannot make two calls of one pipeline object at once; give each call a copy "
            "of the pipeline (copy.copy) with its own scheduler (copy.deepcopy)"
        )


def refuse_beside(run: Run, others: list[Run], denoiser: nn.Module) -> None:
    """Refuse a scheduler that steps on what another run's calls return where that is a placeholder."""
    sharing = [other for other in others if other is not run and other.lives_with(run)]
    if not any(other.controller.placeholders for other in sharing):
        return
    for other in sharing:
        if other.form is not None:
            other.form.check(denoiser)
    raise UnsupportedPipeline(
        "a copy of the scheduler steps on what the denoiser returned, which at site 'guided' is nothing on a "
        "predicted step; calibrate with site='output'"
    )


def refuse_taken(run: Run, others: list[Run], sample: Tensor) -> None:
    """Refuse a solver that goes on [B, *] from where another's loop was broken off in the same function.

    Its first denoiser call looked like the next one of that loop, and may have been answered as such.
    """
    for other in others:
        if other is not run and other.contexts and other.continues(sample):
            raise UnsupportedPipeline(
                f"a {type(run.scheduler).__name__} goes on from the latent of a run that was broken off at step "
                f"{other.step}; make each of the two loops in a function of its own"
            )


def refuse_unclaimed(runs: list[Run], frames: list[FrameType]) -> None:
    """Refuse a loop in which only copies of the scheduler step, none of them on the denoiser's latent."""
    beside = [run for run in runs if run.beside and run.depth(frames) is not None]
    if len(beside) > 1 and not any(run.steps_done and run.lives_with(beside[0]) for run in runs):
        raise UnsupportedPipeline(
            f"several copies of {type(beside[0].scheduler).__name__} step on what one denoiser call returned, as "
            "where each frame has a noise level of its own; only pipelines with one solver per call are served"
        )


def without_calls(run: Run, denoiser: nn.Module) -> UnsupportedPipeline:
    """The error for a step that none of the run's own denoiser calls came before."""
    what = f"step {run.step} of a run of {type(unwrapped(denoiser)).__name__}"
    if run.strangers:
        return UnsupportedPipeline(f"{what}: the denoiser is called by another way than in the first step")
    return UnsupportedPipeline(
        f"{what}: {type(run.scheduler).__name__}.step was called again without a denoiser call in between; only "
        "pipelines with one solver step per denoiser call are served"
    )


def _same(current: nn.Module, denoiser: nn.Module) -> bool:
    return unwrapped(current) is unwrapped(denoiser)


def _has_cache_hooks(denoiser: nn.Module) -> bool:
    """Whether a cache of diffusers was put on by its function, which leaves no mark on the denoiser itself.

    Of the hooks that diffusers has, those of its caches keep state from step to step; those for offloading do not.
    """
    registries = (getattr(module, "_diffusers_hook", None) for module in denoiser.modules())
    hooks = (hook for registry in registries if registry is not None for hook in registry.hooks.values())
    return any(getattr(hook, "_is_stateful", False) for hook in hooks)
