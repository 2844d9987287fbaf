"""What both parts of a cut run put around one pipeline: its solver's steps and its denoiser's calls, counted."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self

from torch import Tensor

from ertacache.errors import CacheConflict, UnsupportedPipeline
from ertacache.pipelines.models import denoisers_of
from ertacache.pipelines.overrides import Overrides, overrides_of
from ertacache.pipelines.solvers import STEP_ARGUMENTS, first_index
from ertacache.runtime.conflicts import where_attached


class Cut(Overrides, ABC):
    """Around one call of a pipeline, in this thread; everything comes off at the end of the `with` block.

    Attributes:
        pipe: the pipeline. made: solver steps so far, those passed over included. calls: of the denoiser, likewise.

    Raises:
        CacheConflict: another one is on the pipeline's scheduler.
    """

    def __init__(self, pipe: Any) -> None:
        super().__init__()
        self.pipe, self.made, self.calls = pipe, 0, 0
        self._thread, self._runs = threading.get_ident(), 0

    @abstractmethod
    def begun(self, scheduler: Any) -> None:
        """After `scheduler.set_timesteps`."""

    @abstractmethod
    def denoise(self, compute: Callable[[], Any], denoiser: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """One call of the denoiser: what it returns, from `compute()` or without it."""

    @abstractmethod
    def advance(self, compute: Callable[[], Any], scheduler: Any, sample: Tensor, options: dict[str, Any]) -> Any:
        """One solver step from the latent `sample`: what it returns, from `compute()` or without it."""

    def __enter__(self) -> Self:
        pipe = self.pipe
        for instance, names in where_attached(denoisers_of(pipe), pipe.scheduler):
            if isinstance(overrides_of(instance, *names), Cut):
                raise CacheConflict(
                    f"a part of a split run is under way on this {type(instance).__name__}; make one call after the "
                    "other, or give each a pipeline of its own"
                )
        self.replace(pipe.scheduler, "set_timesteps", self._set_timesteps)
        self.replace(pipe.scheduler, "step", self._step)
        for denoiser in denoisers_of(pipe):
            self.replace_call(denoiser, self._call)
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def _set_timesteps(self, original: Callable[..., Any], scheduler: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if threading.get_ident() == self._thread:
            self._runs += 1
            if scheduler is not self.pipe.scheduler or self._runs > 1:
                raise UnsupportedPipeline(
                    f"{type(self.pipe).__name__} runs its solver more than once in a call, or a copy of it, so that "
                    "one state is not all of it; use split(large, small, switch=...) in one process"
                )
            self.begun(scheduler)
        return result

    def _call(self, original: Callable[..., Any], denoiser: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != self._thread:
            return original(*args, **kwargs)
        result = self.denoise(lambda: original(*args, **kwargs), denoiser, args, kwargs)
        self.calls += 1
        return result

    def _step(self, original: Callable[..., Any], scheduler: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != self._thread:
            return original(*args, **kwargs)
        bound = {**dict(zip(STEP_ARGUMENTS, args, strict=False)), **kwargs}
        if scheduler is not self.pipe.scheduler or (self.made == 0 and first_index(scheduler, bound["timestep"]) != 0):
            raise UnsupportedPipeline(
                f"{type(self.pipe).__name__} does not begin at the first step of its own solver, as where it starts "
                "from an image; only runs from noise are cut"
            )
        result = self.advance(lambda: original(*args, **kwargs), scheduler, bound["sample"], kwargs)
        self.made += 1
        return result
