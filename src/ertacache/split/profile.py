"""Where a run changes hands, with what that costs on each side and what judged prompts say of it: one small file."""

import copy
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from torch import nn

from ertacache.errors import InvalidArgument, ProfileInvalid, SplitMismatch
from ertacache.files import write_atomic
from ertacache.pipelines.models import denoisers_of
from ertacache.profile.sealed import Sealed, is_list, is_object, short
from ertacache.split.matching import source_of
from ertacache.split.prices import switch_of
from ertacache.split.wire import check_plain

VERSION = 1
SIZE_CAP = HEADER_CAP = 2**20
_MOST_STEPS = 4096

#: What the document holds, and what kind of value that is.
_DOCUMENT: dict[str, type] = {
    "models": list, "asked": dict, "operations": dict, "prices": list, "chosen_on": dict, "judged": dict, "made": dict,
}  # fmt: skip
#: Of a row of `chosen_on` and `judged`: floats may be None.
_ROW: dict[str, type] = {
    "name": str, "models": list, "cloud_share": float, "price": float, "latent_log10_error": float, "psnr": dict,
    "ssim": dict,
}  # fmt: skip
_FIGURES: dict[str, type] = dict.fromkeys(("mean", "std", "standard_error", "p10", "worst"), float)
_PART: dict[str, type] = {"prompts": int, "rows": list}
_OPERATIONS: dict[str, type] = {"large": float, "small": float, "large_alone": float}
_KINDS = {list: "a list", dict: "an object", str: "a text", int: "a whole number", float: "a finite number"}

_FORM = Sealed(
    kind="split profile", key="ertacache-split", version=VERSION, error=ProfileInvalid, size_cap=SIZE_CAP,
    header_cap=HEADER_CAP, rewrite="write it again with `ertacache calibrate-split`",
    shorter="calibrate with fewer arguments in `call`", smaller="calibrate with fewer arguments in `call`",
)  # fmt: skip


@dataclass(frozen=True)
class SplitProfile:
    """Which model makes each step of a run. Made by `calibrate_split`, used by `split(large, small, profile=...)`.

    Attributes:
        models: of each step, 0 for the large model and 1 for the small one.
        asked: the budget, by its argument.
        operations: of the denoisers for one prompt: `large` and `small` of this split, `large_alone` of a whole run of
            the large model. Floating-point operations, as torch counts them.
        prices: [T+1] log10 of the relative squared deviation of the final latent that each switch was expected to
            have, without a run; -99 of the large model alone.
        chosen_on: `prompts`, and a row for each candidate that was run on them.
        judged: `prompts`, and a row for this split, for the paper's grid of switches with the small model alone, and
            for fewer steps of the large model at the same cloud cost. A row has `name`, `models` (none of fewer steps),
            `cloud_share`, `price`, `latent_log10_error`, and of `psnr` (dB, to the large model's pictures) and `ssim`
            the figures of `metrics.figures`.
        made: call, seed, prompts, both models by class and weights, releases, what it took.
    """

    models: tuple[int, ...]
    asked: dict[str, Any]
    operations: dict[str, float]
    prices: tuple[float, ...]
    chosen_on: dict[str, Any]
    judged: dict[str, Any]
    made: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def switch(self) -> int | None:
        """The step at which the small model takes over; None where the models take more than one turn each."""
        return switch_of(self.models)

    @property
    def cloud_share(self) -> float:
        """Operations of the large model's steps by those of a whole run of it."""
        return self.operations["large"] / self.operations["large_alone"]

    def check(self, large: Any, others: Sequence[Any]) -> None:
        """Refuse models that it was not measured on.

        Raises:
            InvalidArgument: more than one model beside the large one.
            SplitMismatch: another class of denoiser.

        Warns:
            UserWarning: other weights, as with a LoRA.
        """
        if len(others) != 1:
            raise InvalidArgument(f"a split profile is of two models and {1 + len(others)} are given; give split(a, b)")
        for name, pipe in (("large", large), ("small", as_pipeline(large, others[0]))):
            known, own = self.made[name], source_of(pipe)
            if known["model"] != own["model"]:
                raise SplitMismatch(
                    f"the {name} model is {own['model']} and the split was measured on {short(known['model'])}; "
                    "calibrate_split these two"
                )
            if known["weights"] and own["weights"] and known["weights"] != own["weights"]:
                warnings.warn(
                    f"the {name} model has other weights than the one that the split was measured on; its figures are "
                    "not those of this pair",
                    stacklevel=5,
                )

    def summary(self) -> str:
        """Some lines for people."""
        row, rest = self.judged["rows"][0], self.judged["rows"][1:]
        where = f"switch at step {self.switch}" if self.switch is not None else "".join(map(str, self.models))
        lines = [
            f"{where} of {len(self.models)}: {self.cloud_share:.0%} of the large model's operations "
            f"({_count(self.operations['large'])} on its side, {_count(self.operations['small'])} on the other)",
            f"{_quality(row)} to the large model on {self.judged['prompts']} judged prompts, 10th percentile "
            f"{_number(row['psnr']['p10'])}, worst {_number(row['psnr']['worst'])}",
        ]
        return "\n".join([*lines, *(f"{one['name']}: {_quality(one)} at {one['cloud_share']:.0%}" for one in rest)])

    def to_bytes(self) -> bytes:
        """One safetensors blob without tensors, with one JSON document in its header. Equal splits, equal bytes.

        Raises:
            InvalidArgument: over 1 MiB.
        """
        document = {name: getattr(self, name) for name in _DOCUMENT}
        return _FORM.pack({**document, "models": list(self.models), "prices": list(self.prices)}, {})

    @classmethod
    def from_bytes(cls, data: bytes, where: str = "split profile") -> Self:
        """Read what a stranger may have written; nothing is executed.

        Args:
            where: names the bytes in errors.

        Raises:
            ProfileInvalid: whatever is wrong, with field and remedy.
        """
        _, document, entries = _FORM.read(data, where)
        if entries:
            raise _FORM.invalid(where, "tensors", f"holds {short(sorted(entries))} where there are none")
        _check(document, where)
        made: dict[str, Any] = {**document, "models": tuple(document["models"]), "prices": tuple(document["prices"])}
        return cls(**made)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, all or nothing."""
        write_atomic(Path(path), self.to_bytes())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file.

        Raises:
            ProfileInvalid: as `from_bytes`.
            OSError: there is no such file.
        """
        with Path(path).open("rb") as file:
            return cls.from_bytes(file.read(SIZE_CAP + 1), str(path))


def as_pipeline(large: Any, small: Any) -> Any:
    """The large model's pipeline around a denoiser alone; a pipeline is its own."""
    if not isinstance(small, nn.Module):
        return small
    own, found = denoisers_of(large), copy.copy(large)
    for name, part in vars(large).items():
        if any(part is one for one in own):
            vars(found)[name] = small
    return found


def _check(document: Mapping[str, Any], where: str) -> None:
    _require(document, _DOCUMENT, where, "document")
    steps = _models(document["models"], where, "models")
    if not steps:
        raise _FORM.invalid(where, "models", "is empty where each step has a model")
    prices = document["prices"]
    if len(prices) != steps + 1 or not all(map(_finite, prices)):
        raise _FORM.invalid(where, "prices", f"is {short(prices)} where {steps + 1} finite numbers belong")
    _require(document["operations"], _OPERATIONS, where, "operations")
    counts = document["operations"]
    if not all(_finite(n) and n >= 0 for n in counts.values()) or not counts["large_alone"]:
        raise _FORM.invalid(where, "operations", f"holds {short(counts)}, which no run takes")
    for part in ("chosen_on", "judged"):
        _require(document[part], _PART, where, part)
        for row in document[part]["rows"]:
            _check_row(row, where, f"{part}.rows")
    if not document["judged"]["rows"]:
        raise _FORM.invalid(where, "judged.rows", "is empty where the split's own row belongs")
    for name in ("asked", "made"):
        check_plain(_FORM, document[name], where, name)
    for name in ("large", "small"):
        source = document["made"].get(name)
        if not is_object(source) or not all(isinstance(source.get(key), str) for key in ("model", "weights")):
            raise _FORM.invalid(where, f"made.{name}", f"is {short(source)} where model and weights belong")


def _check_row(row: Any, where: str, field: str) -> None:
    if not is_object(row):
        raise _FORM.invalid(where, field, f"holds {short(row)}, not an object")
    _require(row, _ROW, where, field)
    _models(row["models"], where, f"{field}.models")
    if row["cloud_share"] is None:
        raise _FORM.invalid(where, f"{field}.cloud_share", "is None, not a finite number")
    for name in ("psnr", "ssim"):
        _require(row[name], _FIGURES, where, f"{field}.{name}")


def _require(found: Mapping[str, Any], kinds: Mapping[str, type], where: str, field: str) -> None:
    """Exactly these keys, of these kinds."""
    _FORM.require_keys(found, set(kinds), where, field, VERSION)
    for key, kind in kinds.items():
        value = found[key]
        fits = value is None or _finite(value) if kind is float else type(value) is kind
        if not fits or (isinstance(value, str) and len(value) > 256):
            raise _FORM.invalid(where, f"{field}.{key}", f"is {short(value)}, not {_KINDS[kind]}")


def _models(found: Any, where: str, field: str) -> int:
    if not is_list(found) or len(found) > _MOST_STEPS or not all(type(n) is int and n in (0, 1) for n in found):
        raise _FORM.invalid(where, field, f"is {short(found)} where up to {_MOST_STEPS} numbers 0 or 1 belong")
    return len(found)


def _finite(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # pyright: ignore[reportArgumentType]


def _count(operations: float) -> str:
    """Of a denoiser, in the unit in which people speak of them."""
    return f"{operations / 1e12:.3g} T" if operations >= 1e12 else f"{operations / 1e9:.3g} G"


def _quality(row: Mapping[str, Any]) -> str:
    psnr = row["psnr"]
    return f"{_number(psnr['mean'])} ± {_number(psnr['standard_error'])} dB"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
