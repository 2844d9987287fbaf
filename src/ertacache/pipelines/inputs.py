"""What a prompt brings along beside its text: the image to animate, the clip to change, a mask, a control signal."""

import hashlib
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ertacache.errors import InvalidArgument

#: Arguments of a pipeline call that differ from prompt to prompt, by name.
Inputs = Mapping[str, Any]


def input_names(inputs: Sequence[Inputs]) -> tuple[str, ...]:
    """The arguments that every prompt brings, sorted; empty where they bring none.

    Raises:
        InvalidArgument: an entry is no dictionary with texts as keys, or has other keys than the first.
    """
    for n, given in enumerate(inputs):
        if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidArgument(
                f"inputs[{n}] is {reprlib.repr(given)}; give one dictionary of arguments per prompt, such as "
                '{"image": image}'
            )
        if given.keys() != inputs[0].keys():
            raise InvalidArgument(
                f"inputs[{n}] has {sorted(given)} and inputs[0] has {sorted(inputs[0])}; give every prompt the same "
                "arguments"
            )
    return tuple(sorted(inputs[0])) if inputs else ()


def digest(inputs: Sequence[Inputs]) -> str:
    """A name for the inputs by what is in them, pixel by pixel: equal in every process.

    Raises:
        InvalidArgument: a value that is no image, array, tensor, text, number or list or dictionary of them.
    """
    found = hashlib.sha256()
    for given in inputs:
        for name in sorted(given):
            for part in _parts(given[name], name):
                found.update(hashlib.sha256(part).digest())
    return found.hexdigest()


def _parts(value: object, name: str) -> list[bytes]:
    """A value in pieces that tell it from any other."""
    from PIL.Image import Image

    if value is None or isinstance(value, bool | int | float | str):
        return [f"{name} {type(value).__name__} {value!r}".encode()]
    if isinstance(value, Tensor):
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return [f"{name} tensor {value.dtype} {tuple(value.shape)}".encode(), content]
    if isinstance(value, np.ndarray | np.generic):
        return [f"{name} array {value.dtype} {value.shape}".encode(), value.tobytes()]
    if isinstance(value, Image):
        return [f"{name} image {value.mode} {value.size} {value.getpalette()}".encode(), value.tobytes()]
    if isinstance(value, list | tuple):
        items = list(enumerate(cast("Sequence[object]", value)))
    elif isinstance(value, Mapping):
        items = sorted(cast("Mapping[str, object]", value).items(), key=lambda item: str(item[0]))
    else:
        raise InvalidArgument(
            f"{name} is a {type(value).__name__}, by which a checkpoint cannot tell one calibration from another; give "
            "images, arrays, tensors, numbers or texts, or calibrate without checkpoint"
        )
    inner = [part for key, item in items for part in _parts(item, f"{name}[{key!r}]")]
    return [f"{name} {type(value).__name__} {len(items)}".encode(), *inner]
