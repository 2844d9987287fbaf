"""A second, smaller denoiser, which a run asks on predicted steps with the inputs of the pipeline's own."""

from collections.abc import Callable
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ertacache.errors import ErtacacheError, InvalidArgument, ProfileMismatch, SplitMismatch
from ertacache.pipelines.models import denoisers_of, unwrapped
from ertacache.pipelines.weights import fingerprint_of
from ertacache.profile.profile import Profile
from ertacache.profile.sealed import short
from ertacache.profile.weights import Fingerprint
from ertacache.runtime.identity import check_denoisers, model_of
from ertacache.runtime.pair import check_pair


class SmallModel:
    """The denoisers of a small model beside those of a pipeline.

    Args:
        pipe: the pipeline whose steps are predicted.
        small: a pipeline, or its denoiser alone, which shares latents and texts with `pipe`, on the same device.

    Raises:
        InvalidArgument: `small` is neither, or the denoiser of `pipe` itself.
        SplitMismatch: it has other latents or texts.

    Attributes:
        denoisers: its own, in the order in which they take over.
    """

    def __init__(self, pipe: Any, small: Any) -> None:
        if not isinstance(small, nn.Module) and not hasattr(small, "scheduler"):
            raise InvalidArgument(f"predictor is {short(small)}; give a pipeline around a small model, or its denoiser")
        holder = SimpleNamespace(transformer=small) if isinstance(small, nn.Module) else small
        self.denoisers = denoisers_of(holder)
        for own in map(unwrapped, denoisers_of(pipe)):
            if any(unwrapped(denoiser) is own for denoiser in self.denoisers):
                raise InvalidArgument(
                    f"predictor is the very {type(own).__name__} that the pipeline runs; give a smaller model"
                )
        check_pair(pipe, small, "predictor")
        self._holder = holder

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What a provenance keeps of it: class, configuration and fingerprint of the weights."""
        return {**model_of(self.denoisers), "weights": fingerprint_of(self._holder)}

    def called(self, n: int) -> Callable[..., Any]:
        """What answers a call in place of the pipeline's denoiser number `n`; with one denoiser that is always this.

        Raises:
            SplitMismatch: when it is called, if the small model cannot take the arguments.
        """
        denoiser = self.denoisers[min(n, len(self.denoisers) - 1)]

        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return denoiser(*args, **kwargs)
            except (ErtacacheError, torch.OutOfMemoryError):
                raise
            except (RuntimeError, TypeError, ValueError) as error:
                raise SplitMismatch(
                    f"predictor: {type(unwrapped(denoiser)).__name__} cannot answer the pipeline's call of its own "
                    f"denoiser ({' '.join(str(error).split())[:200]}); use a model of the same family, dtype and device"
                ) from error

        return call


def check_answer(answer: Tensor, shape: tuple[int, ...]) -> Tensor:
    """What a small model answered [n B, *], refused where the denoiser itself returns another shape.

    Raises:
        SplitMismatch: naming both shapes.
    """
    if tuple(answer.shape) != shape:
        raise SplitMismatch(
            f"predictor: the small model returns {list(answer.shape)} where the pipeline's denoiser returns "
            f"{list(shape)}; use a model of the same family and latents"
        )
    return answer


def check_small_model(profile: Profile, small: SmallModel | None) -> None:
    """Refuse a small model that a profile was not fitted with, or has no use of, and the lack of one.

    Raises:
        ProfileMismatch: at the first that differs.
    """
    facts, kept = profile.provenance, profile.provenance.small_model
    if not kept and small is not None:
        raise ProfileMismatch(
            "predictor: the profile predicts from no small model, and one is given; leave predictor out, or calibrate "
            "with calibrate(..., predictor=...)"
        )
    if not kept or small is None:
        if kept:
            raise ProfileMismatch(
                f"predictor: the profile predicts from a small {short(kept['model_class'])[1:-1]}, and none is given; "
                "apply it with predictor=, the model it was calibrated with"
            )
        return
    found = small.identity
    check_denoisers("predictor", kept, small.denoisers, facts, "give the small model of the calibration")
    if not (kept["weights"] and found["weights"]):
        return
    before, now = (Fingerprint.parse(one["weights"], "predictor") for one in (kept, found))
    if difference := before.difference(now):
        raise ProfileMismatch(
            f"predictor: these are other weights of {found['model_class']} than the profile was fitted with: "
            f"{difference}; give the small model of the calibration, or calibrate with this one"
        )
