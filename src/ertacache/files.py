"""Files on disk: refused before the work where they could not be written, and written whole or not at all."""

import hashlib
import io
import json
import os
import re
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from ertacache.errors import InvalidArgument

Kind = Literal["profile", "picture", "clip", "JSON file", "folder"]
#: Bytes that a typical one takes; of a folder, its results with samples and report.
_TYPICAL: dict[Kind, int] = {
    "profile": 2**20,
    "picture": 2**21,
    "clip": 2**23,
    "JSON file": 2**20,
    "folder": 2**25,
}
#: Seconds after which a temporary file of another machine is nobody's any more.
_ABANDONED = 24 * 3600.0


def check_output(path: str | os.PathLike[str], kind: Kind) -> Path:
    """Refuse an output that could not be written in the end, before the work starts; missing folders are made.

    Returns:
        `path`.

    Raises:
        InvalidArgument: a folder where a file belongs or the reverse, no right to write there, a name that is too
            long, or less space than a typical file of that kind takes.
    """
    path = Path(path)
    try:
        if kind != "folder" and path.is_dir():
            raise InvalidArgument(f"{path} is a folder; name a file for the {kind}")
        if path.exists() and not path.is_dir() and (kind == "folder" or not path.is_file()):
            raise InvalidArgument(f"{path} is {'a file' if path.is_file() else 'a device'}; name a {kind}")
        folder = path if kind == "folder" else path.parent
        folder.mkdir(parents=True, exist_ok=True)
        # Rights do not tell: root may write anywhere, but not to a disk that is mounted for reading only.
        probe = temporary_beside(path / "results" if kind == "folder" else path)
        probe.touch(exist_ok=False)
        probe.unlink()
        free = shutil.disk_usage(folder).free
    except (FileExistsError, NotADirectoryError) as error:
        raise InvalidArgument(
            f"cannot write the {kind} {path}: a file is where one of its folders should be; name another place"
        ) from error
    except OSError as error:
        raise InvalidArgument(f"cannot write the {kind} {path} ({reason(error)}); name another place") from error
    if free < _TYPICAL[kind]:
        raise InvalidArgument(
            f"cannot write the {kind} {path}: its disk has {_megabytes(free)} left and a typical {kind} takes "
            f"{_megabytes(_TYPICAL[kind])}; free some space, or name another place"
        )
    return path


def rescued(path: Path, write: Callable[[Path], object]) -> None:
    """`write(path)`; what the disk refuses in the end, although it was checked, is written to the temporary folder.

    Raises:
        InvalidArgument: naming the place where the file lies now.
    """
    try:
        write(path)
    except OSError as error:
        saved = Path(tempfile.mkdtemp(prefix="ertacache-")) / path.name
        write(saved)
        raise InvalidArgument(f"cannot write {path} ({reason(error)}); it was saved as {saved}: move it") from error


def write_atomic(path: Path, data: bytes) -> None:
    """Put `data` at `path`, all or nothing: a failure leaves the old file intact and nothing beside it.

    Missing folders are made. What a killed process left of an earlier attempt is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path)
    # Opened as an ordinary file, not through tempfile, so that it gets the ordinary permissions.
    temporary = temporary_beside(path)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def save_atomic(path: Path, save: Callable[[BinaryIO], object]) -> None:
    """`write_atomic` of what `save` writes to a file object: for pictures, whose libraries open files themselves."""
    buffer = io.BytesIO()
    save(buffer)
    write_atomic(path, buffer.getvalue())


def json_object(data: bytes | str) -> dict[str, Any]:
    """The JSON object that foreign text holds.

    Raises:
        ValueError: no JSON, another kind of value, NaN, or deeper than Python can follow.
    """
    try:
        value = json.loads(data, parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__} where an object belongs")
    return cast(dict[str, Any], value)


def reason(error: OSError) -> str:
    """What the system says, without the number and the path."""
    return error.strerror or str(error)


def temporary_beside(path: Path) -> Path:
    """A name beside `path` that says whose it is: this machine's and this process's."""
    return path.with_name(f".{path.name}.{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")


def remove_abandoned(path: Path) -> None:
    """Remove what killed processes left of `temporary_beside(path)`."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.([0-9a-f]{{8}})-([0-9]+)-[0-9a-f]{{8}}\.tmp")
    for entry in os.scandir(path.parent):
        if (found := pattern.fullmatch(entry.name)) and _is_abandoned(entry, found[1], int(found[2])):
            Path(entry.path).unlink(missing_ok=True)


def _is_abandoned(entry: "os.DirEntry[str]", machine: str, process: int) -> bool:
    try:
        if machine != _machine() or os.name == "nt":  # where a signal of 0 is no question
            return time.time() - entry.stat().st_mtime > _ABANDONED
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # somebody else's process, or a file that has just been renamed
        return False
    return False


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _machine() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _megabytes(count: int) -> str:
    return f"{count / 2**20:.2g} MiB"
