"""Where a profile comes from: what calibration ran on, how, and what it measured."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from reprlib import repr as short  # values from a file may be long
from typing import Any, cast

from ertacache.errors import InvalidArgument
from ertacache.profile.sealed import is_list, is_object
from ertacache.profile.weights import Fingerprint

_MAX_DEPTH = 16  # far below the recursion limit, which a hostile file could reach
_MAX_WHOLE = 2**63  # what every JSON reader can hold


@dataclass(frozen=True, slots=True)
class Provenance:
    """Facts of the calibration, some of which the run-time compares with the pipeline that it is applied to.

    Values are kept as JSON gives them back (tuples inside the dictionaries become lists), so that what was
    saved and loaded is equal to the original. `contexts` and `latent_shape` are kept as tuples.

    Args:
        model_class: of the denoiser; of several, separated by ", ".
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
        model_config_hash, scheduler_config_hash: of the whole configurations, in files older than version 4; empty in
            newer ones, which have `model_config` and `scheduler_config`.
        model_config: what the denoiser's configuration has set otherwise than its class; of several denoisers
            {"denoisers": [one for each]}.
        scheduler_config: likewise of the scheduler.
        weights: a `Fingerprint` of the denoiser's weights as text; empty where unknown.
        step_arguments: the numbers that the pipeline gives `scheduler.step`, such as {"eta": 0.0}.
        calls: [step, {call name: branches in its batch}] at step 0 and wherever the set of calls changes; empty
            where unknown.
        step_weights: the guidance weight of each step, None where there is none; empty where unknown.
        quantizer: {"denoisers": [one for each]}, how each is quantised, as `pipelines.quantizers.record.quantizer_of`
            has it, None for one that is not; empty where the profile was not calibrated against another precision.
        reference_weights: a `Fingerprint` of the denoiser that it was calibrated against; empty where there is none or
            it is unknown.
        small_model: of the model that it predicts from, empty where there is none: model_class, model_config, weights
            as those of the denoiser, and share, its operations as a share of the denoiser's.

    Raises:
        InvalidArgument: a value of another type, one that JSON cannot hold, a number that is not finite (write an
            unbounded PSNR as None), or fields that contradict each other; the text names the key.
    """

    model_class: str
    scheduler_class: str
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
    model_config_hash: str = ""
    scheduler_config_hash: str = ""
    model_config: dict[str, Any] = field(default_factory=dict[str, Any])
    scheduler_config: dict[str, Any] = field(default_factory=dict[str, Any])
    weights: str = ""
    step_arguments: dict[str, float] = field(default_factory=dict[str, float])
    calls: tuple[tuple[int, dict[str, int]], ...] = ()
    step_weights: tuple[float | None, ...] = ()
    quantizer: dict[str, Any] = field(default_factory=dict[str, Any])
    reference_weights: str = ""
    small_model: dict[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        for fact in fields(self):
            key = f"provenance.{fact.name}"
            value = _plain(getattr(self, fact.name), key)
            wanted, fits = _KINDS[fact.type]
            if not fits(value):
                raise InvalidArgument(f"{key} is {short(value)}; it must be {wanted}")
            object.__setattr__(self, fact.name, tuple(value) if is_list(value) else value)
        for name in ("guidance_weight", "embedded_guidance"):
            object.__setattr__(self, name, _float(getattr(self, name)))
        for name in ("later_weights", "step_weights"):
            object.__setattr__(self, name, tuple(map(_float, getattr(self, name))))
        if len(self.later_weights) != len(self.boundaries):
            raise InvalidArgument(
                f"provenance.later_weights has {len(self.later_weights)} entries and provenance.boundaries "
                f"{len(self.boundaries)}; give one weight, or None, for each denoiser that takes over"
            )
        object.__setattr__(self, "calls", tuple((step, calls) for step, calls in self.calls))
        self._check_counts()
        self._check_calls()
        self._check_changes()
        self._check_identity()

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
        if len(self.contexts) > 2 and any(weight is not None for weight in self.guidance_weights):
            raise InvalidArgument(
                f"provenance has the guidance weights {short(self.guidance_weights)} and the {len(self.contexts)} "
                f"calls {short(list(self.contexts))}; write None where a step makes other than one or two calls"
            )

    def _check_changes(self) -> None:
        """What may differ from step to step: the calls, and the guidance weight."""
        steps = self.num_inference_steps
        if self.step_weights and len(self.step_weights) != steps:
            raise InvalidArgument(
                f"provenance.step_weights has {len(self.step_weights)} entries where provenance.num_inference_steps is "
                f"{steps}; give one weight, or None, for each step, or none at all"
            )
        starts = [step for step, _ in self.calls]
        if starts and (starts[0] != 0 or sorted(set(starts)) != starts or starts[-1] >= steps):
            raise InvalidArgument(
                f"provenance.calls names the steps {short(starts)} of {steps}; start at step 0 and go on to later ones"
            )
        for step, calls in self.calls:
            if not calls or "" in calls or min(calls.values()) < 1:
                raise InvalidArgument(
                    f"provenance.calls has {short(calls)} at step {step}; name each call with the branches in its "
                    "batch, 1 or more"
                )
        if self.calls and self.calls[0][1].keys() != set(self.contexts):
            raise InvalidArgument(
                f"provenance.calls has {short(sorted(self.calls[0][1]))} at step 0 where provenance.contexts is "
                f"{short(list(self.contexts))}; name the same calls in both"
            )

    def _check_identity(self) -> None:
        for name in ("model_config", "scheduler_config"):
            if getattr(self, name) and (kept := getattr(self, f"{name}_hash")):
                raise InvalidArgument(
                    f"provenance.{name}_hash is {short(kept)} beside provenance.{name}; keep the one without the hash"
                )
        denoisers: object = self.model_config.get("denoisers")
        count = self.model_class.count(", ") + 1
        several = is_list(denoisers) and len(denoisers) == count > 1 and all(map(is_object, denoisers))
        if ("denoisers" in self.model_config or (count > 1 and not self.model_config_hash)) and not (
            several and len(self.model_config) == 1
        ):
            raise InvalidArgument(
                f"provenance.model_config is {short(self.model_config)} where provenance.model_class is "
                f"{short(self.model_class)}; give one denoiser's keys, or of several {{'denoisers': [...]}} with one "
                "dict for each class"
            )
        for name in ("weights", "reference_weights"):
            if kept := getattr(self, name):
                Fingerprint.parse(kept, f"provenance.{name}")
        kinds: object = self.quantizer.get("denoisers")
        each = is_list(kinds) and len(kinds) == count and all(kind is None or is_object(kind) for kind in kinds)
        if self.quantizer and not (each and len(self.quantizer) == 1):
            raise InvalidArgument(
                f"provenance.quantizer is {short(self.quantizer)} where provenance.model_class is "
                f"{short(self.model_class)}; give {{'denoisers': [...]}} with one dict, or None, for each class"
            )

    @property
    def guidance_weights(self) -> tuple[float | None, ...]:
        """The guidance weight of each denoiser."""
        return (self.guidance_weight, *self.later_weights)


#: The version of the file format that a field came with, where that was not the first.
_SINCE = {
    "boundaries": 2, "later_weights": 2, "measured": 3, "model_config": 4, "scheduler_config": 4, "weights": 4,
    "step_arguments": 4, "calls": 4, "step_weights": 4, "quantizer": 6, "reference_weights": 6,
    "small_model": 7,
}  # fmt: skip


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


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)


def _texts(values: Sequence[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _is_change(entry: object) -> bool:
    if not is_list(entry) or len(entry) != 2 or type(entry[0]) is not int or not is_object(entry[1]):
        return False
    return all(type(branches) is int for branches in entry[1].values())


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
    tuple[tuple[int, dict[str, int]], ...]: (
        "a list of [step, {call name: branches}]",
        lambda value: is_list(value) and all(map(_is_change, value)),
    ),
    dict[str, Any]: ("a dict", is_object),
    dict[str, float]: (
        "a dict of numbers",
        lambda value: is_object(value) and all(isinstance(number, int | float) for number in value.values()),
    ),
    dict[str, str]: (
        "a dict of texts",
        lambda value: is_object(value) and _texts(list(value.values())),
    ),
}
