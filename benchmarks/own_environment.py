"""An environment of its own for what cannot be installed beside ertacache, which takes the rest from the one that asks.

What is asked for is installed without its dependencies; torch, transformers and whatever else the asking environment
has are found behind it, and that environment is never touched.
"""

import json
import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class OwnEnvironment:
    """What is in it, and how it is made.

    Attributes:
        title: of what it is for. marker: the file that says that it is finished, and of which requirements.
        command: makes it. requirements: exact versions.
    """

    title: str
    marker: str
    command: str
    requirements: tuple[str, ...]

    def missing(self, folder: Path) -> str | None:
        """Why there is no finished environment in a folder, or None where there is one."""
        marker = folder / self.marker
        if not marker.is_file() or not python_of(folder).exists():
            return f"no {self.title} in {folder}: run {self.command}"
        if json.loads(marker.read_text()) != list(self.requirements):
            return f"{folder} is of other requirements: delete it and run {self.command}"
        return None

    def make(self, folder: Path) -> None:
        """Make the environment, or complete one that was begun."""
        if self.missing(folder) is None:
            return
        if folder.is_dir() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").is_file():
            raise SystemExit(f"{folder} is in use for something else; name a new folder")
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        inner = str(python_of(folder))
        pip = [sys.executable, "-m", "pip", "--python", inner, "install", "--no-deps", *self.requirements]
        subprocess.run(pip, check=True)
        own = subprocess.run(
            [inner, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True, capture_output=True, text=True,
        ).stdout.strip()  # fmt: skip
        Path(own, "zz-ertacache-shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
        (folder / self.marker).write_text(json.dumps(list(self.requirements)))


def default_folder(name: str) -> Path:
    """`$XDG_CACHE_HOME` or `~/.cache`, then `ertacache/NAME`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ertacache" / name


def python_of(folder: Path) -> Path:
    """The interpreter of an environment."""
    return folder / "bin" / "python"
