"""Results that are made once: a script that was cut off goes on with what its folder holds."""

import json
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ertacache.files import write_atomic


def work_folder(name: str) -> Path:
    """Where a script keeps what it has done, outside of the repository."""
    return Path(tempfile.gettempdir()) / "ertacache" / name


def kept(path: Path, settings: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The object in a JSON file, which is made and written first where there is none.

    Args:
        settings: what it depends on beside its name; kept with it.

    Raises:
        SystemExit: the file was made with other settings.
    """
    if path.is_file():
        found = json.loads(path.read_text())
        if found["settings"] != json.loads(json.dumps(settings)):
            raise SystemExit(f"{path} was made with {found['settings']}, not {settings}; choose another --work")
        return found
    made = {"settings": settings, **make()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(made) + "\n").encode())
    return made


def arguments_of(parser: ArgumentParser, name: str, given: list[str] | None = None) -> Namespace:
    """The command line with `--work` and `--out` added; from here on everything runs on one thread."""
    parser.add_argument("--work", type=Path, default=work_folder(name), help="what is done so far, for going on")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results") / f"{name}.json")
    torch.set_num_threads(1)
    return parser.parse_args(given)


def names(text: str) -> list[str]:
    """A comma-separated list."""
    return [part.strip() for part in text.split(",") if part.strip()]
