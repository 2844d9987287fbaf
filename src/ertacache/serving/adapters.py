"""LoRA adapters that a server has, and those that a request names."""

import os
import re
import reprlib
from collections.abc import Sequence
from typing import Any, cast

from ertacache.calibration.checks import check_number
from ertacache.errors import InvalidArgument, meant
from ertacache.extras import require
from ertacache.profile.profile_source import is_hub_id

#: The adapters of a request with their scales. The order is the request's: sums are rounded in it.
Scales = tuple[tuple[str, float], ...]


def read_adapters(given: Sequence[str]) -> dict[str, str]:
    """The path or Hub id of each adapter by its name, from texts NAME=PATH.

    Raises:
        InvalidArgument: another text, a name given twice, nothing at the path. MissingExtra: peft is not there.
    """
    found: dict[str, str] = {}
    for text in given:
        name, _, path = text.partition("=")
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) or not path:
            raise InvalidArgument(f"lora is {text!r}; give NAME=PATH, with a name of letters, digits, - and _")
        if name in found:
            raise InvalidArgument(f"lora {name!r} is given twice; give one of them another name")
        if not os.path.exists(path) and not is_hub_id(path):
            raise InvalidArgument(f"lora {name!r}: there is nothing at {path!r}, and it is no Hub id; check the path")
        found[name] = path
    if found:
        require("a server with LoRA adapters", "peft")
    return found


def read_scales(value: Any, known: Sequence[str]) -> Scales:
    """The adapters of a request: `{"name": ..., "scale": ...}`, or a list of such; the scale is 1 where not said.

    Raises:
        InvalidArgument: another form, an adapter that is not served or named twice, a scale out of range.
    """
    found: dict[str, float] = {}
    for one in cast(list[Any], value if isinstance(value, list) else [value]):
        if not isinstance(one, dict) or not {"name"} <= cast(dict[str, Any], one).keys() <= {"name", "scale"}:
            remedy = 'give {"name": "style", "scale": 1.0}, or a list of such'
            raise InvalidArgument(f"lora is {reprlib.repr(value)}; {remedy}")
        own = cast(dict[str, Any], one)
        name, scale = own["name"], own.get("scale", 1.0)
        if name not in known:
            near = meant(name, known) if isinstance(name, str) else ""
            there = f"there are {', '.join(known)}" if known else "none is, without --lora at the start"
            raise InvalidArgument(f"lora {reprlib.repr(name)} is not served here{near or f'; {there}'}")
        if name in found:
            raise InvalidArgument(f"lora {name!r} is named twice; name it once")
        check_number("lora scale", scale, "give a number from -10 to 10", lambda x: -10 <= x <= 10)
        found[name] = float(scale)
    return tuple(found.items())
