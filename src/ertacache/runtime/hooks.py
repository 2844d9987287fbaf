"""The wrappers around one pipeline's scheduler and denoiser, and the controller they ask.

Everything is installed on instances and taken off again; nothing here knows a method or a model. A run starts when
the pipeline calls `scheduler.set_timesteps`; a step ends at `scheduler.step`.
"""

import functools
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ertacache.errors import CacheConflict, UnsupportedPipeline
from ertacache.pipelines import angle_grid
from ertacache.pipelines.block_stack import BlockStack
from ertacache.pipelines.denoiser_call import OutputForm, form_of, form_without, latent_of, tensor_of
from ertacache.pipelines.models import denoiser_of, denoisers_of, family_of, unwrapped
from ertacache.pipelines.overrides import Overrides, overrides_of
from ertacache.pipelines.solvers import STEP_ARGUMENTS, check_scheduler, read_grid, solver_of, solver_step


@dataclass(eq=False)
class Run:
    """One pass through the denoising loop.

    Attributes:
        scheduler: the one that runs (a pipeline may have copied its own).
        sigmas: its grid [T+1] on the CPU, before any change.
        stack: the block stack of the denoiser that serves, where site `hidden` is attached.
        step: index in the grid of the step under way. The first step of a run is index 0 until
            `scheduler.step` tells where a late start (image to image) began.
        contexts: call names seen in this step, in order.
        guidance: the embedded guidance weight that the denoiser was given, if any.
        denoiser: which denoiser serves the step, 0 for the first one; known from its first call on.
    """

    scheduler: Any
    sigmas: Tensor
    stack: BlockStack | None = None
    step: int = 0
    steps_done: int = 0
    contexts: list[str] = field(default_factory=list[str])
    guidance: float | None = None
    denoiser: int = 0

    @property
    def T(self) -> int:
        """Number of steps of the grid."""
        return len(self.sigmas) - 1


class Controller:
    """What to do at each point of a run. The default watches and changes nothing."""

    #: Names for the calls of a step where the pipeline sets no cache context; call0, call1, ... without.
    call_names: tuple[str, ...] = ()
    #: Whether it can follow several denoisers that take over from each other.
    several: bool = True
    #: Whether what the denoiser returns may be a placeholder, which `solve` replaces for the solver of the run only.
    placeholders: bool = False

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
        self._finished: Any = None  # the scheduler of the run before, once that is complete
        self._context: str | None = None
        self._form: OutputForm | None = None
        self._denoisers = denoisers_of(pipe) if controller.several else (denoiser_of(pipe),)
        check_scheduler(pipe.scheduler)
        _refuse_conflicts(self._denoisers, pipe.scheduler)
        self._scheduler = pipe.scheduler
        self._stacks = [BlockStack(unwrapped(denoiser), family_of(denoiser)) for denoiser in self._denoisers if hidden]
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
        self.run = self._finished = None
        self.remove()

    def _install(self) -> None:
        for stack in self._stacks:
            stack.install(self)
        self.replace(self._scheduler, "set_timesteps", self._set_timesteps)
        self.replace(self._scheduler, "step", self._step)
        if (solver := solver_of(self._scheduler)) is not None and solver.angles:
            self.replace(self._scheduler, "add_noise", angle_grid.add_noise)
        for n, denoiser in enumerate(self._denoisers):
            inner = unwrapped(denoiser)
            if hasattr(type(inner), "cache_context"):
                self.replace(inner, "cache_context", self._cache_context)
            self.replace_call(denoiser, functools.partial(self._forward, n))
            self.controller.install(self, inner)

    def _set_timesteps(self, original: Callable[..., Any], scheduler: Any, *args: Any, **kwargs: Any) -> Any:
        self.run = self._finished = None
        result = original(*args, **kwargs)
        run = Run(scheduler, read_grid(scheduler), self._stacks[0] if self._stacks else None)
        self.controller.begin(run)
        self.run = run
        return result

    def _step(self, original: Callable[..., Any], scheduler: Any, *args: Any, **kwargs: Any) -> Any:
        mine = self.run.scheduler if self.run is not None else self._finished
        if mine is not None and scheduler is not mine:
            self._check_beside()
            return original(*args, **kwargs)  # a copy that integrates something else beside the run
        run = self._current_run()
        bound = dict(zip(STEP_ARGUMENTS, args, strict=False))
        bound |= {name: kwargs.pop(name) for name in STEP_ARGUMENTS if name in kwargs}
        if run.steps_done == 0:
            self._check_called(run)
            run.step = _first_index(scheduler, bound["timestep"])
        output = self.controller.solve(run, bound["model_output"], bound["sample"])
        given = (output, bound["timestep"], bound["sample"])
        result = solver_step(original, scheduler, run.step, *given, *args[3:], **kwargs)
        self.controller.end_step(run, result[0] if isinstance(result, tuple) else result.prev_sample)
        run.step += 1
        run.steps_done += 1
        run.contexts.clear()
        if run.step == run.T:
            self.run, self._finished = None, scheduler
        return result

    def _check_beside(self) -> None:
        if self.run is not None and self.run.contexts:
            raise UnsupportedPipeline(
                f"several copies of {type(self.run.scheduler).__name__} step on what one denoiser call returned, as "
                "where each frame has a noise level of its own; only pipelines with one solver per call are served"
            )
        if self.controller.placeholders:
            if self._form is not None:
                self._form.check(self._denoisers[0])
            raise UnsupportedPipeline(
                "a copy of the scheduler steps on what the denoiser returned, which at site 'guided' is nothing on a "
                "predicted step; calibrate with site='output'"
            )

    def _check_called(self, run: Run) -> None:
        if not run.contexts:
            raise CacheConflict(
                f"{type(unwrapped(self._denoisers[0])).__name__} ran a step without passing by the profile; disable "
                "it, finish changing the pipeline (compile, replace or copy the denoiser), then apply it again"
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

    def _forward(self, n: int, original: Callable[..., Any], denoiser: Any, *args: Any, **kwargs: Any) -> Any:
        run = self._current_run()
        x = latent_of(args, kwargs, denoiser)
        run.denoiser, run.stack = n, self._stacks[n] if self._stacks else None
        if run.steps_done == 0 and isinstance(kwargs.get("guidance"), Tensor):
            run.guidance = float(kwargs["guidance"].flatten()[0])
        context = self._name_call(run)
        run.contexts.append(context)
        computed: list[tuple[Any, Tensor]] = []

        def compute() -> Tensor:
            output = original(*args, **kwargs)
            computed.append((output, tensor_of(output, denoiser)))
            self._form = form_of(output)
            return computed[-1][1]

        value = self.controller.call(run, context, x, compute)
        if computed and computed[-1][1] is value:
            return computed[-1][0]
        form = self._form or form_without(kwargs.get("return_dict", True))
        return form.wrap(value, denoiser)

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
    for instance, names in _places(denoisers_of(pipe), pipe.scheduler):
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


def _places(denoisers: tuple[nn.Module, ...], scheduler: Any) -> list[tuple[Any, tuple[str, ...]]]:
    """Where an attachment can be found: by any of these methods of any of these instances."""
    calls = ("cache_context", "_compiled_call_impl", "forward")
    instances = [place for denoiser in denoisers for place in (denoiser, unwrapped(denoiser))]
    return [(scheduler, ("step", "set_timesteps")), *((instance, calls) for instance in instances)]


def _refuse_conflicts(denoisers: tuple[nn.Module, ...], scheduler: Any) -> None:
    for instance, names in _places(denoisers, scheduler):
        if isinstance(overrides_of(instance, *names), Attachment):
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
