"""The pipeline's own arguments beside those of `calibrate`: no name of one keeps the other from being given."""

import reprlib
from collections.abc import Mapping
from typing import Any

from ertacache.errors import InvalidArgument
from ertacache.pipelines.pipeline_call import defaults_of

#: Arguments of `calibrate` that take a list or a dictionary; of any other these are the pipeline's.
_TAKES_LISTS = ("prompts", "inputs", "sizes", "call")


def pipeline_arguments(given: Mapping[str, Any] | None, plain: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the pipeline call, those of the dictionary and the plain keywords.

    Raises:
        InvalidArgument: no dictionary with texts as keys, or an argument in both.
    """
    if given is None:
        return dict(plain)
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidArgument(
            f"call is {reprlib.repr(given)}; give the pipeline's own arguments by name: "
            'call={"num_inference_steps": 30, ...}'
        )
    if twice := sorted(set(given) & set(plain)):
        raise InvalidArgument(f"{twice[0]!r} is given in call and as a keyword; give it once")
    return {**given, **plain}


def refuse_mistaken(pipe: Any, own: Mapping[str, Any]) -> None:
    """Refuse an argument of `calibrate` with a value that only the pipeline's of that name can have been meant for.

    Raises:
        InvalidArgument: naming it and where to put it.
    """
    known: dict[str, Any] | None = None
    for name, value in own.items():
        if name in _TAKES_LISTS or not (isinstance(value, Mapping | list | tuple | set) or hasattr(value, "shape")):
            continue
        known = defaults_of(pipe) if known is None else known
        if name in known:
            raise InvalidArgument(
                f"{name} is {reprlib.repr(value)}, which is for {type(pipe).__name__}'s argument of that name, not for "
                f"calibrate's; pass it in call={{{name!r}: ...}}"
            )
