"""Short, stable names for configurations and prompt lists, and what a profile keeps of a configuration."""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence, Set
from typing import Any, cast

from ertacache.errors import InvalidArgument

# The default repr of an object ends in its memory address, which differs in every process.
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_DEEPEST = 8  # levels of a configuration that are told apart; no published one has more than three
_LARGEST = 2**63


def config_hash(config: Mapping[str, Any]) -> str:
    """Fingerprint of a model or scheduler configuration: 16 hexadecimal digits.

    Equal for equal content, whatever the order of the keys and the process, and after a round trip through
    JSON (tuples count as lists). Keys that start with `_` are private (class name, library version, path) and
    are left out at every level; a value that JSON cannot hold counts by its `repr`.
    """
    return _digest(_canonical(config))


def prompt_hash(prompts: Sequence[str]) -> str:
    """Fingerprint of a list of prompts, in their order: 16 hexadecimal digits.

    Raises InvalidArgument for a single string, whose letters would otherwise be taken for prompts.
    """
    if isinstance(prompts, str):
        raise InvalidArgument(f"prompts is the single text {prompts!r}; pass a list of prompts: [{prompts!r}]")
    return text_hash(prompts)


def text_hash(texts: Sequence[str]) -> str:
    """Fingerprint of a list of texts, in their order: 16 hexadecimal digits."""
    return _digest(list(texts))


def storable(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as JSON gives it back: without private keys, and with the `repr` of what JSON cannot hold."""
    return _storable(_canonical(config), 0)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("ascii")).hexdigest()[:16]


def _canonical(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        return {str(key): _canonical(item) for key, item in items if not str(key).startswith("_")}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in cast("Sequence[Any]", value)]
    if isinstance(value, Set):  # iterated in an order that depends on the process
        return sorted(_ADDRESS.sub("", repr(item)) for item in cast("Set[Any]", value))
    return _ADDRESS.sub("", repr(value))


def _storable(value: Any, depth: int) -> Any:
    """`value` within what a provenance holds: finite numbers of 64 bits, and no more than so many levels."""
    if isinstance(value, dict | list) and depth == _DEEPEST:
        return repr(cast("object", value))
    if isinstance(value, dict):
        return {key: _storable(item, depth + 1) for key, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_storable(item, depth + 1) for item in cast("list[Any]", value)]
    held = not isinstance(value, int | float) or (math.isfinite(value) and abs(value) < _LARGEST)
    return value if held else repr(value)
