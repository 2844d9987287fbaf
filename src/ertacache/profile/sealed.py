"""One safetensors blob that holds one JSON document and named tensors, with caps and a checksum.

Everything here treats the bytes as written by a stranger: nothing is allocated before the header is found sound, and
nothing in them is ever executed.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from reprlib import repr as short  # hostile values may be long or deep
from typing import Any, TypeGuard

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from ertacache.errors import ErtacacheError, InvalidArgument

_PREFIX = 8  # the header's length, unsigned 64-bit little-endian
_ENTRY = {"dtype", "shape", "data_offsets"}
_CHECKSUM = re.compile(r"[0-9a-f]{64}")
_BLANK = "0" * 64  # what stands in for the checksum while it is taken


def is_object(value: object) -> TypeGuard[dict[str, Any]]:
    """Whether decoded JSON is an object."""
    return isinstance(value, dict)


def is_list(value: object) -> TypeGuard[list[Any]]:
    """Whether decoded JSON is a list."""
    return isinstance(value, list)


@dataclass(frozen=True, slots=True)
class Sealed:
    """One kind of blob.

    Attributes:
        kind: what it is called in messages.
        key: the one key of its metadata, under which the document lies as text.
        version: the newest version of its format. first_checked: the first one with a checksum.
        error: what is raised of bytes that are not sound.
        size_cap, header_cap: in bytes.
        rewrite: how to make a sound one.
        shorter, smaller: what to do where its header, or all of it, is over its cap.
    """

    kind: str
    key: str
    version: int
    error: type[ErtacacheError]
    size_cap: int
    header_cap: int
    rewrite: str
    shorter: str
    smaller: str
    first_checked: int = 1

    @property
    def damaged(self) -> str:
        """What to do with bytes that are broken."""
        return f"the file is damaged or is no {self.kind}: copy or download it again"

    def invalid(self, where: str, field: str, problem: str, remedy: str = "") -> ErtacacheError:
        """The one shape of every refusal: file, field, what is wrong, what to do."""
        return self.error(f"{where}: {field}: {problem}; {remedy or self.rewrite}")

    def pack(self, document: Mapping[str, Any], tensors: Mapping[str, Tensor], version: int | None = None) -> bytes:
        """Bytes for a JSON document (without version and checksum) and tensors; equal input, equal bytes.

        Args:
            version: the first one that has all that is in the document; None for the newest.

        Raises:
            InvalidArgument: the result is over a cap.
        """
        # One metadata key: with several, safetensors writes them in an order that differs between processes.
        facts = {"checksum": _BLANK, "version": version or self.version}
        text = json.dumps({**document, **facts}, sort_keys=True, allow_nan=False)
        # Copies, because safetensors refuses tensors that share memory, as an unadjusted grid does with its base.
        owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        data = save_tensors(owned, {self.key: text})
        header = int.from_bytes(data[:_PREFIX], "little")
        if header > self.header_cap:
            raise InvalidArgument(
                f"the {self.kind}'s header has {header} bytes, over the cap of {self.header_cap}; {self.shorter}"
            )
        if len(data) > self.size_cap:
            raise InvalidArgument(
                f"the {self.kind} has {len(data)} bytes, over the cap of {self.size_cap}; {self.smaller}"
            )
        return data.replace(_BLANK.encode(), _checksum(data, _BLANK).encode(), 1)

    def read(self, data: bytes, where: str) -> tuple[int, dict[str, Any], dict[str, Any]]:
        """Version, document (without version and checksum) and the entries of the header, by tensor; checksum checked.

        Args:
            where: names the bytes in errors.

        Raises:
            `error`: whatever is wrong.
        """
        header = self._header(data, where)
        document = self._document(header.pop("__metadata__", None), where)
        version = self._version(document.pop("version", None), where)
        if version >= self.first_checked:
            self._check_checksum(data, document.pop("checksum", None), where)
        return version, document, header

    def check_entry(
        self, name: str, entry: object, where: str, version: int, *, dtypes: tuple[str, ...], rank: int, least: int = 0
    ) -> None:
        """Refuse an entry of the header of other keys or another dtype, of too many axes or of more than fits.

        Args:
            dtypes: those allowed, in safetensors' words. rank: the most axes. least: the least size of one.
        """
        field = f"tensor {short(name)}"
        if not is_object(entry):
            raise self.invalid(where, field, f"is {short(entry)}, not an object", self.damaged)
        self.require_keys(entry, _ENTRY, where, field, version)
        if entry["dtype"] not in dtypes:
            problem = f"has dtype {short(entry['dtype'])} where tensors are {' or '.join(dtypes)}"
            raise self.invalid(where, field, problem)
        shape = entry["shape"]
        if not is_list(shape) or len(shape) > rank or not all(type(n) is int and n >= least for n in shape):
            problem = f"has shape {short(shape)} where a list of at most {rank} sizes from {least} on belongs"
            raise self.invalid(where, field, problem)
        if math.prod(max(n, 1) for n in shape) > self.size_cap:  # no bytes at all may claim any size beside a 0
            problem = f"has shape {short(shape)}, more than a file of {self.size_cap} bytes holds"
            raise self.invalid(where, field, problem)

    def load(self, data: bytes, where: str) -> dict[str, Tensor]:
        """The tensors of bytes whose entries were checked, none with NaN or infinity."""
        try:
            tensors = load_tensors(data)
        except SafetensorError as error:
            raise self.invalid(where, "tensors", str(error), self.damaged) from error
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                problem = "holds NaN or infinity, which would spoil the whole run"
                raise self.invalid(where, f"tensor {short(name)}", problem)
        return tensors

    def require_keys(self, found: Mapping[str, Any], expected: set[str], where: str, field: str, version: int) -> None:
        """Exactly the keys that a version has, or `error` naming one that is missing or unknown."""
        for key in sorted(expected - found.keys()):
            raise self.invalid(where, field, f"{key!r} is missing")
        for key in sorted(found.keys() - expected):
            raise self.invalid(where, field, f"{short(key)} is unknown in version {version}")

    def _header(self, data: bytes, where: str) -> dict[str, Any]:
        if len(data) > self.size_cap:
            problem = f"is over the cap of {self.size_cap} bytes"
            raise self.invalid(where, "file", problem, f"this is no {self.kind}: check the path")
        if len(data) < _PREFIX:
            raise self.invalid(where, "file", f"has {len(data)} bytes, too few for a header", self.damaged)
        length = int.from_bytes(data[:_PREFIX], "little")
        if length > self.header_cap:
            problem = f"claims {length} bytes, over the cap of {self.header_cap}"
            raise self.invalid(where, "header", problem, self.damaged)
        if _PREFIX + length > len(data):
            problem = f"claims {length} bytes where {len(data) - _PREFIX} are left"
            raise self.invalid(where, "header", problem, self.damaged)
        return self._json_object(data[_PREFIX : _PREFIX + length], where, "header")

    def _document(self, metadata: object, where: str) -> dict[str, Any]:
        foreign = f"this is no ertacache {self.kind}"
        if not is_object(metadata):
            raise self.invalid(where, "__metadata__", f"is {short(metadata)}, not an object", foreign)
        if metadata.keys() != {self.key} or not isinstance(metadata[self.key], str):
            problem = f"holds {short(sorted(metadata))} where exactly one text under {self.key!r} belongs"
            raise self.invalid(where, "__metadata__", problem, foreign)
        return self._json_object(metadata[self.key], where, f"__metadata__.{self.key}")

    def _version(self, version: object, where: str) -> int:
        if type(version) is not int or not 1 <= version <= self.version:
            problem = f"is {short(version)} where this release reads 1 to {self.version}"
            newer = type(version) is int and version > self.version
            remedy = "install a newer release: pip install --upgrade ertacache" if newer else "copy it again"
            raise self.invalid(where, "version", problem, f"{remedy}, or {self.rewrite}")
        return version

    def _check_checksum(self, data: bytes, written: object, where: str) -> None:
        if not isinstance(written, str) or not _CHECKSUM.fullmatch(written):
            raise self.invalid(where, "checksum", f"is {short(written)}, not 64 hexadecimal digits", self.damaged)
        if (found := _checksum(data, written)) != written:
            problem = f"is {written[:16]}... and the content has {found[:16]}..."
            raise self.invalid(where, "checksum", problem, self.damaged)

    def _json_object(self, text: str | bytes, where: str, field: str) -> dict[str, Any]:
        try:
            decoded = text if isinstance(text, str) else text.decode("utf-8")
            value = json.loads(decoded, object_pairs_hook=_unique, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise self.invalid(where, field, f"is not sound JSON ({error})", self.damaged) from error
        if not is_object(value):
            raise self.invalid(where, field, f"is {short(value)}, not a JSON object", self.damaged)
        return value


def _checksum(data: bytes, written: str) -> str:
    """SHA-256 of the whole file, zeros in place of the checksum that is written in it."""
    return hashlib.sha256(data.replace(written.encode(), _BLANK.encode(), 1)).hexdigest()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"key {short(twice)} occurs twice")
    return table


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")
