"""What a calibration can be asked for, and the checks that cost no run."""

import math
from typing import Any, Literal, get_args

from ertacache.core.rectify import Granularity
from ertacache.core.schedule import Schedule
from ertacache.errors import InvalidArgument, UnsupportedPipeline
from ertacache.pipelines.affine_step import is_affine
from ertacache.pipelines.block_stack import BlockStack
from ertacache.pipelines.models import denoisers_of, family_of, unwrapped
from ertacache.pipelines.solvers import check_free_grid
from ertacache.profile.profile import Activation, Site

Basis = Literal["reuse", "residual", "fitted"]
Timesteps = Literal["none", "paper", "auto"]
Aim = Literal["step", "trajectory", "auto"]


def check_budget(threshold: float | None, compute_steps: int | None, schedule: Schedule | str | None) -> None:
    if threshold is not None and (compute_steps is not None or schedule is not None):
        raise InvalidArgument("threshold excludes compute_steps and schedule; give one of them")
    if threshold is not None and not 0 < threshold < math.inf:
        raise InvalidArgument(f"threshold is {threshold}; choose a positive λ, such as 0.1")
    if isinstance(schedule, Schedule):
        if compute_steps not in (None, schedule.K):
            raise InvalidArgument(
                f"compute_steps={compute_steps}, but the schedule computes {schedule.K}; give one of them"
            )
        return
    if schedule == "uniform" and compute_steps is None:
        raise InvalidArgument("schedule='uniform' needs compute_steps=K, the number of steps to compute")
    if threshold is None and compute_steps is None:
        raise InvalidArgument("say how much to compute: threshold=λ, compute_steps=K or schedule=...")
    if compute_steps is not None and compute_steps < 2:
        raise InvalidArgument(f"compute_steps is {compute_steps}; choose 2 or more, the first and the last step")


def check_choices(
    basis: str,
    site: str | None,
    history: int | str,
    aim: str,
    timesteps: str | float,
    rectifier: str,
    activation: str,
    ridge: float,
    batch_size: int | None,
) -> None:
    _one_of("basis", basis, get_args(Basis))
    _one_of("site", site, (None, *get_args(Site)))
    _one_of("rectifier", rectifier, ("none", *get_args(Granularity)))
    _one_of("activation", activation, get_args(Activation))
    _one_of("aim", aim, get_args(Aim))
    if isinstance(timesteps, str):
        _one_of("timesteps", timesteps, get_args(Timesteps))
    elif not 0 <= timesteps <= 1:
        raise InvalidArgument(f"timesteps is {timesteps}; choose a strength from 0 (none) to 1 (the paper)")
    if history != "auto" and (not isinstance(history, int) or history < 1):
        raise InvalidArgument(f"history is {history!r}; choose a depth from 1, or 'auto'")
    if site == "hidden" and basis != "residual":
        raise InvalidArgument(f"site 'hidden' holds residuals only; use basis='residual', not {basis!r}")
    if activation == "sigmoid" and rectifier == "none":
        raise InvalidArgument("activation='sigmoid' belongs to a rectifier; choose rectifier='channel', say")
    if not 0 <= ridge < math.inf:
        raise InvalidArgument(f"ridge is {ridge}; choose 0 for plain least squares, more to shrink, such as 0.001")
    if batch_size is not None and batch_size < 1:
        raise InvalidArgument(f"batch_size is {batch_size}; choose 1 or more prompts per call, or None for all at once")


def check_pipe(pipe: Any, site: Site | None, timesteps: Timesteps | float) -> None:
    """What would otherwise show only after the first runs."""
    denoisers = denoisers_of(pipe)
    for denoiser in denoisers if site == "hidden" else ():
        BlockStack(unwrapped(denoiser), family_of(denoiser))
    if timesteps not in ("none", 0):
        check_free_grid(pipe.scheduler)
        if len(denoisers) > 1:
            raise UnsupportedPipeline(
                f"{type(pipe).__name__} has {len(denoisers)} denoisers, and its time grid decides which of them runs; "
                "calibrate with timesteps='none'"
            )


def check_aim(pipe: Any, basis: str, site: str | None, aim: str, timesteps: Timesteps | float, rectifier: str) -> None:
    """Refuse to aim at the trajectory where it cannot be done."""
    if aim != "trajectory":
        return
    if basis != "fitted" or site not in (None, "guided"):
        raise InvalidArgument("aim='trajectory' is of the fitted basis at site 'guided'; use aim='step' elsewhere")
    if timesteps not in ("none", 0):
        raise InvalidArgument("aim='trajectory' needs the solver's own grid; use timesteps='none', or aim='step'")
    if rectifier != "none":
        raise InvalidArgument("aim='trajectory' and a rectifier correct the same error twice; use rectifier='none'")
    if not is_affine(pipe.scheduler):
        raise UnsupportedPipeline(
            f"aim='trajectory' inverts a step of the solver, which cannot be done for {type(pipe.scheduler).__name__} "
            "with this configuration (it draws noise, clips, or is not known); use aim='step'"
        )


def _one_of(name: str, value: Any, known: tuple[Any, ...]) -> None:
    if value not in known:
        raise InvalidArgument(f"{name} is {value!r}; choose one of {', '.join(map(repr, known))}")
