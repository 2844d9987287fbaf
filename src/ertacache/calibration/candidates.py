"""Methods that are compared by what the held-out prompts say of them: what is open, and how one is measured."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.choices import Budget
from ertacache.calibration.defaults import Aim, Choices, Timesteps
from ertacache.calibration.held_out import measure
from ertacache.calibration.method import Method, assemble, fit_plans, policy_plan
from ertacache.core.schedule import Schedule
from ertacache.errors import InvalidArgument
from ertacache.pipelines.affine_step import is_affine
from ertacache.profile.profile import Profile

#: Strengths of the timestep adjustment that `timesteps="auto"` measures; 0 is none, 1 the paper.
STRENGTHS = (0.0, 0.1, 0.3, 1.0)
#: Histories that `history="auto"` measures: (levels, both branches).
HISTORIES = ((1, False), (2, False), (3, False), (4, False), (1, True), (3, True))
#: Shrinkage of an element-wise rectifier: a latent element has only as many samples as there are prompts.
ELEMENT_RIDGE = 1.0
#: Smallest log10 error that is written down; two equal latents have none.
_LEAST_ERROR = -99.0


@dataclass(frozen=True)
class Candidate:
    """One method with its profile and what the held-out prompts say of it.

    Attributes:
        deviation: mean over prompts of log10 of the relative squared deviation of the final latent; lower is better,
            infinite where the run diverged.
        measured: the values behind it, see `held_out.measure`.
    """

    method: Method
    profile: Profile
    deviation: float
    measured: dict[str, list[float]]


def options_of(calibrator: Calibrator, choices: Choices, budget: Budget, ridge: float) -> list[Method]:
    """Every method that these choices leave open, with its schedule; one where nothing is left to "auto"."""
    fitted = choices.basis == "fitted"
    method = Method(
        basis=choices.basis,
        site=choices.site,
        levels=choices.history if fitted and isinstance(choices.history, int) else 0,
        ridge=ridge if fitted else 0.0,
        rectifier=None if choices.rectifier == "none" else choices.rectifier,
        rectifier_ridge=ELEMENT_RIDGE if choices.rectifier == "element" else 0.0,
        activation=choices.activation,
    )
    method = _scheduled(calibrator, method, choices.schedule, budget)
    options = fit_options(calibrator, method, choices.history, choices.aim)
    grids = [(option, strength) for option in options for strength in strengths_of(choices.timesteps)]
    # The uncached trajectory is known at the solver's own sigmas only.
    return [replace(o, strength=strength) for o, strength in grids if strength == 0 or o.aim == "step"]


def strengths_of(timesteps: Timesteps | float) -> tuple[float, ...]:
    """The strengths of the timestep adjustment that a choice stands for."""
    if timesteps == "auto":
        return STRENGTHS
    return (float({"none": 0, "paper": 1}[timesteps] if isinstance(timesteps, str) else timesteps),)


def _scheduled(calibrator: Calibrator, method: Method, schedule: Schedule | str, budget: Budget) -> Method:
    """The method with its schedule: given, uniform, by threshold or nearest to a number of steps."""
    boundaries = calibrator.reference.boundaries
    if isinstance(schedule, Schedule):
        if needed := [step for step in boundaries if step < schedule.T and not schedule.computed[step]]:
            raise InvalidArgument(
                f"schedule '{schedule}' predicts steps {needed}, where another denoiser takes over, which has no "
                "history yet; compute them"
            )
        return replace(method, schedule=schedule)
    plan, threshold = policy_plan(method, calibrator.family.channel_axis), budget.threshold
    if threshold is not None:
        chosen = calibrator.policy(replace(plan, threshold=threshold))
        return replace(method, schedule=chosen, threshold=threshold)
    K = budget.compute_steps
    if K is None or K > calibrator.T:
        raise InvalidArgument(f"compute_steps is {K}; choose 2 to {calibrator.T} of {calibrator.T} steps")
    if schedule == "uniform":
        return replace(method, schedule=Schedule.uniform(calibrator.T, K).with_steps(boundaries))
    found, chosen = calibrator.nearest_policy(plan, K)
    return replace(method, schedule=chosen, threshold=found)


def fit_options(
    calibrator: Calibrator,
    method: Method,
    history: int | Literal["auto"] | None = "auto",
    aim: Aim | None = "auto",
) -> list[Method]:
    """The histories and aims that a fitted method can be measured with; the method itself where nothing is open."""
    if method.basis != "fitted":
        return [method]
    options = [method]
    if history == "auto":
        two = len(calibrator.reference.branches) > 1 and method.site == "guided"
        options = [replace(method, levels=n, branches=both) for n, both in HISTORIES if two or not both]
    if aim != "auto":
        return [replace(option, aim=aim) for option in options]
    plain = method.site == "guided" and method.strength == 0 and method.rectifier is None
    # Over several batches it takes one pass for every predicted step: only for those who ask for it.
    both = plain and calibrator.lockstep and is_affine(calibrator.pipe.scheduler)
    aims: tuple[Literal["step", "trajectory"], ...] = ("step", "trajectory") if both else ("step",)
    return [replace(option, aim=one) for option in options for one in aims]


def evaluate(calibrator: Calibrator, method: Method) -> Candidate:
    """Fit one method along the closed loop and measure it on the held-out prompts; no run is done twice."""
    solved, grid = fit_plans(calibrator, method)
    draft = assemble(calibrator, method, solved, grid, heldout={})
    measured = measure(calibrator, draft)
    error = statistics.fmean(measured["error"])
    figures = {name: summary(measured[name]) for name in ("psnr", "ssim") if measured[name]}
    heldout: dict[str, Any] = {
        **figures,
        "prompts": len(calibrator.heldout.texts),
        "latent_log10_error": max(error, _LEAST_ERROR) if math.isfinite(error) else None,
        "K": draft.schedule.K,
    }
    profile = replace(draft, provenance=replace(draft.provenance, heldout=heldout))
    return Candidate(method, profile, error, measured)


def summary(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation and standard error of one value per prompt; one prompt has no spread: 0."""
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": std, "standard_error": std / math.sqrt(len(values))}
