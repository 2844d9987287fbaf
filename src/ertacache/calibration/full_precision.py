"""The same model in full precision: what a calibration on a quantised pipeline aims at, and is measured from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ertacache.calibration.lockstep import own_copy
from ertacache.calibration.prompts import Prompts
from ertacache.calibration.recording import Recording
from ertacache.calibration.reference_log import Reference, ReferenceLog
from ertacache.calibration.taught import Runs
from ertacache.errors import InvalidArgument
from ertacache.pipelines.models import denoisers_of, unwrapped
from ertacache.pipelines.weights import fingerprint_of, weights_hash
from ertacache.profile.sealed import short
from ertacache.runtime.identity import identity_of, quantizers_of
from ertacache.runtime.run import Controller

#: How far the first latents of two runs may be apart, as a share of their norm: as bfloat16 rounds.
_SAME_NOISE = 2.0**-6


@dataclass(frozen=True, eq=False)
class FullPrecision:
    """The pipeline whose results a quantised one is to have, see `taught.Teacher`.

    Attributes:
        pipe: it. precision: the dtype of its denoiser, for people.
    """

    pipe: Any
    precision: str

    name: ClassVar[str] = "full precision"

    @property
    def parts(self) -> int:
        """A run of it is as long as an uncached one."""
        return 1

    @property
    def words(self) -> dict[str, Any]:
        """What figures that are measured from its runs are told of them."""
        return {"precision": self.precision}

    @property
    def choices(self) -> dict[str, Any]:
        """What a provenance has among the choices of the method."""
        return {"reference": self.precision}

    def identity(self) -> dict[str, Any]:
        """What tells it from others, for a checkpoint."""
        return {"reference": [identity_of(self.pipe), weights_hash(self.pipe), *filter(None, quantizers_of(self.pipe))]}

    def facts(self, pipe: Any) -> dict[str, Any]:
        """How the pipeline is quantised whose errors are undone, and in what weights there are none."""
        found = quantizers_of(pipe)
        quantizer = {"denoisers": found} if any(one is not None for one in found) else {}
        return {"quantizer": quantizer, "reference_weights": fingerprint_of(self.pipe)}

    def watching(self) -> Controller:
        """A controller that changes nothing."""
        return Controller()

    def run(self, recorder: Runs, prompts: Prompts, controller: Controller, *, decode: bool = False) -> Tensor:
        """A call of the full-precision pipeline."""
        return recorder.run(prompts, controller, "full-precision run", decode=decode, pipe=self.pipe)

    def record(self, recorder: Runs, prompts: Prompts, path: Path, own: Reference) -> dict[str, Any]:
        """Record a run whole; returns the layout of the file.

        Raises:
            InvalidArgument: it is on another time grid, or makes other calls.
        """
        log = ReferenceLog(path)
        try:
            self.run(recorder, prompts, log)
            layout = log.finish()
        finally:
            log.discard()
        if not torch.equal(log.sigmas, own.sigmas) or log.contexts != own.contexts:
            raise InvalidArgument(
                f"the reference runs {len(log.sigmas) - 1} steps with calls {list(log.contexts)} and the pipeline "
                f"{len(own.sigmas) - 1} with {list(own.contexts)}, or on another time grid; give the same pipeline "
                "around the model in full precision"
            )
        return layout

    def check(self, own: Recording, found: Recording) -> None:
        """Whether two runs of one batch begin alike.

        Raises:
            InvalidArgument: their latents have other shapes, or come of other noise.
        """
        ours, theirs = own.latents, found.latents
        if ours.shape != theirs.shape:
            raise InvalidArgument(
                f"the reference has latents {list(theirs.shape[2:])} and the pipeline {list(ours.shape[2:])}; give the "
                "same model in full precision"
            )
        start = theirs[0].float()
        if float((ours[0].float() - start).norm()) > _SAME_NOISE * float(start.norm()):
            raise InvalidArgument(
                "the reference starts from other noise than the pipeline with the same generator, as where one draws "
                "it in float32 and the other in bfloat16; load all but the denoiser in one dtype, or give the denoiser "
                "alone: reference=full.transformer"
            )


def full_precision(pipe: Any, reference: Any) -> FullPrecision:
    """The pipeline in full precision that stands behind a reference.

    Args:
        pipe: the quantised one.
        reference: a pipeline, its denoiser, or of several denoisers a dictionary by their names.

    Raises:
        InvalidArgument: it is none of these, of another class or configuration, the same module, or quantised as the
            pipeline is.
        UnsupportedPipeline: one of the two has no denoiser.
    """
    own = denoisers_of(pipe)
    full = _pipeline(pipe, own, reference)
    theirs = denoisers_of(full)
    for ours, one in zip(own, theirs, strict=False):
        if unwrapped(ours) is unwrapped(one):
            raise InvalidArgument(
                f"reference is the very {type(unwrapped(one)).__name__} that the pipeline runs; give the model in full "
                "precision"
            )
    before, after = identity_of(full), identity_of(pipe)
    for name, value in after.items():
        if before[name] != value:
            raise InvalidArgument(
                f"reference has the {name} {short(before[name])} and the pipeline {short(value)}; give the same model "
                "in full precision"
            )
    found = quantizers_of(pipe)
    if any(one is not None for one in found) and quantizers_of(full) == found:
        raise InvalidArgument(
            f"reference is quantised as the pipeline is, {short(found[0])}; give the model in full precision"
        )
    held = (*theirs[0].parameters(), *theirs[0].buffers())
    dtype = next((weight.dtype for weight in held if weight.is_floating_point()), torch.float32)
    return FullPrecision(full, str(dtype).removeprefix("torch."))


def _pipeline(pipe: Any, own: tuple[nn.Module, ...], reference: Any) -> Any:
    """The reference as a pipeline; around denoisers, all else is the quantised one's."""
    names = [name for name in ("transformer", "transformer_2", "unet") if getattr(pipe, name, None) in own]
    if isinstance(reference, nn.Module):
        if len(own) > 1:
            raise InvalidArgument(
                f"reference is one {type(reference).__name__} where the pipeline has {names}; give a pipeline or "
                f"a dictionary of these"
            )
        reference = {names[0]: reference}
    if not isinstance(reference, Mapping):
        if not hasattr(reference, "scheduler"):
            raise InvalidArgument(
                f"reference is {short(reference)}; give the pipeline in full precision, or its denoiser"
            )
        return reference
    parts = cast("Mapping[str, Any]", reference)
    if set(parts) != set(names) or not all(isinstance(part, nn.Module) for part in parts.values()):
        given = {name: type(part).__name__ for name, part in parts.items()}
        raise InvalidArgument(f"reference has {given}; give one denoiser for each of {names}")
    full = own_copy(pipe)
    vars(full).update(parts)
    return full


def check_reference(*, aimed: bool, spread: bool) -> None:
    """What rules a reference out for a plan.

    Args:
        aimed: whether every plan is fitted to the trajectory. spread: whether runs are made in other processes.

    Raises:
        InvalidArgument: a plan that aims at something else, or processes that do not have the reference.
    """
    if spread:
        raise InvalidArgument(
            "map makes runs in other processes, and reference is a model of this one, which cannot be sent to them; "
            "leave map out and calibrate here"
        )
    if not aimed:
        raise InvalidArgument(
            "reference needs a plan that aims at the trajectory (site 'guided', aim='trajectory', no rectifier, the "
            "solver's own grid, which has to be one that can be inverted); leave reference or these choices out"
        )
