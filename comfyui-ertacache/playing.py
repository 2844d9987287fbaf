"""A profile on a model: the wrappers that ComfyUI calls around a run and around each guided model call."""

import logging
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

from torch import Tensor

from ertacache.errors import CacheConflict, ProfileMismatch, UnsupportedPipeline
from ertacache.profile.profile import Profile

from .identity import check_run, identity_of
from .played_steps import PlayedSteps
from .samplers import Steps, sampler_name

KEY = "ertacache"
#: Where ComfyUI's own caches keep their state; they answer for the same calls.
_OTHER_CACHES = ("easycache", "lazycache")
OnMismatch = Literal["refuse", "compute"]

logger = logging.getLogger("ertacache.comfyui")


class Playing:
    """Plays a profile in every run of the models that carry it; each run has a state of its own.

    The state is kept here and not in the model's options, so that what torch.compile sees of a model is the same with
    and without a profile.
    """

    def __init__(self, profile: Profile, on_mismatch: OnMismatch) -> None:
        self._profile, self._on_mismatch = profile, on_mismatch
        self._runs: WeakKeyDictionary[Any, Run] = WeakKeyDictionary()

    def outer_sample(self, executor: Any, noise: Tensor, latent: Tensor, sampler: Any, sigmas: Tensor, *rest: Any,
                     **named: Any) -> Any:  # fmt: skip
        """Around a whole run (WrappersMP.OUTER_SAMPLE)."""
        guider = executor.class_obj
        check_alone(guider.model_options)
        run = identity_of(guider, sampler)
        try:
            check_run(self._profile, run, sigmas, noise.shape)
        except (ProfileMismatch, UnsupportedPipeline) as error:
            if self._on_mismatch == "refuse":
                raise
            logger.warning("ERTACache computes every step: %s", error)
            return executor(noise, latent, sampler, sigmas, *rest, **named)
        played = PlayedSteps(self._profile)
        self._runs[guider] = Run(Steps(sampler_name(sampler), sigmas), played)
        try:
            result = executor(noise, latent, sampler, sigmas, *rest, **named)
            played.end()
        finally:
            del self._runs[guider]
        logger.info("ERTACache: %d steps computed, %d predicted", played.computed, played.predicted)
        return result

    def predict_noise(self, executor: Any, x: Tensor, timestep: Tensor, *rest: Any, **named: Any) -> Tensor:
        """Around a guided call of the model (WrappersMP.PREDICT_NOISE), which returns the denoised latent."""
        run = self._runs.get(executor.class_obj)
        if run is None or run.over:
            return executor(x, timestep, *rest, **named)
        sigma = float(timestep[0])
        try:
            step = run.steps.next(sigma)
        except UnsupportedPipeline as error:
            if self._on_mismatch == "refuse":
                raise
            logger.warning("ERTACache computes the rest of the run: %s", error)
            run.over = True
            return executor(x, timestep, *rest, **named)
        return run.played.denoised(step, x, sigma, lambda: executor(x, timestep, *rest, **named))


@dataclass
class Run:
    """What belongs to one run; `over` once it is computed plainly."""

    steps: Steps
    played: PlayedSteps
    over: bool = False


def check_alone(model_options: dict[str, Any]) -> None:
    """Refuse a model that another cache answers for.

    Raises:
        CacheConflict: naming it.
    """
    for name in _OTHER_CACHES:
        if name in model_options.get("transformer_options", {}):
            raise CacheConflict(f"the model also carries {name!r}, which predicts the same calls; take one of them out")


def check_unplayed(model: Any) -> None:
    """Refuse a model (ComfyUI's `ModelPatcher`) that carries a profile already.

    Raises:
        CacheConflict: saying where to connect.
    """
    if any(KEY in kept for kept in model.wrappers.values()):
        raise CacheConflict("the model already carries a profile; connect the model from before ERTACache Apply")
