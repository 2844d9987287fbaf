"""The profile that a calibration in ComfyUI leaves, in the format of every other."""

from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from statistics import fmean, pstdev
from typing import Any

from torch import Tensor

import ertacache
from ertacache.profile.fingerprint import text_hash
from ertacache.profile.profile import Profile, Provenance

from .calibrating import Found, Request
from .identity import HERE, Identity

CALL = "model"


def profile_of(
    found: Found, request: Request, run: Identity, base: Tensor, shape: Sequence[int], seed: int, comfyui: str
) -> Profile:
    """Put the fitted plan together with what it is tied to.

    Args:
        base: [T+1] of the sampler. shape: of one latent, with the batch. seed: the first.
        comfyui: its version.
    """
    facts = Provenance(
        model_class=run.model_class,
        scheduler_class="comfy.samplers.KSAMPLER",
        scheduler_config={"sampler": run.sampler, "options": run.options},
        num_inference_steps=found.schedule.T,
        contexts=(CALL,),
        guidance_weight=run.guidance_weight,
        embedded_guidance=run.embedded_guidance,
        call={"guider": run.guider},
        latent_shape=tuple(shape[1:]),
        channel_axis=1,
        dtype="float32",
        prompt_count=request.seeds - request.holdout,
        prompt_hash=text_hash([str(seed + n) for n in range(request.seeds)]),
        holdout_count=request.holdout,
        seed=seed,
        method={**asdict(request), "schedule": str(found.schedule), "chosen": request.schedule, "basis": "fitted",
                "site": "guided"},
        versions={"ertacache": ertacache.__version__, "torch": version("torch"), HERE: comfyui},
        heldout={"latent_error": _spread(found.errors),
                 "fewer_steps": {"steps": found.schedule.K, "latent_error": _spread(found.fewer_steps)},
                 "wins": fmean(found.errors) < fmean(found.fewer_steps)},
        measured={"model_calls": found.calls},
        model_config=run.model_config,
    )  # fmt: skip
    base = base.detach().cpu().float()
    return Profile(found.schedule, "guided", found.predictor, base, found.sigmas.clone(), None, facts)


def report(profile: Profile) -> str:
    """The profile in lines for people, with what was measured on the seeds that were not fitted."""
    text, held = profile.summary(), profile.provenance.heldout
    plan, fewer = _mean(held), _mean(held.get("fewer_steps"))
    if plan is None or fewer is None:
        return text
    words = (
        f"in latents: {plan:.3%} off the uncached run on {profile.provenance.holdout_count} held-out seeds, "
        f"{profile.schedule.K} plain steps {fewer:.3%}"
    )
    if plan >= fewer:
        words += "\nwarning: loses to fewer steps: run fewer steps, or calibrate with more seeds"
    return text.replace("quality: not measured", words)  # no pictures are made here, and latents have their own line


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {"mean": fmean(values), "std": pstdev(values), "values": list(values)}


def _mean(table: object) -> float | None:
    """Of the latent's error; a file may hold anything there."""
    found: Any = table.get("latent_error") if isinstance(table, dict) else None
    value = found.get("mean") if isinstance(found, dict) else None
    return float(value) if isinstance(value, int | float) else None
