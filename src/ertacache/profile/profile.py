"""The profile: what calibration found for one model, solver and step count, with its file and its faces."""

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from ertacache.core.predictor import Predictor
from ertacache.core.schedule import Schedule
from ertacache.errors import InvalidArgument
from ertacache.files import write_atomic
from ertacache.profile import profile_file
from ertacache.profile.checks import MAX_GRIDS, MAX_STEPS
from ertacache.profile.content import Activation, Content, Rectifier, Site
from ertacache.profile.profile_html import draw_html
from ertacache.profile.profile_source import locate, upload
from ertacache.profile.profile_summary import one_line, summary_text
from ertacache.profile.provenance import Provenance, names_in
from ertacache.profile.sealed import is_list, is_object, short
from ertacache.profile.tables import (
    CORRECTIONS,
    TABLES,
    compensation_of,
    corrected_rows,
    from_rows,
    to_rows,
)

__all__ = ["MAX_STEPS", "Activation", "Profile", "Provenance", "Rectifier", "Site"]

_DOCUMENT = {"activation", "provenance", "schedule", "site", "sources", "targets"}
_GRIDS = {"base_sigmas", "sigmas"}
_OTHERS = 4  # the first version that may hold several profiles
_ROWS = 3  # the first version that holds the rows of predicted steps only
_CORRECTED = 6  # the first version with corrections of a quantised denoiser, written where there is a need of it
_SMALL = 7  # the first version that may predict from a small model, written where there is one


class Profile(Content):
    """What to compute, how to predict the rest, and the grid to integrate on: see `Content` for its parts.

    Two profiles are equal when their files are. In a notebook a profile shows itself with schedule, coefficients and
    what was measured.
    """

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return self.to_bytes() == other.to_bytes() if isinstance(other, Profile) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.to_bytes())

    def __repr__(self) -> str:
        return one_line(self)

    def __str__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        return draw_html(self)

    def summary(self) -> str:
        """The profile for people, in lines of text: what it computes, for what, and what was measured."""
        return summary_text(self)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Schedule, time grid, coefficients and judged figures as a matplotlib `Figure`, also written to a file.

        Args:
            path: of a .png, .svg or .pdf file; None writes none.

        Raises:
            MissingExtra: matplotlib is not installed.
            InvalidArgument: another kind of file.
        """
        from ertacache.profile.profile_plot import draw_profile

        return draw_profile(self, None if path is None else Path(path))

    def to_bytes(self) -> bytes:
        """The profile as file content (see `docs/profile-format.md`): equal profiles give equal bytes.

        Raises:
            InvalidArgument: it is over a size cap of the format.
        """
        grids = 1 + len(self.others)
        version = max(map(_version, (self, *self.others)))
        document = _document(self, version)
        if self.others:
            document["others"] = [_document(other, version) for other in self.others]
        tensors = _tensors(self, grids)
        for n, other in enumerate(self.others):
            tensors |= {f"{_prefix(n)}{name}": tensor for name, tensor in _tensors(other, grids).items()}
        return profile_file.pack(document, tensors, version)

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "profile") -> "Profile":
        """Inverse of `to_bytes`, which also reads older versions of the format. `name` stands for the file in errors.

        Raises:
            ProfileInvalid: whatever is wrong with the content; the text names file, field and remedy.
        """
        version, document, tensors = profile_file.unpack(data, name)
        documents = _others(document, name) if version >= _OTHERS else []
        keys = _DOCUMENT | {"compensation"} if version >= _CORRECTED else _DOCUMENT
        profile_file.require_keys(document, keys, name, "document", version)
        grids = 1 + len(documents)
        others: list[Profile] = []
        for n, other in enumerate(documents):
            own = {key: tensors.pop(key) for key in sorted(tensors) if key.startswith(_prefix(n))}
            profile_file.require_keys(other, keys, name, f"others[{n}]", version)
            own = {key.removeprefix(_prefix(n)): tensor for key, tensor in own.items()}
            others.append(cls._read(version, other, own, name, _prefix(n), grids, ()))
        return cls._read(version, document, tensors, name, "", grids, tuple(others))

    @classmethod
    def _read(
        cls,
        version: int,
        document: dict[str, Any],
        tensors: dict[str, Tensor],
        name: str,
        prefix: str,
        grids: int,
        others: tuple["Profile", ...],
    ) -> "Profile":
        """One profile of a file; `prefix` names it in errors."""
        rectified = document["activation"] is not None
        tables = {table for table in TABLES if rectified or table.startswith("predictor.")}
        tables |= set(CORRECTIONS) if document.get("compensation") is not None else set()
        profile_file.require_keys(tensors, _GRIDS | tables, name, f"{prefix}tensors", version)
        facts, field = document["provenance"], f"{prefix}provenance"
        if not is_object(facts):
            raise profile_file.invalid(name, field, f"is {short(facts)}, not an object")
        profile_file.require_keys(facts, names_in(version), name, field, version)
        try:
            return cls(**_parts(version, document, tensors, grids), others=others)
        except InvalidArgument as error:
            raise profile_file.invalid(name, f"{prefix}content", str(error)) from error

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the profile to `path`, all or nothing, and return the path.

        Raises:
            OSError: as the file system does; an older file at `path` is then still intact.
            InvalidArgument: as `to_bytes`.
        """
        target = Path(path)
        write_atomic(target, self.to_bytes())
        return target

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str],
        *,
        filename: str | None = None,
        subfolder: str | None = None,
        revision: str | None = None,
    ) -> "Profile":
        """Read a profile from a file, a folder with a `profile.safetensors`, or a Hub id such as `org/name`.

        What exists on this disk wins over the Hub.

        Args:
            filename: another file of the folder or the Hub repository.
            subfolder: of the folder or the Hub repository.
            revision: branch, tag or commit of the Hub repository.

        Raises:
            InvalidArgument: there is nothing to load, or an argument that does not go with a file on this disk.
            ProfileInvalid: what is there is no sound profile.
        """
        path = locate(source, filename=filename, subfolder=subfolder, revision=revision)
        return cls.from_bytes(profile_file.read_capped(path), str(path))

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, **options: Any) -> str:
        """Commit the profile to a Hub repository, created if there is none, and return the commit's address.

        `options` go to `huggingface_hub.HfApi.upload_file` (`token`, `revision`, `commit_message`, ...).
        """
        return upload(self.to_bytes(), repo_id, private=private, options=options)


def _prefix(n: int) -> str:
    """Before the names of the n-th profile beside the first."""
    return f"others.{n}."


def _others(document: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The documents of the profiles beside the first, taken out of its own."""
    if "others" not in document:
        return []
    value = document.pop("others")
    if not is_list(value) or not value or not all(map(is_object, value)):
        raise profile_file.invalid(name, "others", f"is {short(value)}, not a list of objects")
    if len(value) >= MAX_GRIDS:
        raise profile_file.invalid(name, "others", f"has {len(value)} profiles, over the cap of {MAX_GRIDS - 1}")
    return value


def _version(profile: Profile) -> int:
    """The first version that can hold a profile: one without a quantiser is what it was before there were any."""
    facts = profile.provenance
    if facts.small_model:
        return _SMALL
    corrected = profile.compensation is not None or facts.quantizer or facts.reference_weights
    return _CORRECTED if corrected else _CORRECTED - 1


def _document(profile: Profile, version: int) -> dict[str, Any]:
    facts, names = profile.provenance, names_in(version)
    own = {"compensation": corrected_rows(profile.compensation)[0]} if version >= _CORRECTED else {}
    return {
        **own,
        "activation": profile.rectifier.activation if profile.rectifier else None,
        "provenance": {field.name: getattr(facts, field.name) for field in fields(Provenance) if field.name in names},
        "schedule": str(profile.schedule),
        "site": profile.site,
        "sources": profile.predictor.sources,
        "targets": profile.predictor.targets,
    }


def _tensors(profile: Profile, grids: int) -> dict[str, Tensor]:
    predictor, rectifier = profile.predictor, profile.rectifier
    tables = {"predictor.a": predictor.a, "predictor.b": predictor.b, "predictor.d": predictor.d}
    if rectifier is not None:
        tables |= {"rectifier.beta": rectifier.beta, "rectifier.kappa": rectifier.kappa}
    own = {"base_sigmas": profile.base_sigmas, "sigmas": profile.sigmas}
    corrections = corrected_rows(profile.compensation)[1]
    return {**own, **corrections, **to_rows(tables, profile.schedule, grids)}


def _parts(version: int, document: dict[str, Any], tensors: dict[str, Tensor], grids: int) -> dict[str, Any]:
    """The arguments of `Profile`."""
    schedule, targets = _schedule(document["schedule"]), _names(document["targets"], "targets")
    tables = {name: table for name, table in tensors.items() if name in TABLES}
    corrections = {name: table for name, table in tensors.items() if name in CORRECTIONS}
    if version >= _ROWS:
        tables = from_rows(tables, schedule, len(targets), grids)
    activation = document["activation"]
    return {
        "schedule": schedule,
        "site": document["site"],
        "predictor": Predictor(
            targets=targets,
            sources=_names(document["sources"], "sources"),
            **{name: tables[f"predictor.{name}"] for name in "adb"},
        ),
        "base_sigmas": tensors["base_sigmas"],
        "sigmas": tensors["sigmas"],
        "rectifier": None
        if activation is None
        else Rectifier(tables["rectifier.kappa"], tables["rectifier.beta"], activation),
        "compensation": compensation_of(document.get("compensation"), corrections, schedule.T, grids),
        "provenance": Provenance(**document["provenance"]),
    }


def _schedule(value: object) -> Schedule:
    text = _text(value, "schedule")
    if len(text) > MAX_STEPS:
        raise InvalidArgument(f"schedule has {len(text)} steps; use at most {MAX_STEPS}")
    return Schedule.from_mask(text)


def _text(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise InvalidArgument(f"{key} is {short(value)}; it must be a text")
    return value


def _names(value: object, key: str) -> tuple[str, ...]:
    if not is_list(value):
        raise InvalidArgument(f"{key} is {short(value)}; it must be a list of texts")
    return tuple(_text(item, key) for item in value)
