"""Results of finished calibration runs, so that an interrupted calibration continues where it stopped."""

import io
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ertacache.errors import CalibrationError
from ertacache.files import check_output, reason, write_atomic

logger = logging.getLogger(__name__)


class Cost(NamedTuple):
    """What runs took.

    Attributes:
        runs: computed denoiser steps, in uncached pipeline runs of one prompt.
        seconds: of whole pipeline calls.
    """

    runs: float = 0.0
    seconds: float = 0.0

    def plus(self, other: "Cost") -> "Cost":
        """Both together."""
        return Cost(self.runs + other.runs, self.seconds + other.seconds)


class RunStore:
    """A memory of runs by name, written to a file after each one where a path is given, with what they cost.

    A run may take the results of others from the store: it costs what they do and its own.

    Args:
        path: file to continue from and to write to, or None for this process only.
        identity: fingerprint of everything that the runs depend on.

    Raises:
        CalibrationError: the file belongs to another calibration or cannot be read.
        InvalidArgument: it could not be written.
    """

    def __init__(self, path: str | os.PathLike[str] | None, identity: str) -> None:
        self._path = Path(path) if path is not None else None
        self._identity = identity
        self._results: dict[str, Any] = {}
        self._costs: dict[str, Cost] = {}
        self._running: list[str] = []
        self._used: set[str] = set()
        self._told = False
        if self._path is not None:
            check_output(self._path, "checkpoint")
        if self._path is not None and self._path.exists():
            self._results, self._costs = self._read(self._path)

    @property
    def spent(self) -> Cost:
        """What all results cost that were asked for, whenever they were made."""
        total = Cost()
        for name in sorted(self._used):
            total = total.plus(self._costs[name])
        return total

    def get(self, name: str, run: Callable[[], Any]) -> Any:
        """The stored result of `name`, else that of `run()`, stored."""
        if name not in self._results:
            self._costs[name] = Cost()
            self._running.append(name)
            try:
                result = run()
            finally:
                self._running.pop()
            self._results[name] = result
            self._write()
        if self._running:
            self.charge(self._costs[name])
        else:
            self._used.add(name)
        return self._results[name]

    def charge(self, cost: Cost) -> None:
        """Add to what the run under way costs."""
        self._costs[self._running[-1]] = self._costs[self._running[-1]].plus(cost)

    def __contains__(self, name: str) -> bool:
        return name in self._results

    def drop(self, prefix: str, heir: str | None = None) -> None:
        """Forget the results whose name starts with `prefix`; the file follows when it is next written.

        Args:
            heir: a result that was made from them, which costs what they did from now on.
        """
        if heir is not None:
            for name in filter(lambda name: name.startswith(prefix), self._results):
                self._costs[heir] = self._costs[heir].plus(self._costs[name])
        self._results = {name: result for name, result in self._results.items() if not name.startswith(prefix)}

    def _read(self, path: Path) -> tuple[dict[str, Any], dict[str, Cost]]:
        try:
            content = torch.load(path, weights_only=True)
            identity, results = content["identity"], dict(content["results"].items())
            costs = {name: Cost(*content["costs"][name]) for name in results}
        except Exception as error:  # not its text: torch would advise to load the file without its safeguard
            kind = type(error).__name__
            raise CalibrationError(f"checkpoint {path} cannot be read ({kind}); delete it to start afresh") from error
        if identity != self._identity:
            raise CalibrationError(
                f"checkpoint {path} belongs to another calibration (model, prompts, seed or call differ); delete it or "
                "name another file"
            )
        return results, costs

    def _write(self) -> None:
        if self._path is None:
            return
        buffer = io.BytesIO()
        costs = {name: tuple(self._costs[name]) for name in self._results}
        torch.save({"identity": self._identity, "results": self._results, "costs": costs}, buffer)
        try:
            write_atomic(self._path, buffer.getvalue())
        except OSError as error:  # the runs are worth more than the file
            if not self._told:
                why, self._told = reason(error), True
                logger.warning("checkpoint %s cannot be written (%s); the calibration goes on without", self._path, why)
