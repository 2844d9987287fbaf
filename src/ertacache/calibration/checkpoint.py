"""Results of finished calibration runs, so that an interrupted calibration continues where it stopped."""

import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ertacache.calibration.recording import Recording
from ertacache.errors import CalibrationError, InvalidArgument
from ertacache.files import check_output, json_object, reason, write_atomic
from ertacache.runtime.folder_lock import locked

logger = logging.getLogger(__name__)

_IDENTITY = "calibration.json"


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


@contextmanager
def owned(path: str | os.PathLike[str] | None) -> Generator[None]:
    """Keep the folder of a checkpoint, where there is one, to this process.

    Raises:
        InvalidArgument: it is none, could not be written, or another process has it.
    """
    if path is None:
        yield
        return
    with locked(check_folder(path)):
        yield


class RunStore:
    """A memory of runs by name with what they cost; in a folder, one file each, where a path is given.

    A run may take the results of others from the store: it costs what they do and its own.

    Args:
        path: folder to continue from and to write to, or None for this process only.
        identity: fingerprint of everything that the runs depend on.
        shared: other processes add results, in files even where no path is given.

    Attributes:
        folder: for files that runs leave beside their results; a temporary one where no path is given.

    Raises:
        CalibrationError: the folder belongs to another calibration or cannot be read.
        InvalidArgument: it is none, or could not be written.
    """

    def __init__(self, path: str | os.PathLike[str] | None, identity: str, *, shared: bool = False) -> None:
        self._results: dict[str, Any] = {}
        self._costs: dict[str, Cost] = {}
        self._running: list[str] = []
        self._used: set[str] = set()
        self._told = False
        self._kept = path is not None or shared
        if path is None:
            self.folder = Path(tempfile.mkdtemp(prefix="ertacache-"))
            # With the store, or at the end of the process.
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        else:
            self.folder = check_folder(path)
        if self._kept:
            self._begin(identity)

    @property
    def spent(self) -> Cost:
        """What all results cost that were asked for, whenever they were made."""
        total = Cost()
        for name in sorted(self._used):
            total = total.plus(self._costs[name])
        return total

    def get(self, name: str, run: Callable[[], Any]) -> Any:
        """The stored result of `name`, else that of `run()`, stored."""
        if name not in self._results and not self._read(name):
            self._costs[name] = Cost()
            self._running.append(name)
            try:
                result = run()
            finally:
                self._running.pop()
            self._results[name] = result
            self._write(name)
        if self._running:
            self.charge(self._costs[name])
        else:
            self._used.add(name)
        return self._results[name]

    def charge(self, cost: Cost) -> None:
        """Add to what the run under way costs."""
        self._costs[self._running[-1]] = self._costs[self._running[-1]].plus(cost)

    def __contains__(self, name: str) -> bool:
        return name in self._results or self._read(name)

    def file(self, name: str, kind: str = "bin") -> Path:
        """Where a run of this name may leave more than its result."""
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.{kind}"

    def opened(self, name: str, layout: dict[str, Any]) -> Recording:
        """The recording that the run of this name has left.

        Raises:
            CalibrationError: it is gone or damaged.
        """
        path = self.file(name)
        try:
            return Recording.open(path, layout)
        except (OSError, KeyError, TypeError, AttributeError) as error:
            raise self._unreadable(path, error) from error

    @property
    def identity(self) -> Path:
        """The file by which the folder is known to belong to a calibration."""
        return self.folder / _IDENTITY

    def _begin(self, identity: str) -> None:
        path, found = self.identity, None
        if path.exists():
            try:
                found = json_object(path.read_bytes()).get("identity")
            except (OSError, ValueError) as error:
                raise self._unreadable(path, error) from error
        if found == identity:
            return
        others = sorted({entry.name for entry in self.folder.iterdir() if not entry.name.startswith(".")} - {path.name})
        if others and path.exists():
            raise CalibrationError(
                f"checkpoint {self.folder} belongs to another calibration (model, prompts, seed or call differ); "
                "delete it or name another folder"
            )
        if others:
            raise InvalidArgument(
                f"checkpoint {self.folder} is a folder with other files ({others[0]}); name an empty or a new one"
            )
        # Of one that ended before its first run, such as one that was refused, there is nothing to lose.
        self._put(path, json.dumps({"identity": identity}).encode())

    def _read(self, name: str) -> bool:
        """Whether an earlier process has left the result."""
        path = self.file(name, "pt")
        if not self._kept or not path.exists():
            return False
        try:
            content = torch.load(path, weights_only=True)
            result, cost = content["result"], Cost(*content["cost"])
            if content["name"] != name:
                raise ValueError(content["name"])
        except Exception as error:  # not its text: torch would advise to load the file without its safeguard
            raise self._unreadable(path, error) from error
        self._results[name], self._costs[name] = result, cost
        return True

    def _unreadable(self, path: Path, error: Exception) -> CalibrationError:
        return CalibrationError(
            f"checkpoint {path} cannot be read ({type(error).__name__}); delete {self.folder} to start afresh"
        )

    def _write(self, name: str) -> None:
        if not self._kept:
            return
        buffer = io.BytesIO()
        torch.save({"name": name, "result": self._results[name], "cost": tuple(self._costs[name])}, buffer)
        self._put(self.file(name, "pt"), buffer.getvalue())

    def _put(self, path: Path, content: bytes) -> None:
        try:
            write_atomic(path, content)
        except OSError as error:  # the runs are worth more than the file
            if not self._told:
                why, self._told = reason(error), True
                logger.warning(
                    "checkpoint %s cannot be written (%s); the calibration goes on without", self.folder, why
                )


def check_folder(path: str | os.PathLike[str]) -> Path:
    """The folder of a checkpoint, which is made.

    Raises:
        InvalidArgument: no path, a file, or a folder that could not be written.
    """
    if not path or not isinstance(path, str | os.PathLike):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidArgument(f"checkpoint is {path!r}; name a folder, which is made if it is missing")
    path = Path(path)
    if path.is_file():
        raise InvalidArgument(f"checkpoint {path} is a file; name a folder, which is made if it is missing")
    return check_output(path, "folder")
