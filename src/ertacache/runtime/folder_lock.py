"""A folder of results belongs to one process at a time.

The lock is the system's own (flock) on a file in the folder, not the file's existence: it ends with the process that
holds it, however that ends, and no number of a process that died can be mistaken for another's.
"""

import json
import logging
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from ertacache.errors import InvalidArgument
from ertacache.files import check_output, json_object, reason

_NAME = ".lock"

logger = logging.getLogger(__name__)


def check_results(folder: Path) -> None:
    """Refuse a folder of results that cannot be written or is in use, before anything is loaded.

    Raises:
        InvalidArgument: as `files.check_output` and `locked`.
    """
    check_output(folder, "folder")
    with locked(folder):
        pass


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """Keep a folder, which is made if it is missing, to this process.

    Where the file system has no locks, the log says so and nothing is locked.

    Raises:
        InvalidArgument: naming the process that has it, its machine and since when.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _NAME
    descriptor = _acquired(path)
    try:
        yield
    finally:
        if descriptor is not None:
            path.unlink(missing_ok=True)
            os.close(descriptor)


def _acquired(path: Path) -> int | None:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            locks = _lock(descriptor)
            if locks and not _is_at(descriptor, path):
                os.close(descriptor)  # whoever held it has just removed the file
                continue
            holder = {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "since": datetime.now().isoformat(" ", "seconds"),
            }
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps(holder).encode())
        except BlockingIOError as error:
            os.close(descriptor)
            raise InvalidArgument(
                f"{path.parent} is in use by {_holder(path)}; wait until it has ended, or choose another folder"
            ) from error
        return descriptor


def _lock(descriptor: int) -> bool:
    """Whether the file is ours now; False where nothing can be locked.

    Raises:
        BlockingIOError: it is somebody else's.
    """
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except (ImportError, OSError) as error:
        why = reason(error) if isinstance(error, OSError) else "this system has no flock"
        logger.warning("folders cannot be locked here (%s); start no second process on one folder", why)
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    try:
        found: dict[str, Any] = json_object(path.read_bytes())
    except (OSError, ValueError):
        return "another process"
    return f"process {found.get('pid')} on {found.get('host')} since {found.get('since')}"
