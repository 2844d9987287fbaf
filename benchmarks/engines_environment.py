"""Environments with vLLM-Omni and SGLang: `python benchmarks/engines_environment.py ENGINE [FOLDER]`.

Each engine pins its own diffusers, and what it needs besides is for CUDA. So the releases are installed without their
dependencies beside what the environment that runs this has (torch, transformers), which is never touched, with the
diffusers that the engine asks for in front of ours and the few pure modules that its adapter imports.
"""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

_COMMON = (
    "aiohappyeyeballs", "aiohttp", "aiosignal", "apache-tvm-ffi==0.1.11", "attrs", "einops", "frozenlist", "gguf",
    "msgspec", "multidict", "partial-json-parser", "propcache", "pybase64", "pyzmq", "yarl",
)  # fmt: skip
REQUIREMENTS = {
    "sglang": (
        "sglang==0.5.23", "diffusers==0.37.0", "compressed-tensors==0.18.0", "addict", "dill", "ipython", "loguru",
        "orjson", "setproctitle", "traitlets", "triton", "xxhash", *_COMMON,
    ),
    "vllm-omni": (
        "vllm-omni==0.30.0", "vllm==0.30.0", "diffusers==0.40.0", *_COMMON,
    ),
}  # fmt: skip
MARKER = "ertacache-engine.json"


def default_folder(engine: str) -> Path:
    """`$XDG_CACHE_HOME` or `~/.cache`, then `ertacache/ENGINE`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ertacache" / engine


def python_of(folder: Path) -> Path:
    """The interpreter of the environment."""
    return folder / "bin" / "python"


def missing(engine: str, folder: Path) -> str | None:
    """Why there is no finished environment in a folder, or None where there is one."""
    marker, remedy = folder / MARKER, f"run python benchmarks/engines_environment.py {engine}"
    if not marker.is_file() or not python_of(folder).exists():
        return f"no {engine} in {folder}: {remedy}"
    if json.loads(marker.read_text()) != list(REQUIREMENTS[engine]):
        return f"{folder} is of other requirements: delete it and {remedy}"
    return None


def make(engine: str, folder: Path) -> None:
    """Make the environment, or complete one that was begun."""
    if missing(engine, folder) is None:
        return
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").is_file():
        raise SystemExit(f"{folder} is in use for something else; name a new folder")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    inner = str(python_of(folder))
    pip = [sys.executable, "-m", "pip", "--python", inner, "install", "--no-deps", *REQUIREMENTS[engine]]
    subprocess.run(pip, check=True)
    own = subprocess.run(
        [inner, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    Path(own, "zz-ertacache-shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (folder / MARKER).write_text(json.dumps(list(REQUIREMENTS[engine])))


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in REQUIREMENTS:
        raise SystemExit(f"name an engine: {', '.join(REQUIREMENTS)}")
    chosen = Path(sys.argv[2]) if len(sys.argv) > 2 else default_folder(sys.argv[1])
    make(sys.argv[1], chosen.absolute())
    print(python_of(chosen.absolute()))
