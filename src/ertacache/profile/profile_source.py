"""Where profile files come from and go to: paths, folders and the Hub."""

import os
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from ertacache.errors import InvalidArgument

FILE_NAME = "profile.safetensors"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def is_hub_id(source: str) -> bool:
    """Whether a text that is no path on this disk may be a repository of the Hub, such as `org/name`."""
    return not source.endswith(".safetensors") and _HUB_ID.fullmatch(source) is not None


def locate(
    source: str | os.PathLike[str],
    *,
    filename: str | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
) -> Path:
    """The local file behind a path, a folder that holds one, or a Hub id such as `"org/name"` (downloaded).

    What exists on this disk wins over the Hub.

    Args:
        filename: of the file in a folder or a Hub repository; `profile.safetensors` where it is not given.
        subfolder: of the folder or the repository.
        revision: branch, tag or commit of a Hub repository.

    Raises:
        InvalidArgument: there is nothing to load, or an argument that a local file has no use for.
    """
    if not isinstance(source, str | os.PathLike):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidArgument(f"the profile's source is {source!r}; give a path or a Hub id such as 'org/name'")
    for name, value in (("filename", filename), ("subfolder", subfolder), ("revision", revision)):
        if value is not None and not isinstance(value, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidArgument(f"{name} is {value!r}; give a text")
    path = Path(source)
    if os.path.exists(source):  # false for the empty text, of which Path makes the working folder
        if revision is not None:
            raise InvalidArgument(f"revision {revision!r} was given for {path} on this disk; it is for Hub ids only")
        return _local(path, filename, subfolder)
    if not isinstance(source, str) or not is_hub_id(source):
        raise InvalidArgument(
            f"there is no profile at {str(source)!r}, and it is not a Hub id such as 'org/name'; "
            "check the path, or make a profile with `ertacache calibrate`"
        )
    return _downloaded(source, filename or FILE_NAME, subfolder, revision)


def upload(data: bytes, repo_id: str, *, private: bool | None, options: Mapping[str, Any]) -> str:
    """Create the Hub repository if there is none, commit `data` to it, and return the commit's address."""
    hub: Any = import_module("huggingface_hub")
    api = hub.HfApi(token=options.get("token"))
    api.create_repo(repo_id, private=private, exist_ok=True)
    commit = api.upload_file(path_or_fileobj=data, path_in_repo=FILE_NAME, repo_id=repo_id, **options)
    return str(commit)


def _local(path: Path, filename: str | None, subfolder: str | None) -> Path:
    if path.is_file():
        if filename is not None or subfolder is not None:
            given = f"filename {filename!r}" if filename is not None else f"subfolder {subfolder!r}"
            raise InvalidArgument(f"{given} was given beside the file {path}; give the folder that it lies in")
        return path
    folder = path / subfolder if subfolder else path
    found = folder / (filename or FILE_NAME)
    if found.is_file():
        return found
    others = sorted(file.name for file in folder.glob("*.safetensors"))[:5] if folder.is_dir() else []
    held = f"it holds {', '.join(others)}: name one with filename=" if others else "check filename and subfolder"
    raise InvalidArgument(f"there is no {found.name} in the folder {folder}; {held}, or give the path of a file")


def _downloaded(repo_id: str, filename: str, subfolder: str | None, revision: str | None) -> Path:
    hub: Any = import_module("huggingface_hub")  # slow to import, and few loads need it
    try:
        return Path(hub.hf_hub_download(repo_id, filename, subfolder=subfolder, revision=revision))
    except (OSError, ValueError) as error:  # the roots of everything huggingface_hub raises here
        wanted = f"{subfolder}/{filename}" if subfolder else filename
        raise InvalidArgument(
            f"no {wanted} came from Hub repository {repo_id!r} at revision {revision!r}: {error}; "
            "check the name (no such path exists on this disk), the revision, the network and `hf auth login`"
        ) from error
