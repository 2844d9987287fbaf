"""What a file may hold that a stranger wrote: texts made printable, numbers read whatever lies in their place."""

import math
from collections.abc import Mapping
from typing import cast

_LONGEST = 200


def printable(value: object) -> str:
    """A text, or the `repr` of another value, on one line: control and bidirectional characters, line breaks and lone
    surrogates are escaped, and what is too long is cut."""
    text = value if isinstance(value, str) else repr(value)
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[:_LONGEST])
    return shown + "..." * (len(text) > _LONGEST)


def at(table: object, *path: str) -> object:
    """What lies at a path of keys; None where nothing does."""
    for key in path:
        if not isinstance(table, Mapping):
            return None
        table = cast("Mapping[str, object]", table).get(key)
    return table


def number(table: object, *path: str) -> float | None:
    """The finite number at a path of keys; None for anything else."""
    value = at(table, *path)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None
