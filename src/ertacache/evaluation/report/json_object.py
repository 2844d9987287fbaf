"""JSON that others wrote, read with care: every complaint names the file, the line and the field."""

import json
import math
from pathlib import Path
from typing import Any, cast

from ertacache.errors import InvalidArgument

_REMEDY = "run the comparison again"


class JsonObject:
    """One JSON object and the place it stands in, so that every complaint can say where.

    Args:
        data: decoded JSON.
        where: the place, for messages.

    Raises:
        InvalidArgument: not an object; from every method, a value of another kind.
    """

    def __init__(self, data: Any, where: str) -> None:
        if not isinstance(data, dict):
            raise InvalidArgument(f"{where} is not a JSON object; {_REMEDY}")
        self._data = cast(dict[str, Any], data)
        self.where = where

    def wrong(self, key: str, expected: str) -> InvalidArgument:
        """The complaint about a key."""
        found = repr(self._data[key])[:80] if key in self._data else "nothing"
        return InvalidArgument(f"{self.where}: {key!r} must be {expected}, found {found}; {_REMEDY}")

    def value(self, key: str) -> Any:
        """Whatever is there; None where nothing is."""
        return self._data.get(key)

    def text(self, key: str) -> str:
        """The text at a key."""
        if not isinstance(value := self.value(key), str):
            raise self.wrong(key, "text")
        return value

    def optional_text(self, key: str) -> str | None:
        """The text at a key; None for null or nothing."""
        return None if self.value(key) is None else self.text(key)

    def truth(self, key: str) -> bool:
        """True or false."""
        if not isinstance(value := self.value(key), bool):
            raise self.wrong(key, "true or false")
        return value

    def number(self, key: str) -> float:
        """A finite number."""
        value = self.value(key)
        if not _is_number(value):
            raise self.wrong(key, "a finite number")
        return value

    def optional_number(self, key: str) -> float | None:
        """A finite number; None for null or nothing."""
        return None if self.value(key) is None else self.number(key)

    def integer(self, key: str, low: int | None = None, high: int | None = None) -> int:
        """A whole number, from `low` to `high` where they are given."""
        value = self.number(key)
        if not isinstance(value, int):
            raise self.wrong(key, "a whole number")
        if (low is not None and value < low) or (high is not None and value > high):
            limits = f"of at least {low}" if high is None else f"from {low} to {high}"
            raise self.wrong(key, f"a whole number {limits}")
        return value

    def object(self, key: str) -> dict[str, Any]:
        """The object at a key, as it is."""
        if not isinstance(value := self.value(key), dict):
            raise self.wrong(key, "an object")
        return cast(dict[str, Any], value)

    def part(self, key: str) -> "JsonObject":
        """The object at a key, which knows its place."""
        return JsonObject(self.object(key), f"{self.where}, {key}")

    def items(self, key: str) -> list[Any]:
        """A list of anything."""
        if not isinstance(value := self.value(key), list):
            raise self.wrong(key, "a list")
        return cast(list[Any], value)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of text."""
        value = self.value(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in cast(list[Any], value)):
            raise self.wrong(key, "a list of text")
        return tuple(cast(list[str], value))

    def numbers(self, key: str, count: int | None = None) -> tuple[float, ...]:
        """A list of finite numbers, `count` of them where that is given."""
        value = self.value(key)
        items: list[Any] = cast(list[Any], value) if isinstance(value, list) else [None]
        if not all(map(_is_number, items)):
            raise self.wrong(key, "a list of finite numbers")
        if count is not None and len(items) != count:
            raise self.wrong(key, f"a list of {count} numbers, not {len(items)}")
        return tuple(items)


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)


def read_json(path: Path) -> JsonObject:
    """The one JSON object of a file.

    Raises:
        InvalidArgument: no such file, or anything else in it.
    """
    try:
        return JsonObject(json.loads(_read(path)), str(path))
    except RecursionError as error:
        raise InvalidArgument(f"{path} is nested too deeply; {_REMEDY}") from error
    except json.JSONDecodeError as error:
        raise InvalidArgument(f"{path}, line {error.lineno} is not JSON ({error.msg}); {_REMEDY}") from error


def read_result_lines(path: Path, *, growing: bool) -> list[tuple[int, JsonObject]]:
    """The JSON objects of a result file with the numbers of their lines: a header, then at least one row.

    Args:
        growing: whether the file is written line by line: then half a line at its end, which a killed process leaves
            behind, does not count.

    Raises:
        InvalidArgument: no such file, no header, no rows, or a line that is no JSON object.
    """
    lines = read_json_lines(path, growing=growing)
    if not lines or lines[0][1].value("kind") != "header":
        raise InvalidArgument(f'{path}, line 1 is not a {{"kind": "header"}} line; {_REMEDY}')
    if len(lines) == 1:
        raise InvalidArgument(f"{path} has a header and no rows yet; let the comparison run on")
    return lines


def read_json_lines(path: Path, *, growing: bool) -> list[tuple[int, JsonObject]]:
    """The JSON objects of a file, one per line, with the numbers of their lines; `growing` as in `read_result_lines`.

    Raises:
        InvalidArgument: no such file, or a line that is no JSON object.
    """
    objects: list[tuple[int, JsonObject]] = []
    text = _read(path)
    whole = text.rpartition("\n")[0] if growing else text
    for number, line in enumerate(whole.split("\n"), start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            objects.append((number, JsonObject(json.loads(line), where)))
        except RecursionError as error:
            raise InvalidArgument(f"{where} is nested too deeply; {_REMEDY}") from error
        except json.JSONDecodeError as error:
            raise InvalidArgument(f"{where} is not JSON ({error.msg} at column {error.colno}); {_REMEDY}") from error
    return objects


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InvalidArgument(f"{path} is not there; pass a folder that `ertacache compare` wrote") from error
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{path} is not text in UTF-8 ({error.reason}); {_REMEDY}") from error
