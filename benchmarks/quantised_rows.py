"""What is compared on a quantised model: corrections of every computed step, and plans at T/2, one row each."""

import math
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from quantised_setting import FULL, Counts, Setting

from ertacache.calibration.calibrate import calibrate
from ertacache.calibration.candidates import Candidate
from ertacache.calibration.followed import Followed
from ertacache.calibration.held_out import measure, measure_fewer_steps
from ertacache.calibration.pipeline_run import run_pipeline
from ertacache.core.compensation import Compensation
from ertacache.core.compensation_fit import Estimator, Sharing
from ertacache.errors import CalibrationError
from ertacache.profile.profile import Profile
from ertacache.quantization.calibrate import calibrate_quantized
from ertacache.quantization.corrections import WEIGHTS, Options, candidates, options_of
from ertacache.runtime.coefficients import Coefficients
from ertacache.runtime.compensating import Compensating
from ertacache.runtime.player import Player
from ertacache.runtime.run import Controller, Run
from ertacache.runtime.run_stats import RunStats

#: Plans compute T over this many steps.
SPEEDUP = 2
_LOOPS, _SETS = 20, 5


class Made(NamedTuple):
    """A profile, None where nothing is changed, with what it is in words; `measured` where no profile is played."""

    profile: Profile | None
    words: str = ""
    measured: dict[str, list[float]] | None = None


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        make: the profile. runs: of one prompt that it takes beyond what all rows share, roughly.
        full: it is of the model in full precision.
    """

    title: str
    make: Callable[[Setting], Made]
    runs: Callable[[Counts], float]
    full: bool = False


def figures(setting: Setting, name: str) -> dict[str, Any]:
    """What a row is worth: distances to the full-precision run of each judged prompt, and what it costs.

    Raises:
        CalibrationError: a judged run diverges.
    """
    begun, row = time.process_time(), ROWS[name]
    made = row.make(setting)
    with setting.owned():
        found = made.measured or measure(setting.calibrator, made.profile, "judged")
    if not all(map(math.isfinite, found["error"])):
        raise CalibrationError(f"{made.words}: judged runs end in NaN or infinity")
    prefix = "" if setting.scheme == FULL else "teacher_"
    values = {key: [round(one, 5) for one in found[prefix + key]] for key in ("psnr", "ssim", "error")}
    corrected = made.profile is not None and made.profile.compensation is not None
    T = setting.options["call"]["num_inference_steps"]
    return {
        "row": name, "model": setting.model, "scheme": setting.scheme, "what": made.words, "T": T,
        **values, "price": price(setting, made.profile) if made.profile is not None and corrected else None,
        "seconds": round(time.process_time() - begun, 1),
    }  # fmt: skip


def _uncorrected(setting: Setting) -> Made:
    return Made(None)


def _grids(count: int) -> Callable[[Setting], Made]:
    """The same scheme with so many grids, not corrected."""

    def make(setting: Setting) -> Made:
        several = replace(setting, scheme=f"{setting.scheme}x{count}")
        return Made(None, several.scheme, several.uncorrected())

    return make


def _on_grids(count: int, make: Callable[[Setting], Made]) -> Callable[[Setting], Made]:
    """What that makes of the same scheme with so many grids."""

    def measured(setting: Setting) -> Made:
        several = replace(setting, scheme=f"{setting.scheme}x{count}")
        made = make(several)
        with several.owned():
            found = measure(several.calibrator, made.profile, "judged")
        return Made(None, f"{several.scheme}: {made.words}", found)

    return measured


def _forced(estimator: Estimator, sharing: Sharing, weights: tuple[float, ...] = ()) -> Callable[[Setting], Made]:
    """One teacher-forced correction; with weights of the step before, the one of them that chooses itself."""

    def make(setting: Setting) -> Made:
        with setting.owned():
            tried = candidates(setting.calibrator, Options(((estimator, sharing),), ("teacher-forced",), weights))[1:]
        best = min(tried[1:] if weights else tried, key=lambda one: one.deviation)
        return Made(best.profile, best.name)

    return make


def _ours(setting: Setting) -> Made:
    """What `calibrate_quantized` chooses by itself, whether or not it then installs it."""
    with setting.owned():
        _ = setting.calibrator  # the runs that all share
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it does not win, as the figures say
        found = calibrate_quantized(setting.pipe, setting.texts, **_aimed(setting))
    name = found.provenance.heldout["correction"]["name"]
    with setting.owned():  # all of them are there: what was judged is the candidate
        tried = candidates(setting.calibrator, options_of("auto", "auto", "auto", affine=True))
    best: Candidate = next(one for one in tried if one.name == name)
    return Made(best.profile if best.profile.compensation is not None else None, name)


def _aimed(setting: Setting) -> dict[str, Any]:
    """The arguments of a calibration that aims at the full-precision run."""
    judge = setting.counts.judged / sum(setting.counts)
    shared = {**setting.options, "holdout": judge, "show_progress": False, "checkpoint": setting.runs}
    return shared if setting.teacher is None else {**shared, "reference": setting.full}


def _planned(setting: Setting) -> Made:
    """A plan at T/2 aimed at the full-precision run."""
    with setting.owned():
        _ = setting.calibrator
    return _plan(setting, _aimed(setting))


def _own_plan(setting: Setting) -> Made:
    """A plan at T/2 of the quantised model, aimed at its own uncached run."""
    with setting.owned():
        folder = setting.own_runs()
    shared = {name: value for name, value in _aimed(setting).items() if name != "reference"}
    return _plan(setting, {**shared, "checkpoint": folder})


def _plan(setting: Setting, options: dict[str, Any]) -> Made:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # how far off it is, as the figures say
        profile = calibrate(setting.pipe, setting.texts, speedup=SPEEDUP, **options)
    return Made(profile, str(profile.schedule))


def _one_after_the_other(setting: Setting) -> Made:
    """That plan with our correction, which was fitted without a cache, at the steps that it computes."""
    plan, ours = _own_plan(setting).profile, _ours(setting)
    if plan is None or ours.profile is None or ours.profile.compensation is None:
        return Made(plan, "no correction")
    return Made(replace(plan, compensation=at_computed_steps(ours.profile.compensation, plan)), ours.words)


def at_computed_steps(table: Compensation, plan: Profile) -> Compensation:
    """The rows of a table at computed steps; a term for the step before only where that is computed too."""
    gain, previous, bias = table.gain.clone(), table.previous.clone(), table.bias.clone()
    for i, computed in enumerate(plan.schedule.computed):
        if not computed:
            gain[i], previous[i], bias[i] = 1.0, 0.0, 0.0
        elif i and not plan.schedule.computed[i - 1]:
            previous[i] = 0.0
    return Compensation(gain, previous, bias)


def _fewer_steps(setting: Setting) -> Made:
    with setting.owned():
        calibrator = setting.calibrator
        K = calibrator.T // SPEEDUP
        return Made(None, f"{K} steps", measure_fewer_steps(calibrator, K))


def _forced_runs(count: Counts) -> float:
    """Played on the prompts that choose and on those that judge."""
    return count.chosen + count.judged


def _ours_runs(count: Counts) -> float:
    open_ = options_of("auto", "auto", "auto", affine=True)
    return count.fitted * (1 + open_.forced + open_.loops) + count.chosen * open_.measured + count.judged


def _plan_runs(count: Counts) -> float:
    """Seven or eight closed loops, four plans that are compared, and plan, reuse and fewer steps judged."""
    return (8 * count.fitted + 5 * count.chosen + 4 * count.judged) / SPEEDUP


ROWS = {
    "quantised": Row("quantised, not corrected", _uncorrected, lambda count: 2 * sum(count)),
    "scalar-k": Row("K of all (gain)", _forced("gain", "scalar"), lambda count: count.fitted + _forced_runs(count)),
    "channel-k": Row("K per channel (gain)", _forced("gain", "channel"), _forced_runs),
    "bias": Row("bias per channel", _forced("bias", "channel"), _forced_runs),
    "ptqd": Row("PTQD, slope of all", _forced("ptqd", "scalar"), _forced_runs),
    "affine": Row("affine per channel", _forced("affine", "channel"), _forced_runs),
    "window": Row(
        "K per channel and the step before", _forced("gain", "channel", WEIGHTS),
        lambda count: len(WEIGHTS) * count.chosen + count.judged,
    ),
    "ours": Row("ours: chosen by `calibrate_quantized`", _ours, _ours_runs),
    **{f"grids-{n}": Row(f"{n} grids, not corrected", _grids(n), lambda count: 2 * count.judged) for n in (2, 4, 8)},
    "grids-4-ours": Row(
        "4 grids, ours", _on_grids(4, _ours), lambda count: sum(count) + _ours_runs(count)
    ),
    "cached": Row("ours with caching: plan aimed at full precision", _planned, _plan_runs),
    "own-plan": Row("plan of the quantised model", _own_plan, lambda count: _plan_runs(count) + count.judged / 2),
    "one-after-the-other": Row("that plan and our correction", _one_after_the_other, lambda count: count.judged / 2),
    "grids-4-cached": Row(
        "4 grids: plan aimed at full precision", _on_grids(4, _planned), lambda count: sum(count) + _plan_runs(count)
    ),
    "full-cached": Row("plan of the full-precision model", _planned, lambda c: _plan_runs(c) + sum(c), full=True),
    "full-fewer-steps": Row("full precision, T/2 steps", _fewer_steps, lambda count: count.judged / 2, full=True),
}  # fmt: skip


class _Clock(Followed):
    """Takes down this thread's processor time at the end of each step."""

    def __init__(self, inner: Controller) -> None:
        super().__init__(inner)
        self.times: list[float] = []

    def end_step(self, run: Run, x_next: torch.Tensor) -> None:
        super().end_step(run, x_next)
        self.times.append(time.thread_time())


def price(setting: Setting, profile: Profile) -> dict[str, float]:
    """What a correction takes of a step of one prompt, in processor time, and in bytes: of its file and while it runs.

    The correction is timed by itself, the least of some sets of many: it is less than steps differ from each other.
    """
    stats = RunStats()
    clock = _Clock(Player(profile, stats, keep_nan=True))
    run_pipeline(setting.pipe, setting.one, clock, setting.options["call"], decode=False)
    computed = [i for i in profile.schedule.computed_steps if i]
    step = statistics.median(clock.times[i] - clock.times[i - 1] for i in computed)
    output = torch.randn(1, *profile.provenance.latent_shape)
    coefficients, compensating, sets = Coefficients(profile), Compensating(), list[float]()
    for _ in range(_SETS):
        begun = time.thread_time()
        for _ in range(_LOOPS):
            for i in computed:
                compensating.corrected(i, coefficients, output)
        sets.append((time.thread_time() - begun) / (_LOOPS * len(computed)))
    return {
        "step_seconds": step, "seconds": min(sets), "share": min(sets) / step, "file_bytes": len(profile.to_bytes()),
        "held_bytes": stats.extra_bytes,
    }  # fmt: skip
