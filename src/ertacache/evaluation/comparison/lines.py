"""A file of JSON lines that is only ever appended to, and mended where a killed process left half a line."""

import json
import os
from pathlib import Path
from typing import Any

from ertacache.errors import InvalidArgument
from ertacache.files import json_object, write_atomic


class Lines:
    """JSON objects in the order they were appended.

    Args:
        path: the file; what it holds is read, and half a line at its end is cut off.

    Raises:
        InvalidArgument: a whole line that is no JSON object.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_bytes() if path.is_file() else b""
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            write_atomic(path, whole)
        self.lines = [self._parsed(number, line) for number, line in enumerate(whole.splitlines(), start=1)]

    def append(self, line: dict[str, Any]) -> None:
        """Add one object; it is on the disk when this returns."""
        with self.path.open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.lines.append(line)

    def keep(self, count: int) -> None:
        """Drop everything after the first `count` lines."""
        if len(self.lines) > count:
            del self.lines[count:]
            write_atomic(self.path, b"".join(json.dumps(line).encode() + b"\n" for line in self.lines))

    def _parsed(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            return json_object(line)
        except ValueError as error:
            raise InvalidArgument(
                f"{self.path}, line {number} is no JSON object ({error}); choose another folder, or delete this one"
            ) from error
