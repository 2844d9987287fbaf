"""What came of a calibration: figures of the held-out prompts against fewer steps, time and cost."""

import logging
import math
from dataclasses import replace
from typing import Any

from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.candidates import Candidate, summary
from ertacache.calibration.held_out import measure_fewer_steps
from ertacache.errors import UnsupportedPipeline
from ertacache.profile.profile import Profile
from ertacache.profile.profile_summary import LEAST_PSNR

logger = logging.getLogger(__name__)


def judge(calibrator: Calibrator, best: Candidate) -> Profile:
    """Measure fewer steps at the cost of the best candidate, and write down what all this took."""
    heldout = dict(best.profile.provenance.heldout)
    K = best.profile.schedule.K
    try:
        heldout |= _against_fewer_steps(calibrator, best, K)
    except UnsupportedPipeline as error:
        logger.warning("fewer steps at the same cost are not measured: %s", error)
    measured = _measured(calibrator, best)
    facts = replace(best.profile.provenance, heldout=heldout, measured=measured)
    return replace(best.profile, provenance=facts)


def _against_fewer_steps(calibrator: Calibrator, best: Candidate, K: int) -> dict[str, Any]:
    if calibrator.T == K:
        raise UnsupportedPipeline(f"the plan computes all {K} steps")
    fewer = measure_fewer_steps(calibrator, K)
    gains = [ours - theirs for ours, theirs in zip(best.measured["psnr"], fewer["psnr"], strict=True)]
    gain = {name: value for name, value in summary(gains).items() if name != "std"}
    return {
        "fewer_steps": {"psnr": summary(fewer["psnr"]), "ssim": summary(fewer["ssim"]), "steps": K},
        "gain": gain,
        "wins": gain["mean"] > 0,
    }


def _measured(calibrator: Calibrator, best: Candidate) -> dict[str, float]:
    """Seconds of the denoising loop per held-out prompt. The first step, whose time is not taken, is set down as one
    of the uncached run's others: both plans compute it."""
    spent = calibrator.store.spent
    cost = {"uncached_runs": spent.runs, "calibration_seconds": spent.seconds}
    prompts, T = len(calibrator.heldout.texts), calibrator.T
    uncached, cached = math.fsum(best.measured["uncached"]), math.fsum(best.measured["cached"])
    if T == 1 or not prompts:
        return cost
    step = uncached / (T - 1)
    seconds = {"uncached_seconds": (uncached + step) / prompts, "cached_seconds": (cached + step) / prompts}
    return {"speed_up": (uncached + step) / (cached + step), **seconds, **cost}


def warning(profile: Profile) -> str | None:
    """What to warn of: a plan that fewer steps beat, or whose results are far from the uncached ones."""
    held = profile.provenance.heldout
    if not held.get("wins", True):
        # One prompt has no spread.
        spread = f" ± {held['gain']['standard_error']:.2f}" if held["prompts"] > 1 else ""
        return (
            f"this plan loses to {held['fewer_steps']['steps']} solver steps without a cache, which cost the same, by "
            f"{-held['gain']['mean']:.2f}{spread} dB; compute more steps, or use fewer steps"
        )
    reached = held["psnr"]["mean"] if "psnr" in held else LEAST_PSNR
    if reached < LEAST_PSNR:
        return (
            f"this plan's results are far from the uncached ones, PSNR {reached:.1f} dB on {held['prompts']} held-out "
            f"prompt(s) where {LEAST_PSNR:g} or more keep the picture; compute more steps"
        )
    return None
