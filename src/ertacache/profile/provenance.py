"""Where a profile comes from: what calibration ran on, how, and what it measured."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from reprlib import repr as short  # values from a file may be long
from typing import Any, cast

from ertacache.errors import InvalidArgument
from ertacache.profile.profile_file import is_list, is_object

_MAX_DEPTH = 16  # far below the recursion limit, which a hostile file could reach
_MAX_WHOLE = 2**63  # what every JSON reader can hold


@dataclass(frozen=True, slots=True)
class Provenance:
    """Facts of the calibration, some of which the run-time compares with the pipeline that it is applied to.

    Values are kept as JSON gives them back (tuples inside the dictionaries become lists), so that what was
    saved and loaded is equal to the original. `contexts` and `latent_shape` are kept as tuples.

    Args:
        num_inference_steps: the argument of the pipeline call.
        contexts: names of the denoiser calls of one step.
        guidance_weight: w of two-branch guidance u + w (c − u), or None where there is none.
        embedded_guidance: the weight that a guidance-distilled denoiser is given, or None.
        call: arguments of the pipeline calls.
        latent_shape: without the batch axis.
        channel_axis: of the latent with its batch axis; may be negative.
        method: the choices of the calibration.
        heldout: what was measured on prompts that it did not fit.
        boundaries: the steps at which another denoiser takes over, rising; empty where there is one only.
        later_weights: the guidance weight of each denoiser but the first, as long as `boundaries`.
        measured: seconds of the denoising loop per prompt, cached and uncached, their ratio, and what the calibration
            cost in uncached runs of one prompt and in seconds; empty in older files.

    Raises:
        InvalidArgument: a value of another type, one that JSON cannot hold, a number that is not finite (write an
            unbounded PSNR as None), or fields that contradict each other; the text names the key.
    """

    model_class: str
    model_config_hash: str
    scheduler_class: str
    scheduler_config_hash: str
    num_inference_steps: int
    contexts: tuple[str, ...]
    guidance_weight: float | None
    embedded_guidance: float | None
    call: dict[str, Any]
    latent_shape: tuple[int, ...]
    channel_axis: int
    dtype: str
    prompt_count: int
    prompt_hash: str
    holdout_count: int
    seed: int
    method: dict[str, Any]
    versions: dict[str, str]
    heldout: dict[str, Any]
    boundaries: tuple[int, ...] = ()
    later_weights: tuple[float | None, ...] = ()
    measured: dict[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        for fact in fields(self):
            key = f"provenance.{fact.name}"
            value = _plain(getattr(self, fact.name), key)
            wanted, fits = _KINDS[fact.type]
            if not fits(value):
                raise InvalidArgument(f"{key} is {short(value)}; it must be {wanted}")
            object.__setattr__(self, fact.name, tuple(value) if is_list(value) else value)
        for name in ("guidance_weight", "embedded_guidance"):
            if (weight := getattr(self, name)) is not None:
                object.__setattr__(self, name, float(weight))
        weights = tuple(weight if weight is None else float(weight) for weight in self.later_weights)
        object.__setattr__(self, "later_weights", weights)
        if len(weights) != len(self.boundaries):
            raise InvalidArgument(
                f"provenance.later_weights has {len(weights)} entries and provenance.boundaries "
                f"{len(self.boundaries)}; give one weight, or None, for each denoiser that takes over"
            )
        self._check_counts()
        self._check_calls()

    def _check_counts(self) -> None:
        for name, least in (("num_inference_steps", 1), ("prompt_count", 0), ("holdout_count", 0)):
            if (count := getattr(self, name)) < least:
                raise InvalidArgument(f"provenance.{name} is {count}; it must be {least} or more")
        rank = len(self.latent_shape)
        if not rank:
            raise InvalidArgument("provenance.latent_shape is []; give the sizes of one latent without its batch axis")
        if not 1 <= abs(self.channel_axis) <= rank:  # the batch is axis 0, and never the channels'
            raise InvalidArgument(
                f"provenance.channel_axis is {self.channel_axis} where provenance.latent_shape has {rank} axes; count "
                f"the batch as axis 0 and choose 1 to {rank}, or -1 to -{rank}"
            )

    def _check_calls(self) -> None:
        if not self.contexts or len(set(self.contexts)) < len(self.contexts) or "" in self.contexts:
            raise InvalidArgument(f"provenance.contexts is {short(list(self.contexts))}; name each call of a step once")
        # u + w (c - u) has two branches: those of two calls, or of one call with both in its batch.
        if len(self.contexts) > 2 and any(weight is not None for weight in self.weights):
            raise InvalidArgument(
                f"provenance has the guidance weights {short(self.weights)} and the {len(self.contexts)} calls "
                f"{short(list(self.contexts))}; write None where a step makes other than one or two calls"
            )

    @property
    def weights(self) -> tuple[float | None, ...]:
        """The guidance weight of each denoiser."""
        return (self.guidance_weight, *self.later_weights)


#: The version of the file format that a field came with, where that was not the first.
_SINCE = {"boundaries": 2, "later_weights": 2, "measured": 3}


def names_in(version: int) -> set[str]:
    """The fields of a provenance in one version of the file format."""
    return {part.name for part in fields(Provenance) if _SINCE.get(part.name, 1) <= version}


def _plain(value: object, key: str, depth: int = 0) -> Any:
    """`value` as JSON would give it back; InvalidArgument naming the key of what it cannot hold."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        if abs(value) >= _MAX_WHOLE:
            raise InvalidArgument(f"{key} is a whole number of over 64 bits; write it as text")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidArgument(f"{key} is {value}, which JSON cannot hold; write None for an unbounded value")
        return float(value)
    if depth == _MAX_DEPTH:
        raise InvalidArgument(f"{key} is nested over {_MAX_DEPTH} levels deep; keep plain facts in a provenance")
    if isinstance(value, list | tuple):
        items = enumerate(cast("Sequence[object]", value))
        return [_plain(item, f"{key}[{i}]", depth + 1) for i, item in items]
    if isinstance(value, Mapping):
        return _plain_table(cast("Mapping[object, object]", value), key, depth)
    kind = type(value).__name__
    raise InvalidArgument(f"{key} is a {kind}, which JSON cannot hold; pass numbers, texts, lists or dicts of them")


def _plain_table(table: Mapping[object, object], key: str, depth: int) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name, item in table.items():
        if not isinstance(name, str):
            raise InvalidArgument(f"{key} has the key {short(name)}, which JSON would change; use texts as keys")
        plain[str.__str__(name)] = _plain(item, f"{key}.{name}", depth + 1)
    return plain


def _texts(values: Sequence[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


# What a field may hold once it is plain, by its annotation: the words for it, and the check.
_KINDS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    str: ("a text", lambda value: isinstance(value, str)),
    int: ("a whole number", lambda value: type(value) is int),
    float | None: ("a number or None", lambda value: value is None or type(value) in (int, float)),
    tuple[str, ...]: ("a list of texts", lambda value: is_list(value) and _texts(value)),
    tuple[int, ...]: (
        "a list of whole numbers above 0",
        lambda value: is_list(value) and all(type(n) is int and n > 0 for n in value),
    ),
    tuple[float | None, ...]: (
        "a list of numbers or None",
        lambda value: is_list(value) and all(n is None or type(n) in (int, float) for n in value),
    ),
    dict[str, Any]: ("a dict", is_object),
    dict[str, str]: (
        "a dict of texts",
        lambda value: is_object(value) and _texts(list(value.values())),
    ),
}
