"""What a profile from ComfyUI is tied to, and the first thing in which a run of a sampler differs from it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ertacache.errors import ProfileMismatch
from ertacache.profile.fingerprint import storable
from ertacache.profile.profile import Profile

from .samplers import check_sampler, sampler_name

#: In `provenance.versions` of every profile from here, and of no other.
HERE = "comfyui"
#: How a model is loaded, not what it is: a quantised copy of it takes its profile.
_LOADED = ("dtype", "disable_unet_model_creation", "device", "operations")


@dataclass(frozen=True)
class Identity:
    """What is compared.

    Attributes:
        model_class: of ComfyUI's model, with its module.
        model_config: its latent format, how its noise levels are meant, and the configuration of its network.
        guider: the class that combines the branches of guidance.
        sampler: its name, None for the profile's own; options: what it was set up with.
        guidance_weight: cfg; None where it is 1 and the model is called without a negative.
        embedded_guidance: of the FluxGuidance node, None without or where conditionings differ.
    """

    model_class: str
    model_config: dict[str, Any]
    guider: str
    sampler: str | None
    options: dict[str, Any]
    guidance_weight: float | None
    embedded_guidance: float | None


def identity_of(guider: Any, sampler: Any) -> Identity:
    """Of a run of a guider (ComfyUI's `CFGGuider` or one derived from it); nothing is assumed of the model's class.

    Args:
        sampler: a SAMPLER, None for the profile's own.
    """
    patcher, cfg = guider.model_patcher, float(getattr(guider, "cfg", 1.0))
    model = patcher.model
    sampling = patcher.get_model_object("model_sampling")
    unet = getattr(getattr(model, "model_config", None), "unet_config", {})
    return Identity(
        model_class=_full_name(type(model)),
        model_config={
            "latent_format": type(patcher.get_model_object("latent_format")).__name__,
            "model_sampling": [base.__name__ for base in type(sampling).__bases__],
            "unet": storable({key: value for key, value in unet.items() if key not in _LOADED}),
        },
        guider=next(kind for kind in type(guider).__mro__ if "predict_noise" in vars(kind)).__name__,
        sampler=None if sampler is None else sampler_name(sampler),
        options=storable(getattr(sampler, "extra_options", {})),
        guidance_weight=None if math.isclose(cfg, 1.0) else cfg,
        embedded_guidance=_embedded(guider.original_conds.get("positive", ())),
    )


def check_run(profile: Profile, run: Identity, sigmas: Tensor, shape: Sequence[int]) -> None:
    """Refuse a run that the profile does not suit, before its first call.

    Args:
        sigmas: [T+1] of the run. shape: of its latents, with the batch.

    Raises:
        ProfileMismatch: at the first thing that differs.
        UnsupportedPipeline, CacheConflict: for a sampler that no profile suits.
    """
    facts = profile.provenance
    check_made_here(profile)
    if run.sampler is not None:
        check_sampler(run.sampler)
        _same("sampler", facts.scheduler_config.get("sampler"), run.sampler, "choose the sampler of the calibration")
        _same("sampler options", facts.scheduler_config.get("options"), run.options, "set the sampler up as it was")
    _same("model class", facts.model_class, run.model_class, "load the model it was calibrated on")
    for key, value in run.model_config.items():
        _same(f"model {key}", facts.model_config.get(key), value, "load the model it was calibrated on")
    _same("guider", facts.call.get("guider"), run.guider, "use a CFGGuider, BasicGuider or one of the KSampler nodes")
    _same("cfg", facts.guidance_weight, run.guidance_weight, "set the cfg of the calibration (none is cfg 1)")
    _same("guidance", facts.embedded_guidance, run.embedded_guidance, "set FluxGuidance to that of the calibration")
    _same("latent channels", facts.latent_shape[0], shape[1], "use the latent of the model")
    check_grid(profile, sigmas)


def check_made_here(profile: Profile) -> None:
    """Refuse a profile from diffusers.

    Raises:
        ProfileMismatch: saying what it is for.
    """
    facts = profile.provenance
    if HERE not in facts.versions or profile.site != "guided" or profile.rectifier is not None:
        raise ProfileMismatch(
            f"the profile was calibrated outside of ComfyUI, for {facts.model_class} with {facts.scheduler_class}, "
            "whose latents, names and noise levels are others; make one here with ERTACache Calibrate"
        )


def check_grid(profile: Profile, sigmas: Tensor) -> None:
    """Refuse another time grid than the profile's.

    Raises:
        ProfileMismatch: naming the first step that differs.
    """
    wanted, given = profile.sigmas.tolist(), [float(sigma) for sigma in sigmas]
    _same("steps", len(wanted) - 1, len(given) - 1, "set steps (and denoise 1) as in the calibration")
    for step, (own, found) in enumerate(zip(wanted, given, strict=True)):
        if not math.isclose(own, found, rel_tol=1e-4, abs_tol=1e-6):
            raise ProfileMismatch(
                f"time grid: at step {step} the profile has sigma {own:.6g} and the run {found:.6g}; use the "
                "scheduler, shift and size of the calibration, or the SIGMAS of ERTACache Sampler"
            )


def _same(name: str, wanted: object, found: object, remedy: str) -> None:
    if wanted != found:
        raise ProfileMismatch(f"{name}: the profile has {wanted!r} and the run has {found!r}; {remedy}")


def _embedded(positive: Sequence[dict[str, Any]]) -> float | None:
    found = {float(entry["guidance"]) for entry in positive if entry.get("guidance") is not None}
    return found.pop() if len(found) == 1 else None


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
