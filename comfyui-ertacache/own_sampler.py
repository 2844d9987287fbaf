"""The sampler of a profile: Euler on the profile's time grid, its predicted steps without a model call."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from torch import Tensor

from ertacache.errors import ProfileMismatch, UnsupportedPipeline
from ertacache.profile.profile import Profile

from .identity import check_made_here, check_run, identity_of
from .played_steps import PlayedSteps
from .playing import check_alone
from .samplers import EULER


def sampler_function(profile: Profile) -> Callable[..., Tensor]:
    """What a KSAMPLER of ComfyUI takes as its function.

    Raises:
        ProfileMismatch: a profile from elsewhere, or one that was fitted to another solver's steps.
    """
    check_made_here(profile)
    fitted = profile.provenance.scheduler_config.get("sampler")
    if fitted != EULER:
        raise ProfileMismatch(
            f"sampler: the profile was fitted to {fitted!r}, and its own sampler steps with {EULER!r}; use ERTACache "
            f"Apply and {fitted!r}"
        )

    def sample_ertacache(
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], object] | None = None,
        disable: bool | None = None,
    ) -> Tensor:
        """One run: `model(x, sigma, **extra_args)` gives the denoised latent [B, *]."""
        given = extra_args or {}
        _check(profile, model.inner_model, sigmas, x, given)
        played, ones = PlayedSteps(profile), x.new_ones([len(x)])
        for i, (sigma, following) in enumerate(pairwise(sigmas)):
            level = float(sigma)
            denoised = played.denoised(i, x, level, lambda x=x, sigma=sigma: model(x, sigma * ones, **given))
            if callback is not None:
                callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
            x = x + (x - denoised) / sigma * (following - sigma)
        played.end()
        return x

    return sample_ertacache


def _check(profile: Profile, guider: Any, sigmas: Tensor, x: Tensor, given: dict[str, Any]) -> None:
    check_alone(guider.model_options)
    if given.get("denoise_mask") is not None:
        raise UnsupportedPipeline(
            "the latent has a noise mask, which is put in place at model calls only; use ERTACache Apply and euler"
        )
    check_run(profile, identity_of(guider, None), sigmas, x.shape)
