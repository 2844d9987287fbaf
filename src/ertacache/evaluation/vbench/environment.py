"""VBench's environment: made beside the one that runs this, which it never touches, and commands in it."""

import io
import json
import os
import re
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import BinaryIO, TypedDict, cast

from ertacache.errors import InvalidArgument, VBenchFailed
from ertacache.files import write_atomic

VERSION = "0.1.5"
#: Beyond VBench's own pins: it calls torch.load with the default of before torch 2.6, and it imports packaging out of
#: pkg_resources, where setuptools 80 still has it.
REQUIREMENTS = (
    f"vbench=={VERSION}", "numpy<2", "transformers==4.33.2", "torch<2.6", "torchvision<0.21", "setuptools>=80,<81",
)  # fmt: skip
PYTHONS = ("3.10", "3.11")  # the tokenizers of transformers 4.33.2 have no builds for later ones
MARKER = "ertacache-vbench.json"

_TAIL = 15
#: What would let the other Python see this environment, or its pip install elsewhere.
_NOT_INHERITED = {
    "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT",
    "PIP_USER", "PIP_PYTHON", "PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT",
}  # fmt: skip


class Environment(TypedDict):
    """What `setup` returns: the folder, the version of its Python, and whether anything had to be installed."""

    folder: str
    python: str
    installed: bool


def default_folder() -> Path:
    """Where the environment lives: `$XDG_CACHE_HOME` or `~/.cache`, then `ertacache/vbench`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ertacache" / "vbench"


def setup(folder: Path | None = None, python: str | None = None) -> Environment:
    """Make the environment, or complete one that was begun. The environment that runs this is never touched.

    Args:
        folder: of the environment; `default_folder()` by default.
        python: interpreter to make it with, 3.10 or 3.11; the one that runs this by default.

    Raises:
        InvalidArgument: an unfit interpreter or folder.
        VBenchFailed: a step failed; running it again goes on from there.
    """
    folder = (folder or default_folder()).absolute()
    if (done := ready(folder)) is not None:
        return {"folder": str(folder), "python": done, "installed": False}
    base = python or sys.executable
    version, inner = _checked_version(base), python_of(folder)
    constraints = _begin(folder)
    remedy = f"run the command again to go on, or delete {folder} to start afresh"
    if not (inner.exists() and _quietly(str(inner), "-m", "pip", "--version").returncode == 0):
        stream([base, "-I", "-m", "venv", str(folder)], "making the environment", remedy)
    begun = _checked_version(str(inner))
    if _minor(begun) != _minor(version):
        raise InvalidArgument(
            f"{folder} was begun with Python {begun}, but {base!r} is {version}; delete the folder, or give --python "
            f"a {_minor(begun)}"
        )
    # Two names, because newer releases of pip read only the second when they build sources.
    extra = {"PIP_CONSTRAINT": constraints, "PIP_BUILD_CONSTRAINT": constraints}
    stream([str(inner), "-I", "-m", "pip", "install", *REQUIREMENTS], "installing VBench", remedy, extra)
    # CLIP too: VBench imports it only when it scores.
    stream([str(inner), "-I", "-c", "import vbench, clip"], "importing VBench after its installation", remedy)
    write_atomic(folder / MARKER, json.dumps({"requirements": REQUIREMENTS, "python": begun}).encode())
    return {"folder": str(folder), "python": begun, "installed": True}


def python_of(folder: Path) -> Path:
    """The interpreter of the environment."""
    return folder / "bin" / "python"


def ready(folder: Path) -> str | None:
    """The version of the environment's Python where `setup` has finished with the requirements of this release."""
    if not ((folder / MARKER).is_file() and python_of(folder).exists()):
        return None
    try:
        marker = json.loads((folder / MARKER).read_bytes())
        return marker["python"] if marker["requirements"] == list(REQUIREMENTS) else None
    except (ValueError, KeyError, TypeError):
        return None  # `setup` checks everything again and writes a sound one


def stream(command: list[str], what: str, remedy: str, extra: dict[str, str] | None = None) -> None:
    """Run a command without this environment's variables, its output on standard error as it comes.

    Args:
        command: begins with an interpreter and `-I`: without that, the folder of a script comes first on the import
            path, and `import vbench` would find the file of that name there.
        what: names the command in an error.
        remedy: what to do when it fails.
        extra: more environment variables.

    Raises:
        VBenchFailed: it exits with another code than 0; the message holds its last lines.
    """
    tail: deque[str] = deque(maxlen=_TAIL)
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**_environment(), **(extra or {})},
    )
    # newline="" keeps the carriage returns of progress bars.
    with process, io.TextIOWrapper(cast(BinaryIO, process.stdout), "utf-8", "replace", newline="") as lines:
        try:
            for line in lines:
                sys.stderr.write(line)
                sys.stderr.flush()
                tail += [line.strip()] if line.strip() else []
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        last = "".join(f"\n    {line}" for line in tail)
        raise VBenchFailed(f"{what} failed with exit code {process.returncode}; {remedy}. Its last lines:{last}")


def _begin(folder: Path) -> str:
    """Make the folder; returns the path of its constraints file, whose presence says that `setup` began the folder.

    pip builds sources in environments of their own, which the requirements do not reach; some still import
    pkg_resources there.
    """
    constraints = folder / "ertacache-build-constraints.txt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Any other environment may be somebody's main one.
        if any(folder.iterdir()) and not constraints.is_file():
            raise InvalidArgument(f"{folder} is in use for something else; give --folder a new folder")
        write_atomic(constraints, b"setuptools<81\n")
    except OSError as error:
        raise InvalidArgument(
            f"cannot write in {folder} ({error}); give --folder a place that can be written"
        ) from error
    return str(constraints)


def _minor(version: str) -> str:
    return version.rpartition(".")[0]


def _checked_version(python: str) -> str:
    """Three numbers, found by running it; refuses a Python that VBench does not run on."""
    choose = f"give --python the path of a Python {' or '.join(PYTHONS)}"
    try:
        version = _quietly(python, "-c", "import sys; print('%d.%d.%d' % sys.version_info[:3])").stdout.strip()
    except OSError as error:
        raise InvalidArgument(f"{python!r} cannot be run ({error}); {choose}") from error
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise InvalidArgument(f"{python!r} does not tell a Python version; {choose}")
    if _minor(version) not in PYTHONS:
        raise InvalidArgument(f"{python!r} is Python {version}, which VBench {VERSION} does not run on; {choose}")
    return version


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}


def _quietly(python: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-I", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, env=_environment()
    )
