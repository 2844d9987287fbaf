"""The profile: what calibration found for one model, solver and step count, and the file that carries it."""

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ertacache.core.predictor import Predictor
from ertacache.core.schedule import Schedule
from ertacache.errors import InvalidArgument
from ertacache.files import write_atomic
from ertacache.profile import profile_file
from ertacache.profile.provenance import Provenance

__all__ = ["MAX_STEPS", "Activation", "Profile", "Provenance", "Rectifier", "Site"]

Site = Literal["output", "guided", "hidden"]
Activation = Literal["linear", "sigmoid"]

MAX_STEPS = 4096  # checking a schedule takes time that grows with its square
_DOCUMENT = {"activation", "provenance", "schedule", "site", "sources", "targets"}
_TENSORS = {"base_sigmas", "predictor.a", "predictor.b", "predictor.d", "sigmas"}
_RECTIFIER = {"rectifier.beta", "rectifier.kappa"}


@dataclass(frozen=True, eq=False, slots=True)
class Rectifier:
    """The affine correction of a prediction where it cannot be folded into the predictor (Eq. 15-21).

    That is at site `hidden`, where it acts on the output of the head, and with the paper's literal sigmoid.

    Args:
        kappa, beta: float32 CPU tensors [T, targets, *coef], zero at computed steps; coef broadcasts against
            one output without its batch axis.
        activation: linear is v − (κ v + β); sigmoid is v − sigmoid(K v + B) with K = 4κ and B = 4β − 2.

    Raises:
        InvalidArgument: an unknown activation, or tables that are not finite float32 of one shape.
    """

    kappa: Tensor
    beta: Tensor
    activation: Activation = "linear"

    def __post_init__(self) -> None:
        _one_of(self.activation, get_args(Activation), "rectifier.activation")
        if self.kappa.shape != self.beta.shape or self.kappa.ndim < 2:
            raise InvalidArgument(
                f"rectifier.kappa has shape {list(self.kappa.shape)} and rectifier.beta has "
                f"{list(self.beta.shape)}; both must be [steps, targets, *coefficient]"
            )
        _finite_float32(self.kappa, "rectifier.kappa")
        _finite_float32(self.beta, "rectifier.beta")


@dataclass(frozen=True, eq=False, slots=True)
class Profile:
    """What to compute, how to predict the rest, and the grid to integrate on.

    Two profiles are equal when their files are.

    Args:
        base_sigmas: float32 CPU tensor [T+1], strictly decreasing: the solver's own grid.
        sigmas: the grid to run on (Eq. 13-14), of the same kind and with the same first and last entry; equal
            to the base where nothing was adjusted.
        rectifier: None where there is no correction or where it is folded into the predictor.

    Raises:
        InvalidArgument: parts that do not fit together; ScheduleInvalid and PredictorInvalid are kinds of it.
    """

    schedule: Schedule
    site: Site
    predictor: Predictor
    base_sigmas: Tensor
    sigmas: Tensor
    rectifier: Rectifier | None
    provenance: Provenance

    def __post_init__(self) -> None:
        _one_of(self.site, get_args(Site), "site")
        _bounded(self.schedule.T)
        for name in ("base_sigmas", "sigmas"):
            _check_grid(getattr(self, name), name, self.schedule.T)
        for end in (0, -1):
            base, used = float(self.base_sigmas[end]), float(self.sigmas[end])
            if base != used:
                raise InvalidArgument(
                    f"sigmas[{end}] is {used} where base_sigmas[{end}] is {base}; "
                    "an adjusted grid must start and end where the base grid does"
                )
        self.predictor.for_schedule(self.schedule)
        _check_boundaries(self.provenance.boundaries, self.schedule, self.predictor)
        if self.site == "hidden" and bool(self.predictor.d.any()):
            raise InvalidArgument("predictor.d is not 0 at site 'hidden', which holds residuals; set it to 0")
        if self.rectifier is not None:
            _check_rectifier(self.rectifier, self.schedule, len(self.predictor.targets))

    def __eq__(self, other: object) -> bool:
        return self.to_bytes() == other.to_bytes() if isinstance(other, Profile) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.to_bytes())

    def to_bytes(self) -> bytes:
        """The profile as file content (see `docs/profile-format.md`): equal profiles give equal bytes.

        Raises:
            InvalidArgument: it is over a size cap of the format.
        """
        document = {
            "activation": self.rectifier.activation if self.rectifier else None,
            "provenance": {field.name: getattr(self.provenance, field.name) for field in fields(Provenance)},
            "schedule": str(self.schedule),
            "site": self.site,
            "sources": self.predictor.sources,
            "targets": self.predictor.targets,
        }
        tensors = {
            "base_sigmas": self.base_sigmas,
            "predictor.a": self.predictor.a,
            "predictor.b": self.predictor.b,
            "predictor.d": self.predictor.d,
            "sigmas": self.sigmas,
        }
        if self.rectifier is not None:
            tensors |= {"rectifier.beta": self.rectifier.beta, "rectifier.kappa": self.rectifier.kappa}
        return profile_file.pack(document, tensors)

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "profile") -> "Profile":
        """Inverse of `to_bytes`. `name` stands for the file in errors.

        Raises:
            ProfileInvalid: whatever is wrong with the content; the text names file, field and remedy.
        """
        document, tensors = profile_file.unpack(data, name)
        profile_file.require_keys(document, _DOCUMENT, name, "document")
        rectified = document["activation"] is not None
        profile_file.require_keys(tensors, _TENSORS | _RECTIFIER if rectified else _TENSORS, name, "tensors")
        facts = document["provenance"]
        if not profile_file.is_object(facts):
            raise profile_file.invalid(name, "provenance", f"is {profile_file.short(facts)}, not an object")
        profile_file.require_keys(facts, {field.name for field in fields(Provenance)}, name, "provenance")
        try:
            return cls(
                schedule=_schedule(document["schedule"]),
                site=document["site"],
                predictor=Predictor(
                    targets=_names(document["targets"], "targets"),
                    sources=_names(document["sources"], "sources"),
                    a=tensors["predictor.a"],
                    d=tensors["predictor.d"],
                    b=tensors["predictor.b"],
                ),
                base_sigmas=tensors["base_sigmas"],
                sigmas=tensors["sigmas"],
                rectifier=Rectifier(tensors["rectifier.kappa"], tensors["rectifier.beta"], document["activation"])
                if rectified
                else None,
                provenance=Provenance(**facts),
            )
        except InvalidArgument as error:
            raise profile_file.invalid(name, "content", str(error)) from error

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
    def load(cls, source: str | os.PathLike[str], revision: str | None = None) -> "Profile":
        """Read a profile from a file, a folder with a `profile.safetensors`, or a Hub id such as `org/name`.

        What exists on this disk wins over the Hub; `revision` (branch, tag or commit) is for Hub ids only.

        Raises:
            InvalidArgument: there is nothing to load.
            ProfileInvalid: what is there is no sound profile.
        """
        path = profile_file.locate(source, revision)
        return cls.from_bytes(profile_file.read_capped(path), str(path))

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, **options: Any) -> str:
        """Commit the profile to a Hub repository, created if there is none, and return the commit's address.

        `options` go to `huggingface_hub.HfApi.upload_file` (`token`, `revision`, `commit_message`, ...).
        """
        return profile_file.upload(self.to_bytes(), repo_id, private=private, options=options)


def _one_of(value: object, allowed: tuple[str, ...], key: str) -> None:
    if value not in allowed:
        raise InvalidArgument(f"{key} is {profile_file.short(value)}; it must be one of {', '.join(allowed)}")


def _finite_float32(tensor: Tensor, key: str) -> None:
    if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
        raise InvalidArgument(f"{key} is {tensor.dtype} on {tensor.device}; pass {key}.float().cpu()")
    if not torch.isfinite(tensor).all():
        raise InvalidArgument(f"{key} holds NaN or infinity; calibrate again, on more prompts or in a wider dtype")


def _check_grid(sigmas: Tensor, key: str, T: int) -> None:
    if tuple(sigmas.shape) != (T + 1,):
        raise InvalidArgument(
            f"{key} has shape {list(sigmas.shape)} where the schedule of {T} steps needs [{T + 1}]; "
            "take the scheduler's sigmas of that step count, with the final one"
        )
    _finite_float32(sigmas, key)
    falls = bool(sigmas[0] >= sigmas[-1])  # most do; Mochi's rises
    wrong = sigmas.diff() >= 0 if falls else sigmas.diff() <= 0
    if wrong.any():
        i = int(wrong.nonzero()[0])
        raise InvalidArgument(
            f"{key} goes from {float(sigmas[i])} to {float(sigmas[i + 1])} at step {i}; it must "
            f"{'fall' if falls else 'rise'} at every step"
        )


def _check_rectifier(rectifier: Rectifier, schedule: Schedule, targets: int) -> None:
    if tuple(rectifier.kappa.shape[:2]) != (schedule.T, targets):
        raise InvalidArgument(
            f"rectifier.kappa has shape {list(rectifier.kappa.shape)} where {schedule.T} steps and "
            f"{targets} targets need [{schedule.T}, {targets}, *coefficient]"
        )
    for i in schedule.computed_steps:
        if rectifier.kappa[i].any() or rectifier.beta[i].any():
            raise InvalidArgument(
                f"the rectifier is not zero at step {i}, which is computed; nothing is corrected there"
            )


def _check_boundaries(boundaries: tuple[int, ...], schedule: Schedule, predictor: Predictor) -> None:
    """No history leads from one denoiser to the next."""
    for before, step in zip((0, *boundaries), boundaries, strict=False):
        if not before < step < schedule.T:
            raise InvalidArgument(
                f"provenance.boundaries is {list(boundaries)}; it must rise within steps 1 to {schedule.T - 1}"
            )
        if not schedule.computed[step]:
            raise InvalidArgument(
                f"step {step} of '{schedule}' is predicted, and another denoiser takes over there, which has no "
                "history yet; compute it"
            )
    for i in schedule.predicted_steps if boundaries else ():
        if (needed := predictor.needed_levels(i)) > (held := schedule.depth(i, boundaries)):
            raise InvalidArgument(
                f"step {i} of '{schedule}' needs the last {needed} computed steps and its denoiser has made {held}; "
                "use a shorter history there"
            )


def _bounded(steps: int) -> None:
    if steps > MAX_STEPS:
        raise InvalidArgument(f"schedule has {steps} steps; use at most {MAX_STEPS}")


def _schedule(value: object) -> Schedule:
    text = _text(value, "schedule")
    _bounded(len(text))
    return Schedule.from_mask(text)


def _text(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise InvalidArgument(f"{key} is {profile_file.short(value)}; it must be a text")
    return value


def _names(value: object, key: str) -> tuple[str, ...]:
    if not profile_file.is_list(value):
        raise InvalidArgument(f"{key} is {profile_file.short(value)}; it must be a list of texts")
    return tuple(_text(item, key) for item in value)
