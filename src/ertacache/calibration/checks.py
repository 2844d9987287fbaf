"""Checks of what was given, each answered with the value and the remedy."""

import reprlib
from collections.abc import Callable
from typing import Any

from ertacache.errors import InvalidArgument


def check_whole(name: str, value: object, least: int, why: str, most: int | None = None) -> None:
    """Refuse what is no whole number from `least` to `most`; `why` explains the range.

    Raises:
        InvalidArgument: naming the value and the range.
    """
    if type(value) is not int or value < least or (most is not None and value > most):
        bounds = f"of {least} or more" if most is None else f"from {least} to {most}"
        raise InvalidArgument(f"{name} is {reprlib.repr(value)}; choose a whole number {bounds}: {why}{_plain(value)}")


def check_number(name: str, value: object, remedy: str, fits: Callable[[float], bool]) -> None:
    """Refuse what is no number, or one that does not fit (no comparison holds for NaN).

    Raises:
        InvalidArgument: naming the value and the remedy.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not fits(value):
        raise InvalidArgument(f"{name} is {reprlib.repr(value)}; {remedy}{_plain(value)}")


def _plain(value: Any) -> str:
    """What makes a number of NumPy or torch one of Python, which a profile can keep."""
    return " (of NumPy and torch: value.tolist())" * hasattr(value, "tolist")
