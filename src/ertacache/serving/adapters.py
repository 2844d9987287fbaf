"""LoRA adapters beside the model: loaded when the server starts, each on for the requests that name it."""

import os
import re
import reprlib
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

from ertacache.calibration.checks import check_number
from ertacache.errors import InvalidArgument, UnsupportedPipeline, meant
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


def load_adapters(pipe: Any, adapters: Mapping[str, str]) -> None:
    """Load every adapter into a pipeline, where all of them are off.

    Raises:
        UnsupportedPipeline: it takes none. InvalidArgument: an adapter of another model, or no adapter.
    """
    kind = type(pipe).__name__
    if adapters and not hasattr(pipe, "load_lora_weights"):
        raise UnsupportedPipeline(f"{kind} takes no LoRA adapters; start the server without --lora")
    for name, path in adapters.items():
        fault: Exception | str = "it has no weights for this model"
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Already found a `peft_config`")  # which it is to have
                pipe.load_lora_weights(path, adapter_name=name)
        except Exception as error:  # of diffusers, peft, torch, safetensors and the Hub, each of its own kind
            fault = error
        if not any(name in names for names in pipe.get_list_adapters().values()) or isinstance(fault, Exception):
            why = " ".join(str(fault).split())[:300]
            raise InvalidArgument(f"lora {name!r}: {path} does not load into {kind} ({why}); give one made for it")
    if adapters:
        pipe.disable_lora()


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


@contextmanager
def switched_on(pipe: Any, scales: Scales) -> Generator[None]:
    """These adapters are on inside, and none is afterwards."""
    try:
        if scales:
            pipe.enable_lora()
            pipe.set_adapters([name for name, _ in scales], [scale for _, scale in scales])
        yield
    finally:
        if scales:
            pipe.disable_lora()
