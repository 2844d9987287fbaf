"""The bytes of a profile file: packing and reading.

Knows nothing of what a profile means: it moves one JSON document and named tensors. The format is specified in
`docs/profile-format.md`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ertacache.errors import ErtacacheError, ProfileInvalid
from ertacache.profile.sealed import Sealed

VERSION = 7
SIZE_CAP = 64 * 2**20
HEADER_CAP = 2**20

_MAX_RANK = 12  # the predictor's four axes and those of a latent, with room to spare
_SEALED = 3  # the first version with a checksum, with tensors of float16 and with tables of no rows
_REWRITE = "write the profile again with `ertacache calibrate`"


def _form() -> Sealed:
    return Sealed(
        kind="profile", key="ertacache", version=VERSION, error=ProfileInvalid, size_cap=SIZE_CAP,
        header_cap=HEADER_CAP, rewrite=_REWRITE, shorter="keep less text in its provenance",
        smaller="calibrate with rectifier 'channel' or 'scalar' in place of 'element'", first_checked=_SEALED,
    )  # fmt: skip


def invalid(where: str, field: str, problem: str, remedy: str = _REWRITE) -> ErtacacheError:
    """See `Sealed.invalid`."""
    return _form().invalid(where, field, problem, remedy)


def pack(document: Mapping[str, Any], tensors: Mapping[str, Tensor], version: int = VERSION) -> bytes:
    """File bytes for a JSON document (without version and checksum) and tensors; equal input, equal bytes.

    Args:
        version: the first one that has all that is in the document.

    Raises:
        InvalidArgument: the result is over a cap.
    """
    return _form().pack(document, tensors, version)


def unpack(data: bytes, where: str) -> tuple[int, dict[str, Any], dict[str, Tensor]]:
    """The format's version, the JSON document without version and checksum, and the finite tensors in `data`.

    Args:
        where: names the file in errors.

    Raises:
        ProfileInvalid: whatever is wrong.
    """
    form = _form()
    version, document, entries = form.read(data, where)
    dtypes, least = (("F32", "F16"), 0) if version >= _SEALED else (("F32",), 1)
    for name, entry in entries.items():
        form.check_entry(name, entry, where, version, dtypes=dtypes, rank=_MAX_RANK, least=least)
    return version, document, form.load(data, where)


def require_keys(found: Mapping[str, Any], expected: set[str], where: str, field: str, version: int) -> None:
    """Exactly the keys that a version has, or ProfileInvalid naming one that is missing or unknown."""
    _form().require_keys(found, expected, where, field, version)


def read_capped(path: Path) -> bytes:
    """The bytes of `path`, or one more than the cap, which `unpack` then refuses."""
    with path.open("rb") as file:
        return file.read(SIZE_CAP + 1)
