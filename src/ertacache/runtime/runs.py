"""The runs that are under way on one pipeline's parts, and whose a denoiser call is."""

import threading
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

from torch import Tensor

from ertacache.runtime.run import Run


class Runs:
    """The runs under way by scheduler; those of a scheduler that is gone are gone."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._open: weakref.WeakKeyDictionary[Any, Run] = weakref.WeakKeyDictionary()

    def add(self, run: Run) -> None:
        """Begin."""
        with self._lock:
            self._open[run.scheduler] = run

    def end(self, run: Run) -> bool:
        """Forget a run; whether it was under way."""
        with self._lock:
            found = run.scheduler is not None and self._open.get(run.scheduler) is run
            if found:
                del self._open[run.scheduler]
            return found

    def of(self, scheduler: Any) -> Run | None:
        """The run of a scheduler."""
        with self._lock:
            return self._open.get(scheduler)

    def all(self) -> list[Run]:
        """Every run under way."""
        with self._lock:
            return list(self._open.values())

    def owners(self, frames: list[FrameType], latent: Callable[[], Tensor]) -> list[Run]:
        """Whose a denoiser call is: of one run, of none, or not known yet, of several at their first step.

        Args:
            latent: gives what the denoiser is called on, [B, *].
        """
        placed = [(depth, run) for run in self.all() if (depth := run.depth(frames)) is not None and not run.beside]
        innermost = min((depth for depth, _ in placed), default=0)
        group = [run for depth, run in placed if depth == innermost and run.takes(frames, depth, latent)]
        later = [run for run in group if run.steps_done and run.heir not in group]
        if len(later) > 1:
            later = [run for run in later if run.continues(latent())]
        if len(later) > 1:
            later = [run for run in later if run.holds(latent())]
        if len(later) == 1:
            return later
        return [run for run in group if not run.steps_done]
