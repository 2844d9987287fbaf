"""A run of the denoising loop, what decides in it, and which denoiser calls are its own."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any, cast

from torch import Tensor, nn

from ertacache.errors import ErtacacheError
from ertacache.pipelines.block_stack import BlockStack
from ertacache.pipelines.denoiser_call import OutputForm
from ertacache.pipelines.overrides import Overrides
from ertacache.runtime.caller import Place, Scope, all_of_diffusers, callers, common, path_to
from ertacache.runtime.latents import derives, same_memory

#: First calls that are remembered until the solver steps; more come only from those who never step.
_REMEMBERED = 64


@dataclass(eq=False)
class FirstCall:
    """A denoiser call before the first step of a run, which shows afterwards to belong to it or not.

    Attributes:
        name: its cache context, or None.
        x: [B, *] the latent it was given. output: [B, *] what came of it, a copy.
        denoiser: which one it was.
        residual: of its block stack, at site hidden.
        guidance: the embedded guidance weight that it was given, if any.
        path: the functions through which it came from the scope of the run.
        offered: how many runs it may belong to. waiting: how many of them may still claim it.
        claimed: whether one of them has taken it for its own.
    """

    name: str | None
    x: Tensor
    output: Tensor
    denoiser: int
    residual: Tensor | None
    guidance: Tensor | None
    path: tuple[CodeType, ...]
    offered: int = 1
    claimed: bool = False

    def __post_init__(self) -> None:
        self.waiting = self.offered

    def tell(self, run: "Run", context: str) -> None:
        """Tell the controller of the run that it was made."""
        run.controller.call(run, context, self.x, lambda: self.output)


class Controller:
    """What to do at each point of a run. The default watches and changes nothing."""

    #: Names for the calls of a step where the pipeline sets no cache context; call0, call1, ... without.
    call_names: tuple[str, ...] = ()
    #: Whether it can follow several denoisers that take over from each other.
    several: bool = True
    #: Whether what the denoiser returns may be a placeholder, which `solve` replaces for the solver of the run only.
    placeholders: bool = False
    #: Whether the calls of the first step may be told to it when that step ends, once it is known whose they are.
    replays: bool = False
    #: Whether its runs take turns by themselves, one denoiser call at a time.
    takes_turns: bool = False

    def install(self, overrides: Overrides, denoiser: nn.Module) -> None:
        """Replace further methods of the denoiser's parts through `overrides`, which puts them back."""

    def for_run(self, run: "Run") -> "Controller":
        """What decides in a run that begins: where several are under way at once, one of their own for each."""
        return self

    def passed_by(self) -> None:
        """A denoiser call that belongs to no run was computed."""

    def begin(self, run: "Run") -> None:
        """After `scheduler.set_timesteps`; the grid may be changed here."""

    def call(self, run: "Run", context: str, x: Tensor, compute: Callable[..., Tensor]) -> Tensor:
        """One denoiser call on the latent `x`: its output, from `compute()`, from `compute(model)`, which calls another
        model with the same arguments (not in a first step that is replayed), or without either."""
        return compute()

    def solve(self, run: "Run", output: Tensor, x: Tensor) -> Tensor:
        """What the solver receives, given what the pipeline made of the calls and the latent `x`."""
        return output

    def end_step(self, run: "Run", x_next: Tensor) -> None:
        """After `scheduler.step`."""

    def end(self, run: "Run") -> None:
        """The run is over, or will never go on: let go of what was kept for it."""

    def without(self, run: "Run", error: ErtacacheError, *, by_need: bool) -> "Controller":
        """What goes on instead where the run does not suit it; by default the error is raised.

        Args:
            by_need: the run has gone its own way already and can only be left alone, or refused.
        """
        raise error


class Run:
    """One pass through the denoising loop, which belongs to the scheduler that set its timesteps.

    Attributes:
        sigmas: its grid [T+1] on the CPU, before any change. timesteps: those of it, as the scheduler has them.
        controller: what decides in it.
        stack: the block stack of the denoiser that serves, where site `hidden` is attached.
        step: index in the grid of the step under way. The first step of a run is index 0 until
            `scheduler.step` tells where a late start (image to image) began.
        contexts: call names seen in this step, in order.
        denoiser: which denoiser serves the step, 0 for the first one; known from its first call on.
        scope: the function in which its denoiser calls and steps are made; None until the first call.
        beside: whether it integrates something else with what another run's calls returned.
        embedded: the tensor of the embedded guidance weight that the denoiser was given last, if any.
        batch: samples that the solver integrates; known from the first step on.
        options: what `scheduler.step` is given besides its first three arguments, by name.
        form: in which the denoiser hands over its output, once that was seen.
        heir: a run that began in the same function since the last step: of a pipeline whose first loop ended early.
        strangers: denoiser calls since the last step that were made inside of the run's function by another way.
    """

    def __init__(
        self, scheduler: Any, sigmas: Tensor, controller: Controller, begun: frozenset[Place] = frozenset()
    ) -> None:
        self._scheduler = weakref.ref(scheduler)
        self.sigmas, self.controller, self.begun = sigmas, controller, begun
        self.timesteps = cast("Tensor", scheduler.timesteps).clone()
        self.stack: BlockStack | None = None
        self.step = self.steps_done = self.denoiser = self.strangers = 0
        self.contexts: list[str] = []
        self.embedded: Tensor | None = None
        self.batch = 1
        self.options: dict[str, Any] = {}
        self.form: OutputForm | None = None
        self.scope: Scope | None = None
        self.beside = False
        self.heir: Run | None = None
        self.first: list[FirstCall] = []
        self.paths: set[tuple[CodeType, ...]] = set()
        self._placed = False  # whether the first denoiser call has told where it lives
        self._follows = False  # whether the first step started from the latent that the denoiser had been given
        self._latents: list[weakref.ref[Tensor]] = []
        self._held: list[Tensor] = []  # the same where nobody else may hold them

    @property
    def scheduler(self) -> Any:
        """The one that runs (a pipeline may have copied its own)."""
        return self._scheduler()

    @property
    def T(self) -> int:
        """Number of steps of the grid."""
        return len(self.sigmas) - 1

    @property
    def guidance(self) -> float | None:
        """The embedded guidance weight that the denoiser was given last. Waits for the device."""
        return None if self.embedded is None else float(self.embedded.flatten()[0])

    @property
    def by_hand(self) -> bool:
        """Whether it runs outside of any pipeline call: then only the latent tells its calls from others."""
        return self.scope is None or not self.scope.of_pipeline

    def depth(self, frames: list[FrameType]) -> int | None:
        """How far out among these frames the function lies in which the run lives; None where it does not."""
        if self.scope is not None:
            depth = self.scope.depth(frames)
            # By hand, each step may be made by another worker thread than the one in which the run began.
            handed_on = depth is None and self.by_hand and self.steps_done > 0 and self.scope.alive()
            return len(frames) if handed_on else depth
        shared = None if self._placed else common(frames, self.begun)
        # None of the calls that began it: somebody steps by hand, each time from elsewhere.
        return len(frames) if shared is None else frames.index(shared)

    def settle(self, frames: list[FrameType], pipe: object, at_end: Callable[["Run"], object]) -> None:
        """Note in which function it lives, at its first denoiser call; `at_end` is called when that has ended."""
        if not self._placed and (shared := common(frames, self.begun)) is not None:
            self.scope = Scope(shared, pipe)
            self.scope.at_end(at_end, self)
        self._placed = True

    def lives_with(self, other: "Run") -> bool:
        """Whether both live in one function."""
        return self.scope is not None and other.scope is not None and self.scope.place == other.scope.place

    def is_followed_by(self, run: "Run", frames: list[FrameType]) -> None:
        """Note a run that begins in the very pipeline function in which this one is under way."""
        depth = None if self.by_hand or not self.steps_done else self.depth(frames)
        if depth is not None and all_of_diffusers(frames, depth):
            self.heir = run

    def in_the_middle(self) -> bool:
        """Whether it cannot be left alone now: a pipeline is in its loop, or a step by hand waits for its solver.

        A loop by hand knows itself when it has the profile taken off.
        """
        if self.scope is None or not self.scope.under_way():
            return False
        return not self.by_hand or (bool(self.contexts or self.first) and self.scope.depth(callers()) is None)

    def takes(self, frames: list[FrameType], depth: int, latent: Callable[[], Tensor]) -> bool:
        """Whether a call through these frames, from the function in which the run lives, is one of its own."""
        if self.steps_done == 0:
            return True
        path = path_to(frames, depth)
        known = path in self.paths or (depth > 0 and all_of_diffusers(frames, depth))
        if depth == len(frames) and self.scope is not None:  # from elsewhere: further out lie the calls of that thread
            known = any(way and path[: len(way)] == way for way in self.paths)
        own = known and not (self.by_hand and self._follows and not self.continues(latent()))
        self.strangers += not own
        return own

    def know(self, frames: list[FrameType]) -> None:
        """A call of the first step, whose way is that of later ones."""
        if self.steps_done == 0:
            self.paths.add(path_to(frames, self.depth(frames) or 0))

    def continues(self, x: Tensor) -> bool:
        """Whether a denoiser was given the latent that the last step returned, or what the scheduler scaled it to."""
        return any(derives(x, latent) for latent in self._seen())

    def holds(self, x: Tensor) -> bool:
        """The same of the very tensor, where others of the same values are about."""
        return any(same_memory(x, latent) for latent in self._seen())

    def _seen(self) -> list[Tensor]:
        return [latent for ref in self._latents if (latent := ref()) is not None]

    def go_on_from(self, latent: Tensor) -> None:
        """A step is done; it returned this latent [B, *]."""
        self.step += 1
        self.steps_done += 1
        self.strangers = 0
        self.heir = None
        self.contexts.clear()
        self._latents, self._held = [weakref.ref(latent)], [latent] if self.by_hand else []

    def scaled(self, latent: Tensor) -> None:
        """Remember what `scheduler.scale_model_input` made of it for this step."""
        self._latents.append(weakref.ref(latent))
        self._held += [latent] if self.by_hand else []

    def name_call(self, context: str | None) -> str:
        """Note a call of this step; its name, by the cache context it was made in or else by its order."""
        order, names = len(self.contexts), self.controller.call_names
        name = context or (names[order] if order < len(names) else f"call{order}")
        self.contexts.append(name)
        return name

    def remember(self, call: FirstCall) -> None:
        """Keep a call until the first step tells whose it is."""
        self.first.append(call)  # in one piece: another thread may do the same
        if len(self.first) > _REMEMBERED:
            self.first.pop(0).waiting -= 1

    def forget(self) -> int:
        """Let go of the calls that it did not claim; how many of them nobody claims any more."""
        calls, self.first = self.first, []
        for call in calls:
            call.waiting -= 1
        return sum(not call.claimed and call.waiting == 0 for call in calls)

    def claim(self, sample: Tensor) -> list[FirstCall]:
        """The calls of its first step: those from the latent [B, *] on that the solver steps.

        Where the pipeline gives the denoiser something else than its latent, all of them; none where another run may
        have made them.
        """
        alone = self.scope is not None and all(call.offered == 1 for call in self.first)
        free = [call for call in list(self.first) if not call.claimed]
        own = [n for n, call in enumerate(free) if derives(call.x, sample) or self.continues(call.x)]
        self._follows = bool(own)
        if alone:
            mine = free[own[0] :] if own else free  # what stands before the latent was made before the loop
        else:  # of requests from the same noise, each by its own tensor
            very = [n for n in own if same_memory(free[n].x, sample) or self.holds(free[n].x)]
            mine = [free[n] for n in very or own]
        for call in mine:
            call.claimed = True
        self.paths = {call.path for call in mine}
        return mine
