"""What a calibration is asked for, filled in from the row of its method, and the checks that cost no run."""

import logging
import reprlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

from ertacache.calibration.budget import Budget
from ertacache.calibration.checks import check_number, check_whole
from ertacache.calibration.defaults import DEFAULTS, Aim, Basis, Choices, Timesteps
from ertacache.core.rectify import Granularity
from ertacache.core.schedule import Schedule
from ertacache.errors import InvalidArgument, UnsupportedPipeline
from ertacache.pipelines.affine_step import is_affine
from ertacache.pipelines.block_stack import BlockStack
from ertacache.pipelines.models import denoisers_of, family_of, unwrapped
from ertacache.pipelines.solvers import check_free_grid
from ertacache.profile.profile import Activation, Site

logger = logging.getLogger(__name__)

#: What each argument may be, where it is a word.
_WORDS: dict[str, tuple[str, ...]] = {
    "basis": get_args(Basis),
    "site": get_args(Site),
    "aim": get_args(Aim),
    "rectifier": ("none", *get_args(Granularity)),
    "activation": get_args(Activation),
}
_TRAJECTORY = "aim='trajectory'"


def resolve(pipe: Any, method: str, budget: Budget, given: Mapping[str, Any]) -> Choices:
    """The choices of a calibration: those of `settle`, as far as the pipeline can do them.

    An aim at the trajectory that nobody asked for becomes "step" where it cannot be had, with a warning in the log.

    Raises:
        InvalidArgument: as `settle`, or an aim that contradicts the other choices.
        UnsupportedPipeline: the pipeline cannot do what was asked for.
    """
    choices = settle(method, budget, given)
    _check_pipe(pipe, choices)
    return replace(choices, aim=_aim(pipe, choices, given.get("aim")))


def settle(method: str, budget: Budget, given: Mapping[str, Any]) -> Choices:
    """The choices that were given, the others from the row of the method; no pipeline is needed to check them.

    Site, history and aim follow the basis: with another basis than the row's they come from the row that has it, and
    site `hidden`, which holds residuals, brings that basis along. A threshold brings Algorithm 2's schedule.

    Args:
        given: by name of the argument, None where it was not given.

    Raises:
        InvalidArgument: a value that there is not, or two that contradict each other.
    """
    _one_of("method", method, tuple(DEFAULTS))
    given = {name: value for name, value in given.items() if value is not None}
    _check_words(given)
    row = _row(method, given)
    _check_basis(method, row.basis, given)
    choices = replace(row, **{**given, "schedule": _schedule(given.get("schedule"), row, budget)})
    if choices.activation == "sigmoid" and choices.rectifier == "none":
        raise InvalidArgument("activation='sigmoid' belongs to a rectifier, not rectifier='none'; use 'channel', say")
    return choices


def _row(method: str, given: Mapping[str, Any]) -> Choices:
    row = DEFAULTS[method]
    basis = given.get("basis", "residual" if given.get("site") == "hidden" else row.basis)
    if basis == row.basis:
        return row
    like = DEFAULTS["fitted" if basis == "fitted" else "ertacache"]
    return replace(row, basis=basis, site=like.site, history=like.history, aim=like.aim)


def _check_words(given: Mapping[str, Any]) -> None:
    for name in _WORDS.keys() & given.keys():
        _one_of(name, given[name], _WORDS[name])
    timesteps, history = given.get("timesteps", "none"), given.get("history", "auto")
    if isinstance(timesteps, str):
        _one_of("timesteps", timesteps, get_args(Timesteps))
    else:
        theirs = " (a pipeline's own argument of that name cannot be given)"
        remedy = "choose 'none', 'paper', 'auto' or a strength from 0 (none) to 1 (the paper)"
        remedy += theirs * (not isinstance(timesteps, int | float))
        check_number("timesteps", timesteps, remedy, lambda x: 0 <= x <= 1)
    if history != "auto":
        check_whole("history", history, 1, "a depth, or 'auto'")


def _check_basis(method: str, basis: Basis, given: Mapping[str, Any]) -> None:
    if given.get("site") == "hidden" and basis != "residual":
        raise InvalidArgument(f"site='hidden' holds residuals only, but basis={basis!r}; use basis='residual'")
    if basis != "fitted" and (own := [name for name in ("history", "aim") if name in given]):
        source = f"basis={basis!r}" if "basis" in given else f"basis={basis!r} of method={method!r}"
        raise InvalidArgument(
            f"{own[0]}={given[own[0]]!r} is of the fitted basis and contradicts {source}; leave it out, or use "
            "basis='fitted'"
        )


def _schedule(given: Any, row: Choices, budget: Budget) -> Schedule | str:
    if given is not None and not isinstance(given, str | Schedule):
        raise InvalidArgument(f"schedule is {reprlib.repr(given)}; give 'uniform', 'policy' or text such as '#.#.##'")
    if budget.threshold is not None and given not in (None, "policy"):
        raise InvalidArgument(
            f"threshold={budget.threshold} makes a schedule of its own, so that schedule='{given}' contradicts it; "
            "give one of them"
        )
    schedule = given or ("policy" if budget.threshold is not None else row.schedule)
    if isinstance(schedule, str) and schedule not in ("uniform", "policy"):
        schedule = Schedule.from_mask(schedule)
    if isinstance(schedule, Schedule):
        said = {name: value for name, value in budget.given.items() if (name, value) != ("compute_steps", schedule.K)}
        if said:
            words = ", ".join(f"{name}={value}" for name, value in said.items())
            raise InvalidArgument(f"{words}, but schedule='{schedule}' computes {schedule.K}; give one of them")
    elif not budget.given:
        more = "" if schedule == "uniform" else ", threshold=λ"
        raise InvalidArgument(
            f"say how much to compute: speedup=2.0, compute_steps=K{more} or a schedule such as '#.#.##'"
        )
    return schedule


def _check_pipe(pipe: Any, choices: Choices) -> None:
    """What would otherwise show only after the first runs."""
    denoisers = denoisers_of(pipe)
    for denoiser in denoisers if choices.site == "hidden" else ():
        BlockStack(unwrapped(denoiser), family_of(denoiser))
    if choices.timesteps not in ("none", 0):
        check_free_grid(pipe.scheduler)
        if len(denoisers) > 1:
            raise UnsupportedPipeline(
                f"{type(pipe).__name__} has {len(denoisers)} denoisers, and its time grid decides which of them runs; "
                "calibrate with timesteps='none'"
            )


def _aim(pipe: Any, choices: Choices, asked: Aim | None) -> Aim | None:
    """What a fit aims at: as asked for, where that can be; else the trajectory wherever it can be had."""
    if asked == "trajectory":
        if (clash := _clash(choices)) is not None:
            raise InvalidArgument(f"{clash}; use aim='step'")
        if (bar := _bar(pipe)) is not None:
            raise UnsupportedPipeline(f"{bar}; use aim='step'")
    if asked in ("trajectory", "step") or choices.aim is None:
        return choices.aim
    measured = asked == "auto" or choices.timesteps == "auto"
    # On the solver's own grid, which timesteps="auto" measures too, the trajectory is one more candidate.
    fixed = replace(choices, timesteps="none") if choices.timesteps == "auto" else choices
    reason = _clash(fixed) or _bar(pipe)
    if reason is not None:
        logger.warning("%s: each step is fitted instead, as with aim='step'", reason)
        return "step"
    return "auto" if measured else "trajectory"


def _clash(choices: Choices) -> str | None:
    """Why these choices and the aim at the trajectory exclude each other."""
    if choices.site != "guided":
        return f"{_TRAJECTORY} is of site='guided', not site={choices.site!r}"
    if choices.timesteps not in ("none", 0):
        return f"{_TRAJECTORY} needs the solver's own grid, not timesteps={choices.timesteps!r}"
    if choices.rectifier != "none":
        return f"{_TRAJECTORY} and rectifier={choices.rectifier!r} correct the same error twice"
    return None


def _bar(pipe: Any) -> str | None:
    """Why a solver cannot be aimed with."""
    if is_affine(pipe.scheduler):
        return None
    return (
        f"{_TRAJECTORY} inverts a step of the solver, which cannot be done for {type(pipe.scheduler).__name__} with "
        "this configuration (it draws noise, clips, or is not known)"
    )


def _one_of(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InvalidArgument(f"{name} is {reprlib.repr(value)}; choose one of {', '.join(map(repr, known))}")
