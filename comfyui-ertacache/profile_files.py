"""Profiles by name, in a folder of their own beside ComfyUI's models."""

from pathlib import Path

from ertacache.errors import InvalidArgument
from ertacache.files import check_output

SUFFIX = ".safetensors"


def path_of(folder: Path, name: str) -> Path:
    """The file of a profile name such as 'flux-20-10' or 'flux/half.safetensors', inside the folder.

    Raises:
        InvalidArgument: no name, or one that leads out of the folder, as a workflow from a stranger might have.
    """
    path = folder / (name if name.endswith(SUFFIX) else name + SUFFIX)
    if not name.strip() or not path.resolve().is_relative_to(folder.resolve()):
        raise InvalidArgument(f"profile is {name!r}; give the name of a file within {folder}")
    return path


def existing(folder: Path, name: str) -> Path:
    """The file of a profile that is there.

    Raises:
        InvalidArgument: it is not, naming those that are.
    """
    path = path_of(folder, name)
    if not path.is_file():
        known = sorted(str(own.relative_to(folder)) for own in folder.rglob(f"*{SUFFIX}")) if folder.is_dir() else []
        raise InvalidArgument(
            f"there is no profile {name!r} in {folder}, which has {', '.join(known) or 'none'}; make it with ERTACache "
            "Calibrate, or copy it there"
        )
    return path


def writable(folder: Path, name: str) -> Path:
    """The file to write a profile to, refused before the work where it could not be written.

    Raises:
        InvalidArgument: as `path_of` and `files.check_output`.
    """
    return check_output(path_of(folder, name), "profile")
