"""One run by several models in one process: `split`, the form in which Hybrid SD (arXiv 2408.06646) was published."""

import weakref
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any

from torch import nn

from ertacache.errors import CacheConflict, InvalidArgument
from ertacache.pipelines.models import denoisers_of
from ertacache.pipelines.overrides import Overrides, overrides_of
from ertacache.runtime.caller import Place, Scope, all_of_diffusers, callers, common, path_to, places
from ertacache.runtime.conflicts import refuse_conflicts
from ertacache.runtime.pair import check_pair
from ertacache.split.profile import SplitProfile


@dataclass
class SplitStats:
    """What the models of a split did.

    Attributes:
        calls: denoiser calls of each model, the large one first.
        runs: pipeline calls that were split.
        outside: calls of the large model's denoiser that belong to no run of this pipeline; it answers them itself.
    """

    calls: list[int]
    runs: int = 0
    outside: int = 0


@contextmanager
def split(
    large: Any,
    *others: Any,
    switch: int | Sequence[int] | None = None,
    models: Sequence[int] | None = None,
    profile: SplitProfile | None = None,
) -> Generator[SplitStats]:
    """Let other models make some of the steps of a pipeline, for the length of a `with` block.

    The solver is that of `large` throughout and keeps its history across the switch, as in Hybrid SD; so do text
    encoders, autoencoder and guidance. A profile is applied inside of the block: it then follows the run whichever
    model computes, and one that is calibrated there fits across the switch.

    Args:
        large: the pipeline that is called.
        others: pipelines, or denoisers alone, which share its latents and texts, on the same device.
        switch: solver step at which each of the others takes over from the one before: with one of them a number from
            0 (all by it) to the number of steps (none), else one for each, rising.
        models: instead, which model makes each step: 0 for `large`, 1 for the first of the others. As long as the run.
        profile: instead, from `calibrate_split`, for these two models and runs of as many steps.

    Yields:
        Counters that follow the runs.

    Raises:
        InvalidArgument: no such switch, or not one of `switch`, `models` and `profile`; in a call with other steps than
            they name.
        SplitMismatch: a model with other latents or texts, or of another class than the profile was measured on.
        CacheConflict: the pipeline is split already, or a profile or another cache is on.

    Warns:
        UserWarning: a model has other weights than the profile was measured on.
    """
    if profile is not None:
        if switch is not None or models is not None:
            raise InvalidArgument("the profile says which model makes each step; leave switch and models out")
        profile.check(large, others)
        models = profile.models
    turns = Turns(large, others, *_checked(others, switch, models))
    try:
        yield turns.stats
    finally:
        turns.remove()


def _checked(
    others: Sequence[Any], switch: int | Sequence[int] | None, models: Sequence[int] | None
) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """The switches in order, and the model of each step where these are given."""
    if not others:
        raise InvalidArgument("there is one model only; give another pipeline to take over: split(large, small, ...)")
    if (switch is None) == (models is None):
        given = "neither" if switch is None else "both"
        raise InvalidArgument(f"{given} of switch and models is given; pass switch=12, or the model of each step")
    if models is not None:
        plan = tuple(models)
        if not plan or any(type(n) is not int or not 0 <= n <= len(others) for n in plan):
            raise InvalidArgument(
                f"models is {list(plan)}; name a model for each step: 0 for the large one, up to {len(others)}"
            )
        return (), plan
    found = (switch,) if isinstance(switch, int) else tuple(switch or ())
    if len(found) != len(others) or any(type(n) is not int or n < 0 for n in found) or list(found) != sorted(found):
        raise InvalidArgument(
            f"switch is {switch!r}; give the step at which each of the {len(others)} other models takes over, rising "
            "from 0 on"
        )
    return found, None


@dataclass(eq=False)
class _Loop:
    """A run under way: where it began, how many steps it has made, and the ways of its first one's calls."""

    begun: frozenset[Place]
    plan: tuple[int, ...]
    made: int = 0
    scope: Scope | None = field(default=None)
    paths: set[tuple[CodeType, ...]] = field(default_factory=set[tuple[CodeType, ...]])


class Turns(Overrides):
    """Answers the denoiser's calls of each step with the model whose turn it is."""

    def __init__(
        self, large: Any, others: Sequence[Any], switches: tuple[int, ...], plan: tuple[int, ...] | None
    ) -> None:
        super().__init__()
        own = denoisers_of(large)
        if isinstance(overrides_of(large.scheduler, "step"), Turns):
            raise CacheConflict("this pipeline is split already; leave that `with` block first")
        refuse_conflicts(own, large.scheduler)
        for number, other in enumerate(others, 1):
            check_pair(large, other, f"model {number}")
        self._others = [(one,) if isinstance(one, nn.Module) else denoisers_of(one) for one in others]
        self._pipe, self._switches, self._plan = weakref.ref(large), switches, plan
        self._loops: weakref.WeakKeyDictionary[Any, _Loop] = weakref.WeakKeyDictionary()
        self.stats = SplitStats([0] * (1 + len(others)))
        self.replace(large.scheduler, "set_timesteps", self._set_timesteps)
        self.replace(large.scheduler, "step", self._step)
        for n, denoiser in enumerate(own):
            self.replace_call(denoiser, self._caller(n))

    def _set_timesteps(self, original: Callable[..., Any], scheduler: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        self._loops[scheduler] = _Loop(places(callers()), self._plan_of(len(scheduler.timesteps)))
        self.stats.runs += 1
        return result

    def _plan_of(self, steps: int) -> tuple[int, ...]:
        """Which model makes each of so many steps."""
        if self._plan is not None:
            if len(self._plan) != steps:
                raise InvalidArgument(
                    f"models names {len(self._plan)} steps and the solver makes {steps}; name them all"
                )
            return self._plan
        if self._switches[-1] > steps:
            raise InvalidArgument(f"switch is {self._switches[-1]} and the solver makes {steps} steps; switch before")
        return tuple(sum(i >= switch for switch in self._switches) for i in range(steps))

    def _step(self, original: Callable[..., Any], scheduler: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if (loop := self._loops.get(scheduler)) is not None:
            loop.made += 1
            if loop.made == len(loop.plan):
                del self._loops[scheduler]
        return result

    def _caller(self, n: int) -> Callable[..., Any]:
        def call(original: Callable[..., Any], denoiser: Any, *args: Any, **kwargs: Any) -> Any:
            loop = self._owner(callers())
            if loop is None:
                self.stats.outside += 1
                return original(*args, **kwargs)
            model = loop.plan[loop.made]
            self.stats.calls[model] += 1
            if model == 0:
                return original(*args, **kwargs)
            known = self._others[model - 1]
            return known[min(n, len(known) - 1)](*args, **kwargs)

        return call

    def _owner(self, frames: list[FrameType]) -> _Loop | None:
        """The run that a call belongs to: of those begun in a function under way here, the innermost.

        From a pipeline's loop every function on the way is the library's own, or one that the first step's calls took;
        a callback's calls are somebody else's.
        """
        placed: list[tuple[int, _Loop]] = []
        for loop in list(self._loops.values()):
            if loop.scope is None and (frame := common(frames, loop.begun)) is not None:
                loop.scope = Scope(frame, self._pipe())
            depth = None if loop.scope is None else loop.scope.depth(frames)
            if depth is not None:
                placed.append((depth, loop))
        depth, loop = min(placed, key=lambda item: item[0], default=(0, None))
        if loop is None or loop.scope is None or not loop.scope.of_pipeline:
            return loop
        path = path_to(frames, depth)
        if loop.made == 0:
            loop.paths.add(path)
        return loop if path in loop.paths or all_of_diffusers(frames, depth) else None
