"""What a prompt brings along beside or in place of its text: embeddings, an image to animate, a mask, a label."""

import hashlib
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, cast

import numpy as np
import torch
from torch import Tensor

from ertacache.errors import InvalidArgument

#: Arguments of a pipeline call that differ from prompt to prompt, by name.
Inputs = Mapping[str, Any]

_TEXT = re.compile(r"(negative_)?prompt(_\d+)?")
#: What a text encoder makes of a prompt, in place of which it is given.
_EMBEDDED = re.compile(r"prompt_embed(s|dings)(_(?!mask)\w+)?")
#: Tensors of which a batch is one, with the prompts along an axis: embeddings and their masks.
_BATCHED = re.compile(r"\w*(embed(s|dings)(_(?!scale)\w+)?|attention_mask(_\d+)?)")
#: Where that axis is not the first.
_AXES = {"prompt_embeds_llama3": 1, "negative_prompt_embeds_llama3": 1}
#: Where a batch is one list of numbers, of one prompt too.
_LABELS = ("class_labels",)


def check_inputs(inputs: object) -> None:
    """Refuse what is no list with an entry for each prompt, and not None.

    Raises:
        InvalidArgument: naming it.
    """
    if inputs is not None and (isinstance(inputs, str) or not isinstance(inputs, Sequence)):
        raise InvalidArgument(
            f'inputs is {reprlib.repr(inputs)}; give a list of one dictionary per prompt, such as [{{"image": image}}]'
        )


def input_names(inputs: Sequence[Inputs]) -> tuple[str, ...]:
    """The arguments that every prompt brings, sorted; empty where they bring none.

    Raises:
        InvalidArgument: an entry is no dictionary with texts as keys, or has other keys than the first, or None where
            that has a value: what is given turns guidance on, so that their runs would differ.
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
        for name, value in given.items():
            if (value is None) != (inputs[0][name] is None):
                raise InvalidArgument(
                    f"{name} is {reprlib.repr(value)} in inputs[{n}] and {reprlib.repr(inputs[0][name])} in inputs[0]; "
                    "give every prompt the same arguments"
                )
    return tuple(sorted(inputs[0])) if inputs else ()


def is_text(name: str) -> bool:
    """Whether an argument is a text, of a batch a list of texts."""
    return _TEXT.fullmatch(name) is not None


def embedded(inputs: Sequence[Inputs]) -> bool:
    """Whether the prompts come as embeddings, so that their texts go to no text encoder."""
    return any(_EMBEDDED.fullmatch(name) for name in input_names(inputs))


def names_of(inputs: Sequence[Inputs]) -> list[str]:
    """What tells each prompt that has no text from the others, by its content: its embeddings where it has some.

    Raises:
        InvalidArgument: see `digest`.
    """
    apart = embedded(inputs)
    kept = [{name: given[name] for name in given if not apart or _BATCHED.fullmatch(name)} for given in inputs]
    return [f"{'embeddings' if apart else 'inputs'} {digest([given])[:16]}" for given in kept]


def joined(inputs: Sequence[Inputs]) -> dict[str, Any]:
    """The arguments of one call for a batch of prompts.

    Tensors of embeddings and masks [1, *] are put together along the batch; of anything else several prompts give a
    list, and one gives it bare (not every pipeline takes a list of images or clips), but for texts and class labels.

    Raises:
        InvalidArgument: embeddings that cannot be put together.
    """
    found: dict[str, Any] = {}
    for name in input_names(inputs):
        values = [given[name] for given in inputs]
        if all(value is None for value in values):
            found[name] = None
        elif _BATCHED.fullmatch(name):
            found[name] = _together(name, values)
        elif "cu_seqlens" in name and len(values) > 1:
            _refuse(name, values)
        else:
            found[name] = values if len(values) > 1 or is_text(name) or name in _LABELS else values[0]
    return found


def _together(name: str, values: list[Any]) -> Any:
    axis = _AXES.get(name, 0)
    if len(values) == 1 and (not isinstance(values[0], Tensor) or "prompt" not in name):
        return values[0]
    if all(isinstance(value, list) and len(cast("list[object]", value)) == 1 for value in values) and "prompt" in name:
        return [value[0] for value in values]  # pipelines whose embeddings are a list of one tensor per prompt
    shapes = [tuple(value.shape) if isinstance(value, Tensor) else () for value in values]
    if any(len(shape) <= axis or shape[axis] != 1 for shape in shapes) or len(set(shapes)) > 1:
        _refuse(name, values)
    return values[0] if len(values) == 1 else torch.cat(values, axis)


def _refuse(name: str, values: list[Any]) -> NoReturn:
    kinds = list(dict.fromkeys(str(list(v.shape)) if isinstance(v, Tensor) else type(v).__name__ for v in values))
    axis = _AXES.get(name, 0)
    if len(values) == 1:
        raise InvalidArgument(
            f"{name} of one prompt is {kinds[0]}; give it with a batch axis of 1 at {axis}, as encode_prompt returns it"
        )
    raise InvalidArgument(
        f"{name} is {' or '.join(kinds[:4])} from prompt to prompt, which one call cannot take together; give tensors "
        f"of one shape with a batch axis of 1 at {axis}, or use batch_size=1"
    )


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
