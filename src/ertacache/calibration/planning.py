"""From a request and a budget to a plan: the search, or the choices of an expert."""

import logging
from dataclasses import replace
from typing import Any

from ertacache.calibration.assemble import fit_ahead
from ertacache.calibration.assisted import with_small
from ertacache.calibration.budget import Budget
from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.candidates import Candidate, best_of, evaluate, fitted_candidate, options_of
from ertacache.calibration.full_precision import FullPrecision
from ertacache.calibration.method import Correcting, Method
from ertacache.calibration.request import Request
from ertacache.calibration.search import Found, choose, search
from ertacache.calibration.target import fewest_steps, reaches, steps_within
from ertacache.calibration.tie import simpler_on_a_tie
from ertacache.core.schedule import Schedule
from ertacache.errors import CalibrationError, InvalidArgument, PredictorInvalid

logger = logging.getLogger(__name__)

#: Share of the steps with which a searched plan may keep what an even one keeps with all of them.
_LEANER = 0.85


def plan(calibrator: Calibrator, request: Request, budget: Budget) -> Found:
    """The best plan within a budget.

    Raises:
        InvalidArgument, CalibrationError: the budget cannot be kept.
    """
    if budget.max_seconds is not None:
        budget = Budget(compute_steps=steps_within(calibrator, budget.max_seconds))
    target = budget.target_psnr
    if target is None:
        found, steps = _planned(calibrator, request, budget), budget.steps(calibrator.T)
        if calibrator.small is not None and request.effort is not None and steps is not None:
            return with_small(calibrator, request.even(calibrator), found, steps, request.effort)
        return with_corrections(calibrator, found)
    even = request.even(calibrator)

    def uniform(K: int) -> Candidate:
        boundaries = calibrator.reference.boundaries
        schedule = Schedule.uniform(calibrator.T, K).with_steps(boundaries)
        return evaluate(calibrator, replace(even, schedule=schedule), f"uniform, K = {K}")

    K = fewest_steps(calibrator, target, uniform)
    found = _planned(calibrator, request, Budget(compute_steps=K))
    if request.effort not in (None, "fast") and (fewer := max(2, int(K * _LEANER))) < K:
        leaner = _planned(calibrator, request, Budget(compute_steps=fewer))
        found = leaner if reaches(leaner.best, target) else found
    even_plan = uniform(K)
    return keeping(with_corrections(calibrator, keeping(found, target, even_plan)), target, even_plan)


def keeping(found: Found, target: float, even: Candidate) -> Found:
    """What was found, where the best of it keeps a PSNR, in dB; else the best that was measured and does.

    A plan may be nearer in the mean log error by which plans are compared, and spread more in dB.

    Args:
        even: keeps it.
    """
    if reaches(found.best, target):
        return found
    keep = [candidate for candidate in found.measured if reaches(candidate, target)]
    if not keep:
        return Found(even, (even, *found.measured))
    return Found(best_of(keep), found.measured)


def with_corrections(calibrator: Calibrator, found: Found) -> Found:
    """The plan with its computed steps corrected too, where it aims at the full-precision run of a quantised model and
    the prompts that choose say that it is better."""
    best = found.best
    if not corrects(calibrator, best.method):
        return found
    method = replace(best.method, correcting=Correcting())
    try:
        corrected = evaluate(calibrator, method, f"{best.name}, computed steps corrected".removeprefix(", "))
    except (PredictorInvalid, CalibrationError) as error:
        logger.info("computed steps are not corrected: %s", error)
        return found
    chosen = (best, corrected)[simpler_on_a_tie([best.errors, corrected.errors])]
    return Found(chosen, (*found.measured, corrected))


def corrects(calibrator: Calibrator, method: Method) -> bool:
    """Whether corrections of computed steps are tried beside a plan."""
    aimed = method.site == "guided" and method.aim == "trajectory" and method.grid is None
    return aimed and isinstance(calibrator.teacher, FullPrecision) and bool(calibrator.parts.chosen.texts)


def _planned(calibrator: Calibrator, request: Request, budget: Budget) -> Found:
    K = budget.steps(calibrator.T)
    if request.effort is not None:
        if K is None:
            raise InvalidArgument("say how much to compute: speedup=2.0 or compute_steps=K")
        return search(calibrator, request.even(calibrator), K, request.effort)
    options = _options(calibrator, request, budget, K)
    fit_ahead(calibrator, options)
    fitted = [fitted_candidate(calibrator, option, _name(option)) for option in options]
    return choose(calibrator, fitted, len(fitted))


def _options(calibrator: Calibrator, request: Request, budget: Budget, K: int | None) -> list[Method]:
    if request.method is None:
        return options_of(calibrator, request.choices, budget, request.ridge)
    if request.method.schedule is not None:
        return [request.method]
    if K is None:
        raise InvalidArgument("the method has no schedule: give one, or compute_steps=K")
    boundaries = calibrator.reference.boundaries
    return [replace(request.method, schedule=Schedule.uniform(calibrator.T, K).with_steps(boundaries))]


def _name(method: Method) -> str:
    """What tells an option from the others."""
    words: list[Any] = [method.basis]
    words += [f"history {method.levels}{' of both branches' * method.branches}, aim {method.aim}"] * method.fitted
    words += [f"timesteps {method.strength:g}"] * (method.strength > 0)
    return ", ".join(words)
