"""The wrappers around one pipeline's scheduler and denoiser, and the controller they ask.

Everything is installed on instances and taken off again; nothing here knows a method or a model. A run starts when
the pipeline calls `scheduler.set_timesteps`; a step ends at `scheduler.step`. Whose a denoiser call is, `Runs` says.
"""

import functools
import threading
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any

from torch import Tensor

from ertacache.errors import ErtacacheError, ProfileMismatch, UnsupportedPipeline
from ertacache.pipelines import angle_grid
from ertacache.pipelines.block_stack import BlockStack
from ertacache.pipelines.denoiser_call import form_without, latent_of, read_output
from ertacache.pipelines.models import denoiser_of, denoisers_of, family_of, unwrapped
from ertacache.pipelines.overrides import Overrides, overrides_of
from ertacache.pipelines.solvers import (
    STEP_ARGUMENTS,
    check_scheduler,
    first_index,
    read_grid,
    restore_grid,
    solver_of,
    solver_step,
    step_options,
)
from ertacache.runtime.cache_contexts import CacheContexts
from ertacache.runtime.caller import callers, path_to, places
from ertacache.runtime.conflicts import (
    check_intact,
    check_one_thread,
    refuse_beside,
    refuse_conflicts,
    refuse_taken,
    refuse_tracing,
    refuse_unclaimed,
    where_attached,
    without_calls,
)
from ertacache.runtime.run import Controller, FirstCall, Run
from ertacache.runtime.runs import Runs


class Attachment(Overrides):
    """A controller attached to one pipeline; `detach` puts everything back.

    Attributes:
        controller: what makes one for each run.
        runs: those under way.
        denoisers: in the order in which they take over.
    """

    exclusive = True

    def __init__(self, pipe: Any, controller: Controller, hidden: bool) -> None:
        super().__init__()
        self.controller, self.runs = controller, Runs()
        self.denoisers = denoisers_of(pipe) if controller.several else (denoiser_of(pipe),)
        self.scheduler, self._pipe, self._leaving = pipe.scheduler, weakref.ref(pipe), False
        self._contexts, self._one_at_a_time = CacheContexts(), threading.RLock()
        check_scheduler(pipe.scheduler)
        refuse_conflicts(self.denoisers, pipe.scheduler)
        self._stacks = [BlockStack(unwrapped(denoiser), family_of(denoiser)) for denoiser in self.denoisers if hidden]
        try:
            self._install()
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        """Take every wrapper off, newest first; where a run cannot be left alone, when it has ended: none begins then.

        Raises:
            CacheConflict: something else was wrapped around one of them meanwhile; the others are off then.
        """
        self._leaving = any(run.in_the_middle() for run in self.runs.all())
        if not self._leaving:
            for run in self.runs.all():
                self._end(run)
            self.remove()

    def _install(self) -> None:
        for stack in self._stacks:
            stack.install(self)
        self.replace(self.scheduler, "set_timesteps", self._set_timesteps)
        self.replace(self.scheduler, "step", self._step)
        if hasattr(self.scheduler, "scale_model_input"):
            self.replace(self.scheduler, "scale_model_input", self._scale_model_input)
        if (solver := solver_of(self.scheduler)) is not None and solver.angles:
            self.replace(self.scheduler, "add_noise", angle_grid.add_noise)
        for n, denoiser in enumerate(self.denoisers):
            inner = unwrapped(denoiser)
            if hasattr(type(inner), "cache_context"):
                self.replace(inner, "cache_context", self._contexts.enter, copies=False)
            self.replace_call(denoiser, functools.partial(self._forward, n))
            self.controller.install(self, inner)

    def _set_timesteps(self, original: Callable[..., Any], scheduler: Any, *args: Any, **kwargs: Any) -> Any:
        frames = callers()
        check_intact(self, self.denoisers, self.scheduler, self._pipe())
        if (before := self.runs.of(scheduler)) is not None:
            check_one_thread(before, frames)
            self._end(before)
        result = original(*args, **kwargs)
        if self._leaving or not self.active:  # that was the last run it waited for
            return result
        run = Run(scheduler, read_grid(scheduler), self.controller, places(frames))
        run.controller = self.controller.for_run(run)
        run.stack = self._stacks[0] if self._stacks else None
        self._asked(run, lambda: run.controller.begin(run))
        for other in self.runs.all():
            other.is_followed_by(run, frames)
        self.runs.add(run)
        return result

    def _asked(self, run: Run, question: Callable[[], Any]) -> Any:
        """What the controller of a run says; where the run does not suit it, what goes on instead says that."""
        try:
            return question()
        except (ProfileMismatch, UnsupportedPipeline) as error:
            self._go_without(run, error)
            return question()

    def _go_without(self, run: Run, error: ErtacacheError, *, by_need: bool = False) -> None:
        left, run.controller = run.controller, run.controller.without(run, error, by_need=by_need)
        left.end(run)
        if run.steps_done == 0:
            restore_grid(run.scheduler, run.sigmas, run.timesteps)

    def _scale_model_input(self, original: Callable[..., Any], scheduler: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if (run := self.runs.of(scheduler)) is not None and isinstance(result, Tensor):
            run.scaled(result)
        return result

    def _step(self, original: Callable[..., Any], scheduler: Any, *args: Any, **kwargs: Any) -> Any:
        run = self.runs.of(scheduler)
        if run is None or run.beside:
            return original(*args, **kwargs)
        check_intact(self, self.denoisers, self.scheduler, self._pipe())
        bound = dict(zip(STEP_ARGUMENTS, args, strict=False))
        bound |= {name: kwargs.pop(name) for name in STEP_ARGUMENTS if name in kwargs}
        if run.steps_done == 0:
            run.step, run.batch = first_index(scheduler, bound["timestep"]), len(bound["sample"])
            run.options = {**dict(zip(step_options(original), args[3:], strict=False)), **kwargs}
            if not self._claim(run, bound["sample"]):
                return original(*bound.values(), *args[3:], **kwargs)
        elif not run.contexts:
            self._without_calls(run)
        output = self._asked(run, lambda: run.controller.solve(run, bound["model_output"], bound["sample"]))
        given = (output, bound["timestep"], bound["sample"])
        result = solver_step(original, scheduler, run.step, *given, *args[3:], **kwargs)
        x_next = result[0] if isinstance(result, tuple) else result.prev_sample
        run.controller.end_step(run, x_next)
        run.go_on_from(x_next)
        if run.step == run.T:
            self._end(run)
        return result

    def _claim(self, run: Run, sample: Tensor) -> bool:
        """Tell the controller of the calls of the first step; whether there were any."""
        if not run.controller.replays and run.contexts:
            return True
        offered, calls = bool(run.first), run.claim(sample)
        self._forget(run)
        if offered and not calls:
            run.beside = True
            refuse_beside(run, self.runs.all(), self.denoisers[0])
        elif not calls:  # of another denoiser, as of a pipeline that was copied whole
            refuse_taken(run, self.runs.all(), sample)
            restore_grid(run.scheduler, run.sigmas, run.timesteps)
            self._end(run)
        for call in calls:
            self._serve(run, call.denoiser, call.guidance)
            if run.stack is not None:
                run.stack.residual = call.residual
            context = run.name_call(call.name)
            self._asked(run, functools.partial(call.tell, run, context))
        return bool(calls)

    def _without_calls(self, run: Run) -> None:
        """At a step that none of the run's own denoiser calls came before."""
        self._go_without(run, without_calls(run, self.denoisers[0]), by_need=run.strangers > 0)

    def _end(self, run: Run) -> None:
        if self.runs.end(run):
            self._forget(run)
            run.controller.end(run)
        if self._leaving:
            self.detach()

    def _forget(self, run: Run) -> None:
        for _ in range(run.forget()):
            self.controller.passed_by()

    def _forward(self, n: int, original: Callable[..., Any], denoiser: Any, *args: Any, **kwargs: Any) -> Any:
        refuse_tracing(denoiser)
        check_intact(self, self.denoisers, self.scheduler, self._pipe())
        frames = callers()
        owners = self.runs.owners(frames, lambda: latent_of(args, kwargs, denoiser))
        with self._one_at_a_time if self._stacks and not self.controller.takes_turns else nullcontext():
            return self._call(owners, n, original, denoiser, (args, kwargs), frames)

    def _call(
        self, owners: list[Run], n: int, original: Callable[..., Any], denoiser: Any, given: tuple[Any, Any],
        frames: list[FrameType],
    ) -> Any:  # fmt: skip
        args, kwargs = given
        if all(run.steps_done == 0 for run in owners):
            refuse_unclaimed(self.runs.all(), frames)
        if not owners:
            self.controller.passed_by()
            return self._plain(n, original, args, kwargs)[0]
        latent_of(args, kwargs, denoiser)  # refused here if there is none
        for run in owners:
            run.settle(frames, self._pipe(), self._end)
        first = [run for run in owners if run.steps_done == 0 and run.controller.replays]
        if not first:
            owners[0].know(frames)
            return self._answer(owners[0], n, original, denoiser, args, kwargs)
        output, residual = self._plain(n, original, args, kwargs)
        self._remember(first, n, denoiser, given, output, residual, frames)
        return output

    def _plain(self, n: int, original: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Any, Tensor | None]:
        """What the denoiser returns, and the residual of its block stack."""
        output = original(*args, **kwargs)
        stack = self._stacks[n] if self._stacks else None
        return output, None if stack is None else stack.drop_residual()

    def _remember(
        self, runs: list[Run], n: int, denoiser: Any, given: tuple[Any, Any], output: Any, residual: Tensor | None,
        frames: list[FrameType],
    ) -> None:  # fmt: skip
        args, kwargs = given
        x = latent_of(args, kwargs, denoiser)
        value, form = read_output(output, x, denoiser)
        for run in runs:
            run.form = form
        call = FirstCall(
            name=self._contexts.name, x=x, output=value.clone(), denoiser=n, residual=residual,
            guidance=kwargs.get("guidance"), path=path_to(frames, runs[0].depth(frames) or 0), offered=len(runs),
        )  # fmt: skip
        for run in runs:
            run.remember(call)

    def _answer(self, run: Run, n: int, original: Callable[..., Any], denoiser: Any, args: Any, kwargs: Any) -> Any:
        x = latent_of(args, kwargs, denoiser)
        self._serve(run, n, kwargs.get("guidance"))
        context = run.name_call(self._contexts.name)
        computed: list[tuple[Any, Tensor]] = []

        def compute(model: Callable[..., Any] = original) -> Tensor:
            output = model(*args, **kwargs)
            value, run.form = read_output(output, x, denoiser)
            computed.append((output, value))
            return value

        def ask() -> Tensor:
            return run.controller.call(run, context, x, (lambda: computed[-1][1]) if computed else compute)

        try:
            value = self._asked(run, ask)
        except BaseException:
            run.contexts.pop()  # not made: a loop that handles the error may make it again
            raise
        if computed and computed[-1][1] is value:
            return computed[-1][0]
        return (run.form or form_without(kwargs.get("return_dict", True))).wrap(value, denoiser)

    def _serve(self, run: Run, n: int, guidance: Any) -> None:
        run.denoiser, run.stack = n, self._stacks[n] if self._stacks else None
        run.embedded = guidance if isinstance(guidance, Tensor) else None


def attachment_of(pipe: Any) -> Attachment | None:
    """The attachment on a pipeline's denoiser, or else on its scheduler, if there is one."""
    for instance, names in reversed(where_attached(denoisers_of(pipe), pipe.scheduler)):
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
