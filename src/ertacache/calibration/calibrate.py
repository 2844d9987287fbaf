"""`calibrate`: from a pipeline and a few prompts to a profile whose loss was measured on prompts it did not fit."""

import math
import os
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.choices import Aim, Basis, Timesteps, check_aim, check_budget, check_choices, check_pipe
from ertacache.calibration.method import Method, assemble, fit_plans, policy_plan
from ertacache.calibration.progress import run_progress
from ertacache.core.rectify import Granularity
from ertacache.core.schedule import Schedule
from ertacache.errors import CalibrationError, InvalidArgument
from ertacache.pipelines.affine_step import is_affine
from ertacache.pipelines.inputs import Inputs
from ertacache.profile.profile import Activation, Profile, Site

#: Strengths of the timestep adjustment that `timesteps="auto"` measures; 0 is none, 1 the paper.
STRENGTHS = (0.0, 0.1, 0.3, 1.0)
#: Histories that `history="auto"` measures: (levels, both branches).
HISTORIES = ((1, False), (2, False), (3, False), (4, False), (1, True), (3, True))
#: Shrinkage of the fitted predictor toward residual reuse, relative to the features' energy.
RIDGE = 1e-3
#: Shrinkage of an element-wise rectifier: a latent element has only as many samples as there are prompts.
ELEMENT_RIDGE = 1.0
#: Runs shorter than this have few steps to spare: each is too far from the last to be predicted well.
_FEW_STEPS = 8
#: For the estimate of what is left: runs of a threshold search, passes of a fit over several batches.
_SEARCH, _PASSES = 10, 4
#: Smallest log10 error that is written down; two equal latents have none.
_LEAST_ERROR = -99.0


@dataclass(frozen=True)
class Candidate:
    """One method with its profile and what the held-out prompts say of it.

    Attributes:
        deviation: mean over prompts of log10 of the relative squared deviation of the final latent; lower is better,
            infinite where the run diverged.
        heldout: figures for the profile's provenance.
    """

    method: Method
    profile: Profile
    deviation: float
    heldout: dict[str, Any]


def calibrate(
    pipe: Any,
    prompts: Sequence[str],
    *,
    inputs: Sequence[Inputs] | None = None,
    threshold: float | None = None,
    compute_steps: int | None = None,
    schedule: Schedule | str | None = None,
    basis: Basis = "residual",
    site: Site | None = None,
    history: int | Literal["auto"] = 3,
    aim: Aim = "auto",
    timesteps: Timesteps | float = "none",
    rectifier: Granularity | Literal["none"] = "none",
    activation: Activation = "linear",
    ridge: float = RIDGE,
    holdout: float = 0.25,
    seed: int = 0,
    batch_size: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    show_progress: bool = True,
    **call: Any,
) -> Profile:
    """Calibrate a profile on the user's pipeline, run as it is.

    Args:
        pipe: a diffusers pipeline. Where a second denoiser takes over (Wan2.2), that step is always computed.
        prompts: two or more; the last `holdout` share is never fitted and gives the figures in the profile.
        inputs: what each prompt brings along beside its text, one dictionary per prompt, as
            `[{"image": first}, {"image": second}]`. Several prompts in one call pass the pipeline a list for each
            argument; where it takes such a list for one prompt's (FLUX.2's references), use batch_size=1. The
            profile keeps the names of the arguments only.
        threshold: λ of Algorithm 2; a step is predicted while its mean relative ℓ1 error is below.
        compute_steps: K, the number of steps to compute. Without `schedule` the λ whose K is nearest is taken (K(λ)
            skips values: the profile says which K it has); with `schedule="uniform"` exactly K, and one more where a
            second denoiser takes over at another step.
        schedule: "uniform", a Schedule, or its text form such as "#.#.##".
        basis: `reuse` repeats the newest output, `residual` the newest residual v − x (Eq. 5-6), `fitted` corrects
            residual reuse by a least-squares combination of the history (formula P).
        site: where predictions are made; guided for `fitted`, else output.
        history: depth of the fitted predictor, or "auto": own history and both branches at several depths, chosen on
            the held-out prompts.
        aim: what `fitted` is fitted to: the true output of each "step", or whatever brings the latent back to the
            uncached "trajectory" (at site guided, on the own grid of a solver that draws no noise); "auto" measures
            both where it can and all prompts go through one call: in several, the trajectory takes a pass per
            predicted step.
        timesteps: strength γ of the timestep adjustment: "none" (0), "paper" (1), a number between, or "auto", which
            measures several on the held-out prompts.
        rectifier: granularity of the error rectifier (Eq. 15-21).
        activation: "sigmoid" is the paper's literal form, for reproduction only.
        ridge: shrinkage of the fitted predictor toward residual reuse.
        holdout: share of the prompts that is held out.
        seed: prompt n starts from the noise of seed + n.
        batch_size: prompts per pipeline call. All at once is exact; less needs several passes.
        checkpoint: file in which finished runs are kept; an interrupted calibration continues from it.
        call: arguments of the pipeline call, `num_inference_steps`, `guidance_scale`, `height` and so on.

    Returns:
        The profile. `profile.provenance.heldout` holds PSNR and SSIM on the held-out prompts.

    Raises:
        InvalidArgument: arguments that contradict each other or cannot work.
        CalibrationError: the checkpoint is another calibration's, or held-out runs end in NaN.
        UnsupportedPipeline: nothing can be predicted for this pipeline, not at this site or not on another grid.

    Warns:
        UserWarning: the call has fewer than 8 steps, of which caching has little to save.
    """
    schedule = _parsed(schedule)
    check_budget(threshold, compute_steps, schedule)
    check_choices(basis, site, history, aim, timesteps, rectifier, activation, ridge, batch_size)
    check_pipe(pipe, site, timesteps)
    check_aim(pipe, basis, site, aim, timesteps, rectifier)
    options = (len(HISTORIES) if history == "auto" else 1) * (len(STRENGTHS) if timesteps == "auto" else 1)
    searches = 0 if schedule is not None else 1 if threshold is not None else _SEARCH
    expected = _expected_runs(
        len(prompts), holdout, batch_size, options, searches, aim if basis == "fitted" else "step"
    )
    with run_progress(show_progress, expected=expected) as progress:
        calibrator = Calibrator(
            pipe, prompts, holdout=holdout, seed=seed, batch_size=batch_size, checkpoint=checkpoint, inputs=inputs,
            call=call, progress=progress,
        )  # fmt: skip
        if calibrator.T < _FEW_STEPS:
            warnings.warn(f"{calibrator.T} steps leave caching little to save; use it on longer runs", stacklevel=2)
        method = Method(
            basis=basis,
            site=site or ("guided" if basis == "fitted" else "output"),
            levels=history if basis == "fitted" and isinstance(history, int) else 0,
            ridge=ridge if basis == "fitted" else 0.0,
            rectifier=None if rectifier == "none" else rectifier,
            rectifier_ridge=ELEMENT_RIDGE if rectifier == "element" else 0.0,
            activation=activation,
        )
        method = choose_schedule(calibrator, method, threshold, compute_steps, schedule)
        candidates = [evaluate(calibrator, option) for option in _options(calibrator, method, history, aim, timesteps)]
    best = min(candidates, key=lambda candidate: candidate.deviation)
    if best.deviation == math.inf:
        raise CalibrationError(
            f"held-out runs end in NaN or infinity with schedule {best.profile.schedule}; compute more steps, or run "
            "the pipeline in a wider dtype"
        )
    return best.profile


def choose_schedule(
    calibrator: Calibrator,
    method: Method,
    threshold: float | None,
    compute_steps: int | None,
    schedule: Schedule | str | None,
) -> Method:
    """The method with its schedule filled in: given, uniform, by threshold or nearest to a number of steps."""
    plan = policy_plan(method, calibrator.family.channel_axis)
    boundaries = calibrator.reference.boundaries
    if schedule is not None and schedule != "uniform":
        given = schedule if isinstance(schedule, Schedule) else Schedule.from_mask(schedule)
        if needed := [step for step in boundaries if step < given.T and not given.computed[step]]:
            raise InvalidArgument(
                f"schedule '{given}' predicts steps {needed}, where another denoiser takes over, which has no history "
                "yet; compute them"
            )
        return replace(method, schedule=given)
    if threshold is not None:
        chosen = calibrator.policy(replace(plan, threshold=threshold))
        return replace(method, schedule=chosen, threshold=threshold)
    if compute_steps is None:
        raise InvalidArgument("no number of steps to compute; give threshold=λ, compute_steps=K or a schedule")
    if not 2 <= compute_steps <= calibrator.T:
        raise InvalidArgument(f"compute_steps is {compute_steps}; choose 2 to {calibrator.T} of {calibrator.T} steps")
    if schedule == "uniform":
        return replace(method, schedule=Schedule.uniform(calibrator.T, compute_steps).with_steps(boundaries))
    found, chosen = calibrator.nearest_policy(plan, compute_steps)
    return replace(method, schedule=chosen, threshold=found)


def evaluate(calibrator: Calibrator, method: Method) -> Candidate:
    """Fit one method along the closed loop and measure it on the held-out prompts; no run is done twice."""
    solved, grid = fit_plans(calibrator, method)
    draft = assemble(calibrator, method, solved, grid, heldout={})
    measured = calibrator.measure(draft)
    error = statistics.fmean(measured.pop("error"))
    figures = {name: _summary(values) for name, values in measured.items() if values}
    written = max(error, _LEAST_ERROR) if math.isfinite(error) else None
    heldout: dict[str, Any] = {**figures, "latent_log10_error": written, "K": draft.schedule.K}
    profile = replace(draft, provenance=replace(draft.provenance, heldout=heldout))
    return Candidate(method, profile, error, heldout)


def fit_options(
    calibrator: Calibrator, method: Method, history: int | Literal["auto"] = "auto", aim: Aim = "auto"
) -> list[Method]:
    """The histories and aims that a fitted method can be measured with; the method itself where nothing is open."""
    if method.basis != "fitted":
        return [method]
    options = [method]
    if history == "auto":
        two = len(calibrator.reference.branches) > 1 and method.site == "guided"
        options = [replace(method, levels=n, branches=both) for n, both in HISTORIES if two or not both]
    if aim == "auto":
        plain = method.site == "guided" and method.strength == 0 and method.rectifier is None
        # Over several batches it takes one pass for every predicted step: only for those who ask for it.
        both = plain and calibrator.lockstep and is_affine(calibrator.pipe.scheduler)
        aims: tuple[Literal["step", "trajectory"], ...] = ("step", "trajectory") if both else ("step",)
        return [replace(option, aim=one) for option in options for one in aims]
    return [replace(option, aim=aim) for option in options]


def _options(
    calibrator: Calibrator, method: Method, history: int | Literal["auto"], aim: Aim, timesteps: Timesteps | float
) -> list[Method]:
    options = fit_options(calibrator, method, history, aim)
    if timesteps == "auto":
        grids = [(option, strength) for option in options for strength in STRENGTHS]
        # The uncached trajectory is known at the solver's own sigmas only.
        return [replace(o, strength=strength) for o, strength in grids if strength == 0 or o.aim == "step"]
    strength = {"none": 0.0, "paper": 1.0}.get(timesteps, timesteps) if isinstance(timesteps, str) else timesteps
    return [replace(o, strength=float(strength)) for o in options if strength == 0 or o.aim == "step"]


def _summary(values: list[float]) -> dict[str, float]:
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else 0.0}


def _parsed(schedule: Schedule | str | None) -> Schedule | str | None:
    """A text form as a Schedule; "uniform" as it is, until the number of steps is known."""
    return Schedule.from_mask(schedule) if isinstance(schedule, str) and schedule != "uniform" else schedule


def _expected_runs(prompts: int, holdout: float, batch_size: int | None, options: int, searches: int, aim: Aim) -> int:
    """About how many pipeline calls a calibration takes: the uncached ones, a threshold search, fits and checks."""
    size = batch_size or prompts or 1
    fitted, held = math.ceil(prompts * (1 - holdout) / size), math.ceil(prompts * holdout / size)
    passes = 1 if fitted == 1 else _PASSES
    followed = aim == "trajectory" or (aim == "auto" and fitted == 1)
    options *= 2 if followed and aim == "auto" else 1
    return fitted * (1 + followed + passes * (options + searches)) + held * (1 + options)
