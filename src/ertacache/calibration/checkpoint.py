"""Results of finished calibration runs, so that an interrupted calibration continues where it stopped."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ertacache.errors import CalibrationError, InvalidArgument
from ertacache.files import write_atomic


class RunStore:
    """A memory of runs by name, written to a file after each one where a path is given.

    Args:
        path: file to continue from and to write to, or None for this process only.
        identity: fingerprint of everything that the runs depend on.

    Raises:
        CalibrationError: the file belongs to another calibration or cannot be read.
        InvalidArgument: there is no folder to write it to.
    """

    def __init__(self, path: str | os.PathLike[str] | None, identity: str) -> None:
        self._path = Path(path) if path is not None else None
        self._identity = identity
        self._results: dict[str, Any] = {}
        if self._path is not None and not self._path.parent.is_dir():
            raise InvalidArgument(f"checkpoint {self._path}: there is no folder {self._path.parent}; create it first")
        if self._path is not None and self._path.exists():
            self._results = self._read(self._path)

    def get(self, name: str, run: Callable[[], Any]) -> Any:
        """The stored result of `name`, else that of `run()`, stored."""
        if name not in self._results:
            self._results[name] = run()
            self._write()
        return self._results[name]

    def __contains__(self, name: str) -> bool:
        return name in self._results

    def drop(self, prefix: str) -> None:
        """Forget the results whose name starts with `prefix`; the file follows when it is next written."""
        self._results = {name: result for name, result in self._results.items() if not name.startswith(prefix)}

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            content = torch.load(path, weights_only=True)
            identity, results = content["identity"], dict(content["results"].items())
        except Exception as error:  # not its text: torch would advise to load the file without its safeguard
            kind = type(error).__name__
            raise CalibrationError(f"checkpoint {path} cannot be read ({kind}); delete it to start afresh") from error
        if identity != self._identity:
            raise CalibrationError(
                f"checkpoint {path} belongs to another calibration (model, prompts, seed or call differ); delete it or "
                "name another file"
            )
        return results

    def _write(self) -> None:
        if self._path is None:
            return
        buffer = io.BytesIO()
        torch.save({"identity": self._identity, "results": self._results}, buffer)
        write_atomic(self._path, buffer.getvalue())
