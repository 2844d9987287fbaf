"""The bytes of a profile file: packing, reading with caps, atomic writing, and where files come from.

Knows nothing of what a profile means: it moves one JSON document and named float32 tensors. The format is
specified in `docs/profile-format.md`. Everything here treats a file as written by a stranger.
"""

import json
import os
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from reprlib import repr as short  # hostile values may be long or deep
from typing import Any, TypeGuard

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from ertacache.errors import InvalidArgument, ProfileInvalid

VERSION = 2
FILE_NAME = "profile.safetensors"
SIZE_CAP = 64 * 2**20
HEADER_CAP = 2**20
KEY = "ertacache"

_PREFIX = 8  # the header's length, unsigned 64-bit little-endian
_MAX_RANK = 12  # the predictor's four axes and those of a latent, with room to spare
_ENTRY = {"dtype", "shape", "data_offsets"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_COPY = "the file is damaged or is no profile: copy or download it again"
_REWRITE = "write the profile again with `ertacache calibrate`"


def invalid(where: str, field: str, problem: str, remedy: str = _REWRITE) -> ProfileInvalid:
    """The one shape of every refusal: file, field, what is wrong, what to do."""
    return ProfileInvalid(f"{where}: {field}: {problem}; {remedy}")


def pack(document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """File bytes for a JSON document (without its version) and float32 tensors; equal input, equal bytes.

    Raises:
        InvalidArgument: the result is over a cap.
    """
    # One metadata key: with several, safetensors writes them in an order that differs between processes.
    text = json.dumps({**document, "version": VERSION}, sort_keys=True, allow_nan=False)
    # Copies, because safetensors refuses tensors that share memory, as an unadjusted grid does with its base.
    owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    data = save_tensors(owned, {KEY: text})
    header = int.from_bytes(data[:_PREFIX], "little")
    if header > HEADER_CAP:
        raise InvalidArgument(
            f"the profile's header has {header} bytes, over the cap of {HEADER_CAP}; keep less text in its provenance"
        )
    if len(data) > SIZE_CAP:
        raise InvalidArgument(
            f"the profile has {len(data)} bytes, over the cap of {SIZE_CAP}; "
            "calibrate with granularity 'channel' or 'scalar' in place of 'element'"
        )
    return data


def unpack(data: bytes, where: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The JSON document (version checked) and the tensors (float32, finite, not empty) in `data`.

    Args:
        where: names the file in errors.

    Raises:
        ProfileInvalid: whatever is wrong.
    """
    header = _header(data, where)
    document = _document(header.pop("__metadata__", None), where)
    for name, entry in header.items():
        _check_entry(name, entry, where)
    try:
        tensors = load_tensors(data)
    except SafetensorError as error:
        raise invalid(where, "tensors", str(error), _COPY) from error
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise invalid(where, f"tensor {short(name)}", "holds NaN or infinity, so every prediction would be lost")
    return document, tensors


def is_object(value: object) -> TypeGuard[dict[str, Any]]:
    """Whether decoded JSON is an object."""
    return isinstance(value, dict)


def is_list(value: object) -> TypeGuard[list[Any]]:
    """Whether decoded JSON is a list."""
    return isinstance(value, list)


def require_keys(found: Mapping[str, Any], expected: set[str], where: str, field: str) -> None:
    """Exactly the expected keys, or ProfileInvalid naming one that is missing or unknown."""
    for key in sorted(expected - found.keys()):
        raise invalid(where, field, f"{key!r} is missing")
    for key in sorted(found.keys() - expected):
        raise invalid(where, field, f"{short(key)} is unknown in version {VERSION}")


def read_capped(path: Path) -> bytes:
    """The bytes of `path`, or one more than the cap, which `unpack` then refuses."""
    with path.open("rb") as file:
        return file.read(SIZE_CAP + 1)


def locate(source: str | os.PathLike[str], revision: str | None) -> Path:
    """The local file behind a path, a folder that holds one, or a Hub id such as `"org/name"` (downloaded).

    What exists on this disk wins over the Hub.

    Raises:
        InvalidArgument: there is nothing to load.
    """
    path = Path(source)
    if path.is_dir() and (path / FILE_NAME).is_file():
        path = path / FILE_NAME
    if path.is_file():
        if revision is not None:
            raise InvalidArgument(f"revision {revision!r} was given for the local file {path}; it is for Hub ids only")
        return path
    if not isinstance(source, str) or source.endswith(".safetensors") or not _HUB_ID.fullmatch(source):
        raise InvalidArgument(
            f"there is no profile at {str(source)!r}, and it is not a Hub id such as 'org/name'; "
            "check the path, or make a profile with `ertacache calibrate`"
        )
    hub: Any = import_module("huggingface_hub")  # slow to import, and few loads need it
    try:
        return Path(hub.hf_hub_download(source, FILE_NAME, revision=revision))
    except (OSError, ValueError) as error:  # the roots of everything huggingface_hub raises here
        raise InvalidArgument(
            f"no {FILE_NAME} came from Hub repository {source!r} at revision {revision!r}: {error}; "
            "check the name (no such path exists on this disk), the revision, the network and `hf auth login`"
        ) from error


def upload(data: bytes, repo_id: str, *, private: bool | None, options: Mapping[str, Any]) -> str:
    """Create the Hub repository if there is none, commit `data` to it, and return the commit's address."""
    hub: Any = import_module("huggingface_hub")
    api = hub.HfApi(token=options.get("token"))
    api.create_repo(repo_id, private=private, exist_ok=True)
    commit = api.upload_file(path_or_fileobj=data, path_in_repo=FILE_NAME, repo_id=repo_id, **options)
    return str(commit)


def _header(data: bytes, where: str) -> dict[str, Any]:
    if len(data) > SIZE_CAP:
        raise invalid(where, "file", f"is over the cap of {SIZE_CAP} bytes", "this is no profile: check the path")
    if len(data) < _PREFIX:
        raise invalid(where, "file", f"has {len(data)} bytes, too few for a header", _COPY)
    length = int.from_bytes(data[:_PREFIX], "little")
    if length > HEADER_CAP:
        raise invalid(where, "header", f"claims {length} bytes, over the cap of {HEADER_CAP}", _COPY)
    if _PREFIX + length > len(data):
        raise invalid(where, "header", f"claims {length} bytes where {len(data) - _PREFIX} are left", _COPY)
    return _json_object(data[_PREFIX : _PREFIX + length], where, "header")


def _document(metadata: object, where: str) -> dict[str, Any]:
    if not is_object(metadata):
        raise invalid(where, "__metadata__", f"is {short(metadata)}, not an object", "this is no ertacache profile")
    if metadata.keys() != {KEY} or not isinstance(metadata[KEY], str):
        problem = f"holds {short(sorted(metadata))} where exactly one text under {KEY!r} belongs"
        raise invalid(where, "__metadata__", problem, "this is no ertacache profile")
    document = _json_object(metadata[KEY], where, f"__metadata__.{KEY}")
    version = document.pop("version", None)
    if type(version) is not int or version != VERSION:
        problem = f"is {short(version)} where this release reads {VERSION}"
        raise invalid(where, "version", problem, f"install the release that wrote it, or {_REWRITE}")
    return document


def _check_entry(name: str, entry: object, where: str) -> None:
    field = f"tensor {short(name)}"
    if not is_object(entry):
        raise invalid(where, field, f"is {short(entry)}, not an object", _COPY)
    require_keys(entry, _ENTRY, where, field)
    if entry["dtype"] != "F32":
        raise invalid(where, field, f"has dtype {short(entry['dtype'])} where every tensor is F32")
    shape = entry["shape"]
    if not is_list(shape) or len(shape) > _MAX_RANK or not all(type(n) is int and n > 0 for n in shape):
        problem = f"has shape {short(shape)} where a list of at most {_MAX_RANK} positive sizes belongs"
        raise invalid(where, field, problem)


def _json_object(text: str | bytes, where: str, field: str) -> dict[str, Any]:
    try:
        decoded = text if isinstance(text, str) else text.decode("utf-8")
        value = json.loads(decoded, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise invalid(where, field, f"is not sound JSON ({error})", _COPY) from error
    if not is_object(value):
        raise invalid(where, field, f"is {short(value)}, not a JSON object", _COPY)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"key {short(twice)} occurs twice")
    return table


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")
