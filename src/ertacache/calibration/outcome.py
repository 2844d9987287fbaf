"""What came of a calibration: figures of the held-out prompts against fewer steps, time and cost, and their text."""

import logging
import math
from dataclasses import dataclass, replace
from typing import Any

from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.candidates import Candidate, summary
from ertacache.calibration.defaults import FEWEST_HELD_OUT
from ertacache.calibration.effort import duration
from ertacache.calibration.held_out import measure_fewer_steps
from ertacache.errors import UnsupportedPipeline
from ertacache.profile.profile import Profile

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """The chosen profile with all its figures.

    Attributes:
        missing: why fewer steps were not measured; empty where they were.
    """

    profile: Profile
    missing: str = ""


def judge(calibrator: Calibrator, best: Candidate) -> Outcome:
    """Measure fewer steps at the cost of the best candidate, and write down what all this took."""
    heldout, missing = dict(best.profile.provenance.heldout), ""
    K = best.profile.schedule.K
    try:
        heldout |= _against_fewer_steps(calibrator, best, K)
    except UnsupportedPipeline as error:
        missing = str(error)
        logger.warning("fewer steps at the same cost are not measured: %s", missing)
    measured = _measured(calibrator, best)
    facts = replace(best.profile.provenance, heldout=heldout, measured=measured)
    return Outcome(replace(best.profile, provenance=facts), missing)


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
    prompts, T = len(best.measured["error"]), calibrator.T
    uncached, cached = math.fsum(best.measured["uncached"]), math.fsum(best.measured["cached"])
    if T == 1 or not prompts:
        return cost
    step = uncached / (T - 1)
    seconds = {"uncached_seconds": (uncached + step) / prompts, "cached_seconds": (cached + step) / prompts}
    return {"speed_up": (uncached + step) / (cached + step), **seconds, **cost}


def describe(outcome: Outcome) -> str:
    """The outcome for people, one line per fact."""
    held, measured = outcome.profile.provenance.heldout, outcome.profile.provenance.measured
    lines = [f"computes {held['K']} of {outcome.profile.schedule.T} steps: {outcome.profile.schedule}"]
    if "speed_up" in measured:
        lines.append(
            f"{measured['speed_up']:.2f}x faster: denoising takes {measured['cached_seconds']:.3g} s a prompt instead "
            f"of {measured['uncached_seconds']:.3g} s"
        )
    lines.append(f"{_quality(held)} (mean and standard error of {held['prompts']} held-out prompts)")
    if outcome.missing:
        lines.append(f"fewer steps at the same cost are not measured: {outcome.missing}")
    else:
        fewer, gain = held["fewer_steps"], held["gain"]
        verdict = "better" if held["wins"] else "no better"
        lines.append(
            f"{fewer['steps']} solver steps cost the same and give {_quality(fewer)}: the plan is {verdict}, by "
            f"{gain['mean']:+.2f} ± {gain['standard_error']:.2f} dB"
        )
    if held["prompts"] < FEWEST_HELD_OUT:
        lines.append(f"{held['prompts']} held-out prompts are no measurement; hold out {FEWEST_HELD_OUT} or more")
    lines.append(
        f"the calibration cost {measured['uncached_runs']:.1f} uncached runs of one prompt, "
        f"{duration(measured['calibration_seconds'])}"
    )
    return "\n".join(lines)


def _quality(figures: dict[str, Any]) -> str:
    psnr, ssim = figures["psnr"], figures["ssim"]
    return (
        f"PSNR {psnr['mean']:.2f} ± {psnr['standard_error']:.2f} dB, SSIM {ssim['mean']:.4f} ± "
        f"{ssim['standard_error']:.4f}"
    )


def warning(profile: Profile) -> str | None:
    """What to warn of: a plan that fewer steps beat."""
    held = profile.provenance.heldout
    if held.get("wins", True):
        return None
    return (
        f"this plan loses to {held['fewer_steps']['steps']} solver steps without a cache, which cost the same, by "
        f"{-held['gain']['mean']:.2f} ± {held['gain']['standard_error']:.2f} dB; compute more steps, or use fewer steps"
    )
