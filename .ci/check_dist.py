"""Looks into what `make dist` built: its size, and that nothing is in it that belongs elsewhere."""

import sys
import tarfile
import zipfile
from pathlib import Path

#: Largest size of a file, in bytes, by the beginning of its name.
_LIMITS = {"ertacache-": 2**20, "ertacache_zoo-": 40 * 2**20}
#: Where the files of a source distribution may lie, below its own folder; of any, and of each.
_COMMON = (".gitignore", "LICENSE", "README.md", "PKG-INFO", "pyproject.toml")
_PLACES = {
    "ertacache-": (
        "src/ertacache/",
        "CHANGELOG.md",
        "LICENSE",
        "README.md",
        "PKG-INFO",
        "pyproject.toml",
        ".gitignore",
    ),
    "ertacache_zoo-": ("src/ertacache_zoo/", "LICENSE", "NOTICE", "README.md", "PKG-INFO", "pyproject.toml"),
}


def names(path: Path) -> list[str]:
    """Of the files in a wheel, or in a source distribution below its own folder."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            return wheel.namelist()
    with tarfile.open(path) as source:
        return [name.partition("/")[2] for name in source.getnames()]


def faults(path: Path) -> list[str]:
    """What is wrong with one file."""
    start = next(start for start in _LIMITS if path.name.startswith(start))
    package, held = start[:-1], names(path)
    wheel = path.suffix == ".whl"
    allowed = (f"{package}/", f"{package}-") if wheel else (*_COMMON, *_PLACES[start])
    found = [f"{path.name} holds {name}" for name in held if not name.startswith(allowed)]
    typed = f"{package}/py.typed" if wheel else f"src/{package}/py.typed"
    if typed not in held:
        found.append(f"{path.name} lacks {typed}")
    weights = [name for name in held if name.endswith(".safetensors")]
    if bool(weights) != (package == "ertacache_zoo"):
        found.append(f"{path.name} holds {len(weights)} files of weights")
    size = path.stat().st_size
    print(f"{path.name}: {size / 2**20:.2f} MiB, {len(held)} files")
    return [*found, f"{path.name} is {size} bytes, more than {_LIMITS[start]}"] if size > _LIMITS[start] else found


if __name__ == "__main__":
    paths = sorted(Path(sys.argv[1]).iterdir())
    wrong = [fault for path in paths for fault in faults(path)]
    if len(paths) != 4:
        wrong.append(f"{len(paths)} files instead of a wheel and a source distribution of each of two packages")
    sys.exit("\n".join(wrong) or 0)
