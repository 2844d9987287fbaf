"""`calibrate_quantized`: from a quantised pipeline, the model in full precision and prompts to corrections."""

import inspect
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.candidates import Candidate, distance, heldout_figures
from ertacache.calibration.checkpoint import owned
from ertacache.calibration.checks import check_whole
from ertacache.calibration.defaults import CHOOSE, HOLDOUT
from ertacache.calibration.effort import Work, duration, size_in_words
from ertacache.calibration.errors_by_step import errors_by_step
from ertacache.calibration.first_steps import FirstSteps, share_of
from ertacache.calibration.full_precision import FullPrecision, full_precision
from ertacache.calibration.held_out import measure
from ertacache.calibration.outcome import candidate_row, times_of
from ertacache.calibration.own_arguments import pipeline_arguments, refuse_mistaken
from ertacache.calibration.pipeline_run import check_batches, check_call
from ertacache.calibration.progress import run_progress, say
from ertacache.calibration.prompts import three_parts
from ertacache.calibration.tie import simpler_on_a_tie
from ertacache.metrics import paired_gain
from ertacache.pipelines.affine_step import is_affine
from ertacache.pipelines.inputs import Inputs, check_inputs
from ertacache.profile.profile import Profile
from ertacache.quantization.corrections import Options, candidates, options_of


def calibrate_quantized(
    pipe: Any,
    prompts: Sequence[str] | None = None,
    *,
    reference: Any,
    estimator: str = "auto",
    granularity: str = "auto",
    fit: str = "auto",
    choose: float = CHOOSE,
    holdout: float = HOLDOUT,
    seed: int = 0,
    batch_size: int | None = None,
    inputs: Sequence[Inputs] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    show_progress: bool = True,
    call: Mapping[str, Any] | None = None,
    **more: Any,
) -> Profile:
    """Calibrate corrections of a quantised pipeline that computes every step.

    At every step the profile corrects what the solver receives by a gain and a bias, o' = gain õ + bias, so that the
    run comes nearer to the one in full precision. A correction is installed only where it wins on the prompts that
    judge.

    Args:
        pipe: a pipeline with a quantised denoiser, by whatever quantiser.
        prompts: three or more; one part is fitted to, one chooses among the corrections, one judges the chosen one.
        reference: the pipeline in full precision, its denoiser, or of several denoisers a dictionary by their names.
        estimator: "bias", "gain" (TCEC's K on the quantised output), "ptqd" (gain on the exact output, with a bias),
            "ptqd-gain", "affine"; "auto" compares all but "ptqd-gain".
        granularity: "scalar", one coefficient for all, or "channel"; "auto" compares both.
        fit: "teacher-forced", on the latents of the full-precision run; along the quantised run, corrected step by
            step, "closed-loop" to the recorded outputs, or "trajectory" to what brings the latent back to the recorded
            one; "auto" compares them, the latter two for the two best teacher-forced ones, and for the best one also
            a term for what the step before got wrong (TCEC's window).
        choose, holdout, seed, batch_size, inputs, checkpoint, show_progress, call, more: as in `calibrate`.

    Returns:
        The profile. Its provenance has PSNR and SSIM to the full-precision results on the judged prompts, those without
        the correction, the gain with its standard error (`heldout["correction"]`), and how far the run is off after
        each step (`heldout["by_step"]`).

    Raises:
        InvalidArgument: arguments that do not exist or cannot work, or a reference that is none.
        CalibrationError: the checkpoint is another calibration's, or runs end in NaN or infinity.
        UnsupportedPipeline: the pipeline has no denoiser, or does more with its outputs than give them to its solver.

    Warns:
        UserWarning: no correction wins, and none is installed.
    """
    own = inspect.signature(calibrate_quantized).parameters
    check_inputs(inputs)
    refuse_mistaken(pipe, {"choose": choose, "holdout": holdout, "seed": seed, "batch_size": batch_size})
    shared = pipeline_arguments(call, more)
    check_call(pipe, shared, inputs or (), own=own, texts=prompts is not None)
    options = options_of(estimator, granularity, fit, affine=is_affine(pipe.scheduler))
    if batch_size is not None:
        check_whole("batch_size", batch_size, 1, "prompts per pipeline call, or None for all at once")
    shares, parts = three_parts(prompts, choose, holdout, seed, inputs, chosen="a correction")
    check_batches(pipe, parts, batch_size, shared)
    full = full_precision(pipe, reference)
    tell = partial(say, title="calibrate", show=show_progress)
    with owned(checkpoint):
        calibrator = Calibrator(
            pipe, prompts, batch_size=batch_size, call=shared, teacher=full, checkpoint=checkpoint, **shares
        )
        work = _announced(calibrator, options, tell)
        with run_progress(show_progress, expected=work.calls) as progress:
            calibrator.progress = progress
            calibrator.progress("first steps")
            profile = _corrected(calibrator, full, options)
    for line in profile.summary().splitlines():
        tell(line)
    return profile


def _announced(calibrator: Calibrator, options: Options, tell: Any) -> Work:
    """Say what it will take."""

    seen = calibrator.first_steps
    work = work_of_corrections(options, calibrator, seen)
    fitted, chosen, judged = (len(part.texts) for part in calibrator.parts)
    tell(
        f"{fitted} prompts to fit, {chosen} to choose and {judged} to judge on; {work.calls} pipeline calls, the work "
        f"of {work.runs:.1f} uncached runs of one prompt: about {duration(work.seconds)} and "
        f"{size_in_words(work.bytes)} on the disk"
    )
    return work


def work_of_corrections(options: Options, calibrator: Calibrator, seen: FirstSteps) -> Work:
    """At most: every part is run once quantised and once in full precision, then as often as there are corrections for
    it; and the first call of fitted prompts once more, to take down the errors of its steps."""
    each = (2 + options.forced + options.loops, 2 + options.measured, 3)
    parts = calibrator.parts
    calls = [len(part.batches(calibrator.batch_size)) for part in parts]
    prompts = [len(part.texts) for part in parts]
    first = len(calibrator.batches[0].texts)
    made = 2 + sum(count * times for count, times in zip(calls, each, strict=True))
    runs = first + share_of(seen.steps) + sum(count * times for count, times in zip(prompts, each, strict=True))
    return Work(made, runs, runs * seen.steps * seen.seconds, 2 * prompts[0] * seen.recorded)


def _corrected(calibrator: Calibrator, full: FullPrecision, options: Options) -> Profile:
    """The best correction by the prompts that choose, if it wins on those that judge."""
    tried = candidates(calibrator, options)
    best = chosen(tried)
    none = measure(calibrator, None, "judged")
    measured = none if best is tried[0] else measure(calibrator, best.profile, "judged")
    correction: dict[str, Any] = {"name": best.name, "installed": False}
    if best is not tried[0] and all(map(math.isfinite, measured["error"])):
        paired = paired_gain(measured["teacher_psnr"], none["teacher_psnr"])
        correction |= {"gain": paired["gain"], "installed": _wins(paired["gain"])}
        correction |= {"confidence": paired["confidence"]} if "confidence" in paired else {}
    profile, measured = (best.profile, measured) if correction["installed"] else (tried[0].profile, none)
    held = heldout_figures(profile, measured)
    held["teacher"] |= {**full.words, "uncached": distance(none, "teacher_")}
    held |= {
        "correction": correction,
        "chosen_on": {
            "prompts": len(calibrator.parts.chosen.texts),
            "candidates": [candidate_row(one, one is best) for one in tried],
        },
        "by_step": errors_by_step(calibrator, profile if correction["installed"] else None),
    }
    if not correction["installed"]:
        warnings.warn(_why(best, tried[0], correction, len(none["error"])), stacklevel=3)
    facts = replace(profile.provenance, heldout=held, measured=times_of(calibrator, measured))
    return replace(profile, provenance=facts)


def chosen(tried: Sequence[Candidate]) -> Candidate:
    """The simplest correction as good as the best, by the prompts that choose; none only if none of them is better.

    No correction takes no part in ties: whether a small gain is one is for the prompts that judge to say.

    Args:
        tried: from the simplest to the least simple, no correction first.
    """
    none, better = tried[0], [one for one in tried[1:] if one.deviation < tried[0].deviation]
    return better[simpler_on_a_tie([one.errors for one in better])] if better else none


def _wins(gain: Mapping[str, Any]) -> bool:
    """By more than one standard error of the mean."""
    mean, error = gain["mean"], gain["standard_error"]
    return mean is not None and error is not None and mean > error


def _why(best: Candidate, none: Candidate, correction: dict[str, Any], prompts: int) -> str:
    """Why nothing is installed."""
    if best is none:
        return "no correction is better than none on the prompts that choose, and none is installed"
    if (gain := correction.get("gain")) is None or gain["mean"] is None:
        return f"with the chosen correction ({best.name}) judged runs end in NaN or infinity; none is installed"
    return (
        f"the chosen correction ({best.name}) gains {gain['mean']:.2f} ± {gain['standard_error'] or 0:.2f} dB on "
        f"{prompts} judged prompt(s), which is no gain; none is installed: calibrate on more prompts"
    )
