"""The bytes of a profile file: packing and reading, with caps and a checksum.

Knows nothing of what a profile means: it moves one JSON document and named tensors. The format is specified in
`docs/profile-format.md`. Everything here treats a file as written by a stranger.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as short  # hostile values may be long or deep
from typing import Any, TypeGuard

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from ertacache.errors import InvalidArgument, ProfileInvalid

VERSION = 6
SIZE_CAP = 64 * 2**20
HEADER_CAP = 2**20
KEY = "ertacache"

_PREFIX = 8  # the header's length, unsigned 64-bit little-endian
_MAX_RANK = 12  # the predictor's four axes and those of a latent, with room to spare
_ENTRY = {"dtype", "shape", "data_offsets"}
_SEALED = 3  # the first version with a checksum, with tensors of float16 and with tables of no rows
_CHECKSUM = re.compile(r"[0-9a-f]{64}")
_BLANK = "0" * 64  # what stands in for the checksum while it is taken
_COPY = "the file is damaged or is no profile: copy or download it again"
_REWRITE = "write the profile again with `ertacache calibrate`"


def invalid(where: str, field: str, problem: str, remedy: str = _REWRITE) -> ProfileInvalid:
    """The one shape of every refusal: file, field, what is wrong, what to do."""
    return ProfileInvalid(f"{where}: {field}: {problem}; {remedy}")


def pack(document: Mapping[str, Any], tensors: Mapping[str, Tensor], version: int = VERSION) -> bytes:
    """File bytes for a JSON document (without version and checksum) and tensors; equal input, equal bytes.

    Args:
        version: the first one that has all that is in the document.

    Raises:
        InvalidArgument: the result is over a cap.
    """
    # One metadata key: with several, safetensors writes them in an order that differs between processes.
    text = json.dumps({**document, "checksum": _BLANK, "version": version}, sort_keys=True, allow_nan=False)
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
            "calibrate with rectifier 'channel' or 'scalar' in place of 'element'"
        )
    return data.replace(_BLANK.encode(), _checksum(data, _BLANK).encode(), 1)


def unpack(data: bytes, where: str) -> tuple[int, dict[str, Any], dict[str, Tensor]]:
    """The format's version, the JSON document without version and checksum, and the finite tensors in `data`.

    Args:
        where: names the file in errors.

    Raises:
        ProfileInvalid: whatever is wrong.
    """
    header = _header(data, where)
    document = _document(header.pop("__metadata__", None), where)
    version = _version(document.pop("version", None), where)
    if version >= _SEALED:
        _check_checksum(data, document.pop("checksum", None), where)
    for name, entry in header.items():
        _check_entry(name, entry, version, where)
    try:
        tensors = load_tensors(data)
    except SafetensorError as error:
        raise invalid(where, "tensors", str(error), _COPY) from error
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise invalid(where, f"tensor {short(name)}", "holds NaN or infinity, so every prediction would be lost")
    return version, document, tensors


def is_object(value: object) -> TypeGuard[dict[str, Any]]:
    """Whether decoded JSON is an object."""
    return isinstance(value, dict)


def is_list(value: object) -> TypeGuard[list[Any]]:
    """Whether decoded JSON is a list."""
    return isinstance(value, list)


def require_keys(found: Mapping[str, Any], expected: set[str], where: str, field: str, version: int) -> None:
    """Exactly the keys that a version has, or ProfileInvalid naming one that is missing or unknown."""
    for key in sorted(expected - found.keys()):
        raise invalid(where, field, f"{key!r} is missing")
    for key in sorted(found.keys() - expected):
        raise invalid(where, field, f"{short(key)} is unknown in version {version}")


def read_capped(path: Path) -> bytes:
    """The bytes of `path`, or one more than the cap, which `unpack` then refuses."""
    with path.open("rb") as file:
        return file.read(SIZE_CAP + 1)


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
    return _json_object(metadata[KEY], where, f"__metadata__.{KEY}")


def _version(version: object, where: str) -> int:
    if type(version) is not int or not 1 <= version <= VERSION:
        problem = f"is {short(version)} where this release reads 1 to {VERSION}"
        newer = type(version) is int and version > VERSION
        remedy = "install a newer release: pip install --upgrade ertacache" if newer else "copy it again"
        raise invalid(where, "version", problem, f"{remedy}, or {_REWRITE}")
    return version


def _checksum(data: bytes, written: str) -> str:
    """SHA-256 of the whole file, zeros in place of the checksum that is written in it."""
    return hashlib.sha256(data.replace(written.encode(), _BLANK.encode(), 1)).hexdigest()


def _check_checksum(data: bytes, written: object, where: str) -> None:
    if not isinstance(written, str) or not _CHECKSUM.fullmatch(written):
        raise invalid(where, "checksum", f"is {short(written)}, not 64 hexadecimal digits", _COPY)
    if (found := _checksum(data, written)) != written:
        raise invalid(where, "checksum", f"is {written[:16]}... and the content has {found[:16]}...", _COPY)


def _check_entry(name: str, entry: object, version: int, where: str) -> None:
    field = f"tensor {short(name)}"
    if not is_object(entry):
        raise invalid(where, field, f"is {short(entry)}, not an object", _COPY)
    require_keys(entry, _ENTRY, where, field, version)
    dtypes, least = (("F32", "F16"), 0) if version >= _SEALED else (("F32",), 1)
    if entry["dtype"] not in dtypes:
        raise invalid(where, field, f"has dtype {short(entry['dtype'])} where tensors are {' or '.join(dtypes)}")
    shape = entry["shape"]
    if not is_list(shape) or len(shape) > _MAX_RANK or not all(type(n) is int and n >= least for n in shape):
        problem = f"has shape {short(shape)} where a list of at most {_MAX_RANK} sizes from {least} on belongs"
        raise invalid(where, field, problem)
    if math.prod(max(n, 1) for n in shape) > SIZE_CAP:  # no bytes at all may claim any size beside a 0
        raise invalid(where, field, f"has shape {short(shape)}, more than a file of {SIZE_CAP} bytes holds")


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
