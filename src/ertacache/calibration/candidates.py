"""Methods that are compared by prompts that they were not fitted to: what is open, and how one is measured."""

import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ertacache.calibration.assemble import assemble, fit, fit_ahead
from ertacache.calibration.budget import Budget
from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.defaults import Aim, Choices, Timesteps
from ertacache.calibration.held_out import measure
from ertacache.calibration.kept import loop_name
from ertacache.calibration.method import Method
from ertacache.calibration.solved import Solved
from ertacache.calibration.tie import simpler_on_a_tie, unrefuted
from ertacache.core.schedule import Schedule
from ertacache.errors import InvalidArgument, PredictorInvalid
from ertacache.metrics import figures
from ertacache.pipelines.affine_step import is_affine
from ertacache.profile.profile import Profile

logger = logging.getLogger(__name__)

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
    """One method with its profile and what the prompts that choose say of it.

    Attributes:
        measured: values of each prompt that chooses, see `held_out.measure`.
        fitted: `log10_error` of each fitted prompt at the end of its closed loop.
        name: by which reports speak of it.
    """

    method: Method
    profile: Profile
    measured: dict[str, list[float]]
    fitted: list[float] = field(default_factory=list[float])
    name: str = ""

    @property
    def errors(self) -> list[float]:
        """log10 of the relative squared deviation of each prompt's final latent from the one that the plan aims at;
        infinite where the run diverged."""
        return self.measured.get("teacher_error", self.measured["error"])

    @property
    def psnr(self) -> list[float]:
        """In dB against the run that the plan aims at; none of prompts in one batch with a diverged one."""
        return self.measured.get("teacher_psnr", self.measured["psnr"])

    @property
    def deviation(self) -> float:
        """Their mean: lower is better."""
        return statistics.fmean(self.errors)

    @property
    def evidence(self) -> list[float]:
        """The same of all prompts that may choose. Few that were not fitted to can tell no plans apart; the fitted ones
        flatter every plan, and some more than others, so that they cannot overrule the others, see `best_of`."""
        return [*self.errors, *self.fitted]


def options_of(calibrator: Calibrator, choices: Choices, budget: Budget, ridge: float) -> list[Method]:
    """Every method that these choices leave open, with its schedule; one where nothing is left to "auto"."""
    schedule, threshold = _schedule(calibrator, method_of(choices, ridge), choices.schedule, budget)
    options = open_methods(choices, ridge, two=len(calibrator.reference.branches) > 1)
    return [replace(option, schedule=schedule, threshold=threshold) for option in options]


def method_of(choices: Choices, ridge: float) -> Method:
    """The method of these choices, its schedule open, and whatever is left to "auto" at its default."""
    fitted = choices.basis == "fitted"
    return Method(
        basis=choices.basis,
        site=choices.site,
        levels=choices.history if fitted and isinstance(choices.history, int) else 0,
        ridge=ridge if fitted else 0.0,
        rectifier=None if choices.rectifier == "none" else choices.rectifier,
        rectifier_ridge=ELEMENT_RIDGE if choices.rectifier == "element" else 0.0,
        activation=choices.activation,
    )


def open_methods(choices: Choices, ridge: float, *, two: bool) -> list[Method]:
    """Every method that these choices leave open, the schedule of each open too.

    Args:
        two: there are two branches to fit to.
    """
    options = _fit_options(method_of(choices, ridge), choices.history, choices.aim, two=two, affine=True)
    grids = [(option, strength) for option in options for strength in strengths_of(choices.timesteps)]
    # The uncached trajectory is known at the solver's own sigmas only.
    return [replace(o, strength=strength) for o, strength in grids if strength == 0 or o.aim == "step"]


def strengths_of(timesteps: Timesteps | float) -> tuple[float, ...]:
    """The strengths of the timestep adjustment that a choice stands for."""
    if timesteps == "auto":
        return STRENGTHS
    return (float({"none": 0, "paper": 1}[timesteps] if isinstance(timesteps, str) else timesteps),)


def _schedule(
    calibrator: Calibrator, method: Method, schedule: Schedule | str, budget: Budget
) -> tuple[Schedule, float | None]:
    """What is asked for: given, uniform, by threshold or nearest to a number of steps; and the threshold, if any."""
    boundaries = calibrator.reference.boundaries
    if isinstance(schedule, Schedule):
        if needed := [step for step in boundaries if step < schedule.T and not schedule.computed[step]]:
            raise InvalidArgument(
                f"schedule '{schedule}' predicts steps {needed}, where another denoiser takes over, which has no "
                "history yet; compute them"
            )
        return schedule, None
    plan, threshold = method.policy(), budget.threshold
    if threshold is not None:
        return calibrator.policy(replace(plan, threshold=threshold)), threshold
    K = budget.steps(calibrator.T)
    if K is None:
        raise InvalidArgument("say how much to compute: compute_steps=K, or speedup=2.0")
    if schedule == "uniform":
        return Schedule.uniform(calibrator.T, K).with_steps(boundaries), None
    found, chosen = calibrator.nearest_policy(plan, K)
    return chosen, found


def fit_options(
    calibrator: Calibrator,
    method: Method,
    history: int | Literal["auto"] | None = "auto",
    aim: Aim | None = "auto",
) -> list[Method]:
    """The histories and aims that a fitted method can be measured with; the method itself where nothing is open."""
    two, affine = len(calibrator.reference.branches) > 1, is_affine(calibrator.pipe.scheduler)
    return _fit_options(method, history, aim, two=two, affine=affine)


def _fit_options(
    method: Method, history: int | Literal["auto"] | None, aim: Aim | None, *, two: bool, affine: bool
) -> list[Method]:
    if method.basis != "fitted":
        return [method]
    options = [method]
    if history == "auto":
        both_too = two and method.site == "guided"
        options = [replace(method, levels=n, branches=both) for n, both in HISTORIES if both_too or not both]
    if aim is not None and aim != "auto":
        return [replace(option, aim=aim) for option in options]
    plain = affine and method.site == "guided" and method.strength == 0 and method.rectifier is None
    aims: tuple[Literal["step", "trajectory"], ...] = ("step", "trajectory") if plain else ("step",)
    return [replace(option, aim=one) for option in options for one in aims]


def evaluate(calibrator: Calibrator, method: Method, name: str = "") -> Candidate:
    """Fit one method along the closed loop and measure it on the prompts that choose; no run is done twice."""
    return compared(calibrator, fitted_candidate(calibrator, method, name))


def fitted_candidate(
    calibrator: Calibrator, method: Method, name: str = "", after: Method | None = None, *, keep: bool = False
) -> Candidate:
    """Fit one method along the closed loop; its deviations are those of the fitted prompts, without pictures.

    Args:
        after, keep: see `Calibrator.solve`.
    """
    return as_candidate(calibrator, method, fit(calibrator, method, after, keep=keep), name)


def as_candidate(calibrator: Calibrator, method: Method, solved: Solved, name: str = "") -> Candidate:
    """What was solved, with the deviations of the fitted prompts."""
    draft = assemble(calibrator, method, solved, heldout={})
    unmeasured: dict[str, list[float]] = {"error": solved.errors or [0.0], "psnr": [], "ssim": []}
    return Candidate(method, draft, unmeasured, name=name)


def fitted_candidates(calibrator: Calibrator, methods: Mapping[str, Method], *, keep: bool = False) -> list[Candidate]:
    """`fitted_candidate` of each method by its name, but for those with coefficients that no profile can hold.

    Args:
        keep: leave the outputs of the best.

    Raises:
        PredictorInvalid: that is all of them.
    """
    found, refused = list[Candidate](), list[PredictorInvalid]()
    fit_ahead(calibrator, methods.values(), keep=keep)
    for name, method in methods.items():
        try:
            found.append(fitted_candidate(calibrator, method, name, keep=keep))
        except PredictorInvalid as error:
            logger.info("%s is left out: %s", name, error)
            refused.append(error)
            calibrator.kept.discard(loop_name(method))
        best = min(found, key=lambda candidate: candidate.deviation, default=None)
        for one in found if keep else ():
            if one is not best:
                calibrator.kept.discard(loop_name(one.method))
    if not found:
        raise refused[0]
    return found


def compared(calibrator: Calibrator, candidate: Candidate) -> Candidate:
    """The candidate with what the prompts that choose say of it, where there are some."""
    if not calibrator.parts.chosen.texts:
        return candidate
    measured = measure(calibrator, candidate.profile, "chosen")
    facts = replace(candidate.profile.provenance, heldout=heldout_figures(candidate.profile, measured))
    profile = replace(candidate.profile, provenance=facts)
    return replace(candidate, profile=profile, measured=measured, fitted=candidate.errors)


def best_of(candidates: Sequence[Candidate]) -> Candidate:
    """The simplest of those as good as the best by all evidence, but for those that unseen prompts speak against.

    Args:
        candidates: measured, the simplest first.
    """
    taking = [candidates[n] for n in unrefuted([candidate.errors for candidate in candidates])]
    return taking[simpler_on_a_tie([candidate.evidence for candidate in taking])]


def heldout_figures(profile: Profile, measured: dict[str, list[float]]) -> dict[str, Any]:
    """What a profile says of prompts that it was measured on, see `held_out.measure`."""
    found = {**distance(measured), "prompts": len(measured["error"]), "K": profile.schedule.K}
    found |= {"counted_steps": profile.counted_steps} if profile.small_steps else {}
    return {**found, "teacher": distance(measured, "teacher_")} if "teacher_error" in measured else found


def distance(measured: dict[str, list[float]], prefix: str = "") -> dict[str, Any]:
    """The figures of what was measured against one kind of run, see `held_out.measure`."""
    error = statistics.fmean(measured[f"{prefix}error"])
    return {
        **{name: figures(measured[prefix + name]) for name in ("psnr", "ssim") if measured[prefix + name]},
        "latent_log10_error": max(error, _LEAST_ERROR) if math.isfinite(error) else None,
    }
