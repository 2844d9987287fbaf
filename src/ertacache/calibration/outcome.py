"""What came of a calibration: figures of the judged prompts against reuse and fewer steps, time and cost."""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ertacache.calibration.assemble import assemble, fit
from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.candidates import Candidate, distance, heldout_figures
from ertacache.calibration.errors_by_step import errors_by_step
from ertacache.calibration.full_precision import FullPrecision
from ertacache.calibration.held_out import measure, measure_fewer_steps
from ertacache.calibration.method import Method
from ertacache.core.schedule import Schedule
from ertacache.errors import CalibrationError, UnsupportedPipeline
from ertacache.metrics import figures, paired_gain
from ertacache.profile.profile import Profile, Site
from ertacache.profile.profile_summary import LEAST_CONFIDENCE, LEAST_PSNR, whose_runs

logger = logging.getLogger(__name__)


def judge(calibrator: Calibrator, best: Candidate, tried: Sequence[Candidate] = ()) -> Profile:
    """The profile of the chosen candidate with what the judged prompts say of it, and what all this took.

    Args:
        tried: all candidates that were compared, the chosen one among them.

    Raises:
        CalibrationError: its runs of the judged prompts end in NaN or infinity.
    """
    heldout, measured = judged_figures(calibrator, best.profile)
    heldout |= _reuse(calibrator, _whole_steps(best.profile))
    if calibrator.parts.chosen.texts and tried:
        rows = [candidate_row(candidate, candidate is best) for candidate in tried]
        heldout["chosen_on"] = {"prompts": len(calibrator.parts.chosen.texts), "candidates": rows}
    if isinstance(calibrator.teacher, FullPrecision):
        heldout["by_step"] = errors_by_step(calibrator, best.profile)
    times = times_of(calibrator, measured)
    facts = replace(best.profile.provenance, heldout=heldout, measured=times)
    return replace(best.profile, provenance=facts)


def judged_figures(calibrator: Calibrator, profile: Profile) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """What the judged prompts say of a profile, beside fewer steps; and the values of each, see `held_out.measure`.

    Raises:
        CalibrationError: their runs end in NaN or infinity.
    """
    measured = measure(calibrator, profile, "judged")
    if not all(map(math.isfinite, measured["error"])):
        raise CalibrationError(
            f"judged runs end in NaN or infinity with schedule {profile.schedule}; compute more steps, or run the "
            "pipeline in a wider dtype"
        )
    found = heldout_figures(profile, measured)
    if (teacher := calibrator.teacher) is not None:
        uncached = measure(calibrator, None, "judged")
        found["teacher"] |= {**teacher.words, "uncached": distance(uncached, "teacher_")}
    try:
        found |= _against_fewer_steps(calibrator, measured, _whole_steps(profile))
    except UnsupportedPipeline as error:
        logger.warning("fewer steps at the same cost are not measured: %s", error)
    return found, measured


def candidate_row(candidate: Candidate, chosen: bool) -> dict[str, Any]:
    """A candidate by what the prompts say that chose."""
    found = candidate.profile.provenance.heldout
    psnr = {name: found["psnr"][name] for name in ("mean", "standard_error")} if "psnr" in found else None
    return {
        "name": candidate.name,
        "K": candidate.profile.schedule.K,
        **({"counted_steps": found["counted_steps"]} if "counted_steps" in found else {}),
        "psnr": psnr,
        "latent_log10_error": found.get("latent_log10_error"),
        **({"teacher": found["teacher"]} if "teacher" in found else {}),
        "chosen": chosen,
    }


def _against_fewer_steps(calibrator: Calibrator, measured: dict[str, list[float]], K: int) -> dict[str, Any]:
    if calibrator.T == K:
        raise UnsupportedPipeline(f"the plan computes all {K} steps")
    fewer = measure_fewer_steps(calibrator, K)
    aim = "psnr" if calibrator.teacher is None else "teacher_psnr"
    return {"fewer_steps": {**_pictures(fewer), "steps": K}, **paired_gain(measured[aim], fewer[aim])}


def _whole_steps(profile: Profile) -> int:
    """The computed steps that cost as much as a profile with its small model, or a little less."""
    return max(2, math.floor(profile.counted_steps + 1e-9))


def _pictures(measured: dict[str, list[float]]) -> dict[str, Any]:
    """PSNR and SSIM against the uncached runs, and against those of a finer teacher."""
    found: dict[str, Any] = {name: figures(measured[name]) for name in ("psnr", "ssim")}
    if "teacher_psnr" in measured:
        found["teacher"] = {name: figures(measured[f"teacher_{name}"]) for name in ("psnr", "ssim")}
    return found


def _reuse(calibrator: Calibrator, K: int) -> dict[str, Any]:
    """Residual reuse (Eq. 5-6) on evenly spaced steps at the same cost."""
    boundaries = calibrator.reference.boundaries
    even = Schedule.uniform(calibrator.T, max(2, K - len(boundaries))).with_steps(boundaries)

    def measured_at(site: Site) -> dict[str, list[float]]:
        method = Method("residual", site, even, levels=0)
        return measure(calibrator, assemble(calibrator, method, fit(calibrator, method), heldout={}), "judged")

    try:
        measured = measured_at("guided")
    except UnsupportedPipeline:  # one that does more with what the denoiser returns than to give it to its solver
        measured = measured_at("output")
    if not all(map(math.isfinite, measured["error"])):
        return {}
    return {"reuse": _pictures(measured)}


def times_of(calibrator: Calibrator, measured: dict[str, list[float]]) -> dict[str, float]:
    """Seconds of the denoising loop per judged prompt. The first step, whose time is not taken, is set down as one of
    the uncached run's others: both plans compute it."""
    spent = calibrator.store.spent
    cost = {"uncached_runs": spent.runs, "calibration_seconds": spent.seconds}
    prompts, T = len(measured["error"]), calibrator.T
    uncached, cached = math.fsum(measured["uncached"]), math.fsum(measured["cached"])
    if T == 1 or not prompts:
        return cost
    step = uncached / (T - 1)
    seconds = {"uncached_seconds": (uncached + step) / prompts, "cached_seconds": (cached + step) / prompts}
    return {"speed_up": (uncached + step) / (cached + step), **seconds, **cost}


def warning(profile: Profile) -> str | None:
    """What to warn of: a plan that fewer steps beat, or may beat, or whose results are far from the uncached ones."""
    held = profile.provenance.heldout
    aimed, whose = (held["teacher"], whose_runs(held["teacher"])) if "teacher" in held else (held, "uncached")
    if not held.get("wins", True):
        # One prompt has no spread.
        spread = f" ± {held['gain']['standard_error']:.2f}" if held["prompts"] > 1 else ""
        return (
            f"this plan loses to {held['fewer_steps']['steps']} solver steps without a cache, which cost the same, by "
            f"{-held['gain']['mean']:.2f}{spread} dB; compute more steps, or use fewer steps"
        )
    reached = aimed["psnr"]["mean"] if "psnr" in aimed else LEAST_PSNR
    if reached is not None and reached < LEAST_PSNR:
        return (
            f"this plan's results are far from the {whose} ones, PSNR {reached:.1f} dB on {held['prompts']} judged "
            f"prompt(s) where {LEAST_PSNR:g} or more keep the picture; compute more steps"
        )
    if held.get("confidence", 1.0) < LEAST_CONFIDENCE:
        return (
            f"{held['prompts']} judged prompts cannot tell whether this plan beats {held['fewer_steps']['steps']} "
            f"solver steps without a cache (confidence {held['confidence']:.2f}); calibrate with more prompts"
        )
    return None
