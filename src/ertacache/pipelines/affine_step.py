"""Solving a solver's step for what it receives: every deterministic solver steps to c + B v, with B a number."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ertacache.core.precision import widen
from ertacache.pipelines.solvers import is_euler, solver_of, solver_step

#: Slope below which a step hardly depends on what the solver receives.
SMALLEST_SLOPE = 1e-6


def is_affine(scheduler: Any) -> bool:
    """Whether a step is affine in the model output and draws nothing, clips nothing and thresholds nothing."""
    row = solver_of(scheduler)
    return row is not None and row.affine(scheduler.config)


def aimed_output(scheduler: Any, i: int, sigmas: Tensor, x: Tensor, x_next: Tensor) -> Tensor | None:
    """The v with which step i leads from x to x_next: (x_next − c) / B. The scheduler is left as it is.

    For Euler c = x and B = Δσ. For other solvers both are probed on copies, with the state that earlier steps left:
    c is the step with v = 0, B the step with v = 1 from x = 0 and a state of zeros.

    Args:
        scheduler: one that `is_affine`, before its step i.
        sigmas: [T+1] its grid.
        x, x_next: [B, *] latents.

    Returns:
        [B, *], or None where |B| is under 1e-6.
    """
    x = widen(x)
    if is_euler(scheduler):
        return (x_next - x) / float(sigmas[i + 1] - sigmas[i])
    unit = torch.ones(1, 1, 1, dtype=x.dtype, device=x.device)
    slope = float(_step(_copy(scheduler, lambda kept: torch.zeros_like(unit)), i, unit, torch.zeros_like(unit)))
    if abs(slope) < SMALLEST_SLOPE:
        return None
    offset = _step(_copy(scheduler, lambda kept: kept), i, torch.zeros_like(x), x)
    return (x_next - offset) / slope


def step_factors(scheduler: Any, i: int, sigmas: Tensor) -> tuple[float, float]:
    """A and B of step i, x' = A x + B v and what earlier steps left, for a scheduler as in `aimed_output`."""
    if is_euler(scheduler):
        return 1.0, float(sigmas[i + 1] - sigmas[i])
    unit = torch.ones(1, 1, 1, dtype=torch.float64)
    given = ((torch.zeros_like(unit), unit), (unit, torch.zeros_like(unit)))
    scale, slope = (float(_step(_copy(scheduler, lambda kept: torch.zeros_like(unit)), i, v, x)) for v, x in given)
    return scale, slope


def _step(scheduler: Any, i: int, output: Tensor, x: Tensor) -> Tensor:
    # The class's own step: the copy may carry wrapped ones, which belong to the run.
    original = partial(type(scheduler).step, scheduler)
    return solver_step(original, scheduler, i, output, scheduler.timesteps[i], x, return_dict=False)[0]


def _copy(scheduler: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A copy that can step without a trace in the original, with the outputs and latents it keeps changed."""
    copied = copy.copy(scheduler)
    for name, value in vars(scheduler).items():
        if isinstance(value, list):
            setattr(copied, name, [change(v) if isinstance(v, Tensor) and v.ndim else v for v in value])
    if isinstance(getattr(scheduler, "last_sample", None), Tensor):
        copied.last_sample = change(scheduler.last_sample)
    return copied
