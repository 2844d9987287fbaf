"""The wrappers around one pipeline's scheduler and denoiser, and the controller they ask.

Everything is installed on instances and taken off again; nothing here knows a method or a model. A run starts when
the pipeline calls `scheduler.set_timesteps`; a step ends at `scheduler.step`.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ertacache.block_stack import BlockStack
from ertacache.errors import CacheConflict, UnsupportedPipeline
from ertacache.models import denoiser_of, family_of, unwrapped
from ertacache.overrides import Overrides, overrides_of
from ertacache.solvers import STEP_ARGUMENTS, check_scheduler, read_grid


@dataclass(eq=False)
class Run:
    """One pass through the denoising loop.

    Attributes:
        scheduler: the one that runs (a pipeline may have copied its own).
        sigmas: its grid [T+1] on the CPU, before any change.
        stack: the block stack, where site `hidden` is attached.
        step: index in the grid of the step under way. The first step of a run is index 0 until
            `scheduler.step` tells where a late start (image to image) began.
        contexts: call names seen in this step, in order.
        guidance: the embedded guidance weight that the denoiser was given, if any.
    """

    scheduler: Any
    sigmas: Tensor
    stack: BlockStack | None = None
    step: int = 0
    steps_done: int = 0
    contexts: list[str] = field(default_factory=list[str])
    guidance: float | None = None

    @property
    def T(self) -> int:
        """Number of steps of the grid."""
        return len(self.sigmas) - 1


class Controller:
    """What to do at each point of a run. The default watches and changes nothing."""

    #: Names for the calls of a step where the pipeline sets no cache context; call0, call1, ... without.
    call_names: tuple[str, ...] = ()

    def install(self, attachment: "Attachment", denoiser: nn.Module) -> None:
        """Replace further methods of the denoiser's parts through `attachment`, which puts them back."""

    def begin(self, run: Run) -> None:
        """After `scheduler.set_timesteps`; the grid may be changed here."""

    def call(self, run: Run, context: str, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """One denoiser call on the latent `x`: its output, from `compute()` or without it."""
        return compute()

    def solve(self, run: Run, output: Tensor, x: Tensor) -> Tensor:
        """What the solver receives, given what the pipeline made of the calls and the latent `x`."""
        return output

    def end_step(self, run: Run, x_next: Tensor) -> None:
        """After `scheduler.step`."""


class Attachment(Overrides):
    """A controller attached to one pipeline; `detach` puts everything back."""

    def __init__(self, pipe: Any, controller: Controller, hidden: bool) -> None:
        super().__init__()
        self.controller = controller
        self.run: Run | None = None
        self._context: str | None = None
        self._denoiser: nn.Module = denoiser_of(pipe)
        check_scheduler(pipe.scheduler)
        _refuse_conflicts(self._denoiser, pipe.scheduler)
        self._scheduler = pipe.scheduler
        self._stack = BlockStack(unwrapped(self._denoiser), family_of(self._denoiser)) if hidden else None
        try:
            self._install()
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        """Take every wrapper off, newest first.

        Raises:
            CacheConflict: something else was wrapped around one of them meanwhile; the others are off then.
        """
        self.run = None
        self.remove()

    def _install(self) -> None:
        if self._stack is not None:
            self._stack.install(self)
        self.replace(self._scheduler, "set_timesteps", self._set_timesteps)
        self.replace(self._scheduler, "step", self._step)
        inner = unwrapped(self._denoiser)
        if hasattr(type(inner), "cache_context"):
            self.replace(inner, "cache_context", self._cache_context)
        self.replace_call(self._denoiser, self._forward)
        self.controller.install(self, inner)

    def _set_timesteps(self, original: Callable[..., Any], scheduler: Any, *args: Any, **kwargs: Any) -> Any:
        self.run = None
        result = original(*args, **kwargs)
        run = Run(scheduler, read_grid(scheduler), self._stack)
        self.controller.begin(run)
        self.run = run
        return result

    def _step(self, original: Callable[..., Any], scheduler: Any, *args: Any, **kwargs: Any) -> Any:
        run = self._current_run()
        if scheduler is not run.scheduler:
            return original(*args, **kwargs)  # a copy that integrates something else beside the run
        bound = dict(zip(STEP_ARGUMENTS, args, strict=False))
        bound |= {name: kwargs.pop(name) for name in STEP_ARGUMENTS if name in kwargs}
        if run.steps_done == 0:
            self._check_called(run)
            run.step = _first_index(scheduler, bound["timestep"])
        output = self.controller.solve(run, bound["model_output"], bound["sample"])
        result = original(output, bound["timestep"], bound["sample"], *args[3:], **kwargs)
        self.controller.end_step(run, result[0] if isinstance(result, tuple) else result.prev_sample)
        run.step += 1
        run.steps_done += 1
        run.contexts.clear()
        if run.step == run.T:
            self.run = None
        return result

    def _check_called(self, run: Run) -> None:
        if not run.contexts:
            raise CacheConflict(
                f"{type(unwrapped(self._denoiser)).__name__} ran a step without passing by the profile; disable it, "
                "finish changing the pipeline (compile, replace or copy the denoiser), then apply it again"
            )

    @contextmanager
    def _cache_context(
        self, original: Callable[..., Any], _: Any, name: str, *args: Any, **kwargs: Any
    ) -> Generator[None]:
        before, self._context = self._context, name
        try:
            with original(name, *args, **kwargs):
                yield
        finally:
            self._context = before

    def _forward(self, original: Callable[..., Any], _: Any, *args: Any, **kwargs: Any) -> Any:
        run = self._current_run()
        x = kwargs.get("hidden_states", kwargs.get("sample", args[0] if args else None))
        if not isinstance(x, Tensor):
            raise UnsupportedPipeline(
                f"{type(self._denoiser).__name__} was called without a latent tensor; nothing can be predicted for it"
            )
        if run.steps_done == 0 and isinstance(kwargs.get("guidance"), Tensor):
            run.guidance = float(kwargs["guidance"].flatten()[0])
        context = self._name_call(run)
        run.contexts.append(context)
        computed: list[Any] = []

        def compute() -> Tensor:
            computed.append(original(*args, **kwargs))
            return _tensor_of(computed[-1], self._denoiser)

        value = self.controller.call(run, context, x, compute)
        return _like_output(value, kwargs.get("return_dict", True), computed, self._denoiser)

    def _name_call(self, run: Run) -> str:
        if self._context is not None:
            return self._context
        order, names = len(run.contexts), self.controller.call_names
        return names[order] if order < len(names) else f"call{order}"

    def _current_run(self) -> Run:
        if self.run is None:
            raise UnsupportedPipeline(
                "the denoiser or scheduler.step was called outside of a run, which begins with scheduler.set_timesteps "
                "and ends with its last step; call the pipeline, not its parts, or take the profile off with "
                "ertacache.disable(pipe) first"
            )
        return self.run


def attachment_of(pipe: Any) -> Attachment | None:
    """The attachment on a pipeline's scheduler or denoiser, if there is one."""
    for instance, names in _places(denoiser_of(pipe), pipe.scheduler):
        found = overrides_of(instance, *names)
        if isinstance(found, Attachment):
            return found
    return None


@contextmanager
def attached(pipe: Any, controller: Controller, hidden: bool = False) -> Generator[Attachment]:
    """Attach for the length of a `with` block; put everything back also when it raises."""
    attachment = Attachment(pipe, controller, hidden)
    try:
        yield attachment
    finally:
        attachment.detach()


def _places(denoiser: nn.Module, scheduler: Any) -> tuple[tuple[Any, tuple[str, ...]], ...]:
    """Where an attachment can be found: by any of these methods of any of these instances."""
    calls = ("cache_context", "_compiled_call_impl", "forward")
    return (scheduler, ("step", "set_timesteps")), (denoiser, calls), (unwrapped(denoiser), calls)


def _refuse_conflicts(denoiser: nn.Module, scheduler: Any) -> None:
    for instance, names in _places(denoiser, scheduler):
        if isinstance(overrides_of(instance, *names), Attachment):
            raise CacheConflict(
                f"a profile is already applied to this {type(instance).__name__}; call ertacache.disable on the "
                "pipeline that has it, or leave its `with` block, first"
            )
    inner = unwrapped(denoiser)
    if getattr(inner, "is_cache_enabled", False) or getattr(inner, "_is_cached", False) or _has_cache_hooks(inner):
        raise CacheConflict(
            f"another cache is enabled on {type(inner).__name__}; take it off (pipe.transformer.disable_cache()) first"
        )


def _has_cache_hooks(denoiser: nn.Module) -> bool:
    """Whether a cache of diffusers was put on by its function, which leaves no mark on the denoiser itself.

    Of the hooks that diffusers has, those of its caches keep state from step to step; those for offloading do not.
    """
    registries = (getattr(module, "_diffusers_hook", None) for module in denoiser.modules())
    hooks = (hook for registry in registries if registry is not None for hook in registry.hooks.values())
    return any(getattr(hook, "_is_stateful", False) for hook in hooks)


def _first_index(scheduler: Any, timestep: Any) -> int:
    """Where in the grid a run started: the scheduler's own word, else the place of the timestep."""
    begin = getattr(scheduler, "begin_index", None)
    if isinstance(begin, int):
        return begin
    return int((scheduler.timesteps == torch.as_tensor(timestep).to(scheduler.timesteps)).nonzero()[0])


def _tensor_of(output: Any, denoiser: nn.Module) -> Tensor:
    first = output[0] if isinstance(output, tuple) else getattr(output, "sample", None)
    if not isinstance(first, Tensor):
        raise UnsupportedPipeline(
            f"{type(unwrapped(denoiser)).__name__} returned {type(output).__name__}, not a tensor in a tuple or in "
            "`.sample`; this denoiser cannot be predicted"
        )
    return first


def _like_output(value: Tensor, return_dict: bool, computed: list[Any], denoiser: nn.Module) -> Any:
    """Wrap a tensor as the denoiser would have; a computed output that was not replaced goes back as it is."""
    if computed and _tensor_of(computed[-1], denoiser) is value:
        return computed[-1]
    if not return_dict:
        return (value,)
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    return Transformer2DModelOutput(sample=value)  # pyright: ignore[reportCallIssue]
