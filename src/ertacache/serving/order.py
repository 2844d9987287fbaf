"""What a client may ask for, checked word by word before anything is queued."""

import json
import re
import reprlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email import message_from_bytes
from typing import Any

from ertacache.calibration.checks import check_number, check_whole
from ertacache.errors import InvalidArgument, meant
from ertacache.files import json_object
from ertacache.serving.adapters import Scales, read_scales

#: From the cheapest to what is computed whole.
QUALITIES = ("low", "medium", "high", "xhigh", "max")
#: Sides are multiples of it: a latent's cells, packed two by two, as OpenAI's models ask as well.
_CELL = 16
#: Half of what a profile's seeds span, so that those of `n` pictures are in range, too.
_LARGEST_SEED = 2**62


@dataclass(frozen=True)
class Limits:
    """What one request may ask for, and how many may wait.

    Attributes:
        pixels: height × width, times frames of a clip. steps: of the solver. characters: of a text. images: `n`.
        queue: pictures and clips that wait. body: bytes of a request.
    """

    pixels: int = 2048 * 2048
    steps: int = 100
    characters: int = 4000
    images: int = 10
    queue: int = 32
    body: int = 1 << 20


@dataclass(frozen=True)
class Order:
    """A sound request.

    Attributes:
        call: the pipeline's arguments, with the server's own where the client said nothing.
        quality: one of `QUALITIES`, or "auto". profile: a profile's name instead, or "none"; None where not said.
        seed: of the first of `n` pictures; the next has seed + 1.
        lora: adapters that are on, with their scales.
        partial_images: pictures to show on the way. progress: whether each step is told in the stream.
    """

    prompt: str
    call: Mapping[str, Any]
    quality: str = "auto"
    profile: str | None = None
    seed: int = 0
    n: int = 1
    lora: Scales = ()
    output_format: str = "png"
    output_compression: int = 100
    stream: bool = False
    partial_images: int = 0
    progress: bool = False


Fields = Mapping[str, Any]
Check = Callable[[str, Any, Limits], None]


def _text(name: str, value: Any, limits: Limits) -> None:
    if not isinstance(value, str):
        raise InvalidArgument(f"{name} is {reprlib.repr(value)}; give a text")
    if len(value) > limits.characters:
        raise InvalidArgument(f"{name} has {len(value)} characters; this server takes at most {limits.characters}")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise InvalidArgument(f"{name} holds half of a character; send valid Unicode")


def _whole(least: int, most: int | str | None, why: str) -> Check:
    """From `least` to `most`, which may be one of the limits by name."""

    def check(name: str, value: Any, limits: Limits) -> None:
        check_whole(name, value, least, why, getattr(limits, most) if isinstance(most, str) else most)

    return check


def _weight(name: str, value: Any, limits: Limits) -> None:
    check_number(name, value, "give a number from 0 to 100", lambda x: 0 <= x <= 100)


def _later(name: str, value: Any, limits: Limits) -> None:
    """Checked with the adapters that are served."""


def _one_of(*known: Any) -> Check:
    def check(name: str, value: Any, limits: Limits) -> None:
        if not any(value is one or (value == one and isinstance(value, str)) for one in known):
            raise InvalidArgument(f"{name} is {reprlib.repr(value)}; choose one of {', '.join(map(str, known))}")

    return check


def _size(name: str, value: Any, limits: Limits) -> None:
    found = re.fullmatch(r"([1-9]\d{1,3})x([1-9]\d{1,3})", value, re.ASCII) if isinstance(value, str) else None
    if value != "auto" and (found is None or any(int(side) % _CELL for side in found.groups())):
        remedy = f"give WIDTHxHEIGHT in pixels, multiples of {_CELL}, such as 1024x1024, or auto"
        raise InvalidArgument(f"size is {reprlib.repr(value)}; {remedy}")


def _seconds(name: str, value: Any, limits: Limits) -> None:
    if not re.fullmatch(r"(?!0+(\.0+)?$)\d{1,4}(\.\d{1,3})?", str(value), re.ASCII):
        raise InvalidArgument(f"seconds is {reprlib.repr(value)}; give a length such as 4")


#: Arguments of the pipeline under the names that both engines use.
_ARGUMENTS: dict[str, Check] = {
    "negative_prompt": _text, "num_inference_steps": _whole(1, "steps", "the steps of the solver"),
    "guidance_scale": _weight, "true_cfg_scale": _weight,
}  # fmt: skip
_BOTH: dict[str, Check] = {
    "prompt": _text, "model": _text, "profile": _text, "size": _size, "quality": _one_of(*QUALITIES, "auto"),
    "seed": _whole(0, _LARGEST_SEED, "of the noise"), "lora": _later, **_ARGUMENTS,
}  # fmt: skip
_IMAGES: dict[str, Check] = {
    **_BOTH, "n": _whole(1, "images", "pictures of a request"), "output_format": _one_of("png", "webp", "jpeg"),
    "output_compression": _whole(0, 100, "the quality of jpeg and webp"), "background": _one_of("opaque", "auto"),
    "response_format": _one_of("b64_json"), "stream": _one_of(True, False), "progress": _one_of(True, False),
    "partial_images": _whole(0, 3, "pictures on the way"),
}  # fmt: skip
_VIDEOS: dict[str, Check] = {**_BOTH, "seconds": _seconds, "num_frames": _whole(1, None, "frames of the clip")}
#: Said of a client, or without a meaning here; the picture is the same.
_UNUSED = {"moderation", "safety_identifier", "style", "user"}
NAMES = frozenset({*_IMAGES, *_VIDEOS})


def read_body(data: bytes, kind: str) -> dict[str, Any]:
    """The fields of a JSON body, or of a form, whose numbers are read as such.

    Raises:
        InvalidArgument: neither; a part that is a file; a field that is given twice.
    """
    if not kind.startswith("multipart/form-data"):
        try:
            return json_object(data)
        except (ValueError, RecursionError) as error:
            raise InvalidArgument(f"the body is no JSON object ({error}); send one, or multipart/form-data") from error
    message = message_from_bytes(b"Content-Type: " + kind.encode("latin-1", "replace") + b"\r\n\r\n" + data)
    fields: dict[str, Any] = {}
    for part in message.walk():
        name, content = part.get_param("name", header="content-disposition"), part.get_payload(decode=True)
        if not isinstance(name, str) or not isinstance(content, bytes):
            continue
        if name in fields or part.get_filename() is not None:
            raise InvalidArgument(f"{name} is a file, or given twice; this server takes each field once, as text")
        fields[name] = text = content.decode("utf-8", "replace")
        if (_IMAGES | _VIDEOS).get(name) not in (_text, _size, _seconds):
            with suppress(ValueError, RecursionError):  # a word, which its check knows
                fields[name] = json.loads(text)
    return fields


def read_order(
    body: Fields, defaults: Fields, takes: Fields, limits: Limits, fps: float | None, adapters: Sequence[str] = ()
) -> Order:
    """A request for pictures, or for a clip where `fps` is its rate.

    Args:
        defaults: the call where the client says nothing. takes: arguments that the pipeline takes.
        adapters: names of those that are served.

    Raises:
        InvalidArgument: beginning with the name of the field, with its value and what it may be.
    """
    known = _IMAGES if fps is None else _VIDEOS
    given = {name: value for name, value in body.items() if value is not None and name not in _UNUSED}
    for name, value in given.items():
        if name not in known:
            remedy = meant(name, known) or f"; there are {', '.join(sorted(known))}"
            plain = name if name.isprintable() and len(name) <= 40 else reprlib.repr(name)
            raise InvalidArgument(f"{plain} is no field of this request{remedy}")
        if name in _ARGUMENTS and name not in takes:
            raise InvalidArgument(f"{name} is nothing that this model takes; leave it out")
        known[name](name, value, limits)
    if not given.get("prompt", "").strip():
        raise InvalidArgument("prompt is missing or empty; say what to draw")
    call = {**defaults, **{name: given[name] for name in (*_ARGUMENTS, "num_frames") if name in given}}
    if given.get("size", "auto") != "auto":
        call["width"], call["height"] = map(int, given["size"].split("x"))
    if fps is not None and "seconds" in given and "num_frames" not in given:
        call["num_frames"] = 4 * round(float(given["seconds"]) * fps / 4) + 1  # what video autoencoders take: 4 k + 1
    _check_together(given, call, limits)
    own: dict[str, Any] = {name: given[name] for name in Order.__dataclass_fields__ if name in given}
    own["lora"] = read_scales(given.get("lora", []), adapters)
    own.setdefault("seed", secrets.randbelow(_LARGEST_SEED))
    return Order(**own, call=call)


def _check_together(given: Fields, call: Fields, limits: Limits) -> None:
    frames = call.get("num_frames", 1)
    if (pixels := call["height"] * call["width"] * frames) > limits.pixels:
        shape = f"{call['width']}x{call['height']}" + f", {frames} frames" * (frames > 1)
        raise InvalidArgument(f"size is {shape}: {pixels} pixels; this server makes at most {limits.pixels}")
    if given.get("stream") and given.get("n", 1) > 1:
        raise InvalidArgument(f"n is {given['n']}, and a stream is of one picture; use n=1, or stream=false")
    if given.get("n", 1) > limits.queue:
        raise InvalidArgument(f"n is {given['n']}, and at most {limits.queue} wait here; ask for fewer at once")
    if given.get("output_compression", 100) < 100 and given.get("output_format", "png") == "png":
        value = given["output_compression"]
        raise InvalidArgument(f"output_compression is {value}, and a png loses nothing; use 100, or webp or jpeg")
    for name, other in (("profile", "quality"), ("num_frames", "seconds")):
        if name in given and other in given:
            raise InvalidArgument(f"{name} is {given[name]!r} and {other} {given[other]!r}; give one of the two")
    for name in ("partial_images", "progress"):
        if given.get(name) and not given.get("stream"):
            raise InvalidArgument(f"{name} is {given[name]}, which comes in a stream only; set stream=true")
