"""What each scheduler needs to run on a given time grid."""

import inspect
from typing import Any

import torch
from torch import Tensor

from ertacache.errors import InvalidArgument, UnsupportedPipeline

#: What `step` takes first, in this order, whatever else it takes.
STEP_ARGUMENTS = ("model_output", "timestep", "sample")
#: Schedulers whose `sigmas` and `timesteps` may be replaced after `set_timesteps`, with timestep = 1000 σ.
_FREE_GRID = ("FlowMatchEulerDiscreteScheduler",)


def check_scheduler(scheduler: Any) -> None:
    """Refuse solvers whose steps cannot be followed from outside.

    Raises:
        UnsupportedPipeline: no `set_timesteps` or `step`, a `step` that takes other arguments than usual, or a
            solver that calls the denoiser more often than once per step.
    """
    name = type(scheduler).__name__
    if not (hasattr(scheduler, "set_timesteps") and hasattr(scheduler, "step")):
        raise UnsupportedPipeline(f"{name} has no set_timesteps and step; use a diffusers scheduler")
    taken = tuple(inspect.signature(scheduler.step).parameters)
    if taken[:3] != STEP_ARGUMENTS:
        raise UnsupportedPipeline(
            f"{name}.step takes {', '.join(taken[:3])} where {', '.join(STEP_ARGUMENTS)} are expected; use another "
            "scheduler, such as FlowMatchEulerDiscreteScheduler"
        )
    if getattr(scheduler, "order", 1) != 1:
        raise UnsupportedPipeline(
            f"{name} evaluates the denoiser {scheduler.order} times per step; use a solver of order 1 per call, "
            "such as FlowMatchEulerDiscreteScheduler"
        )


def read_grid(scheduler: Any) -> Tensor:
    """The time grid [T+1] that `set_timesteps` made, float32 on the CPU.

    A scheduler of the variance-preserving kind that works on ᾱ alone (DDIM) is read as σ = √(1 − ᾱ).

    Raises:
        UnsupportedPipeline: the scheduler keeps neither `sigmas` nor `alphas_cumprod`.
    """
    sigmas = getattr(scheduler, "sigmas", None)
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if sigmas is None and isinstance(alphas, Tensor):
        end = torch.as_tensor(getattr(scheduler, "final_alpha_cumprod", 1.0)).reshape(1)
        sigmas = (1 - torch.cat([alphas[scheduler.timesteps.long().cpu()], end.to(alphas)])).clamp_min(0).sqrt()
    if not isinstance(sigmas, Tensor):
        raise UnsupportedPipeline(
            f"{type(scheduler).__name__} keeps no sigmas; use FlowMatchEulerDiscreteScheduler or another flow solver"
        )
    return sigmas.detach().to("cpu", torch.float32).clone()


def check_free_grid(scheduler: Any) -> None:
    """Refuse to change the grid of a scheduler that would not follow it.

    Raises:
        UnsupportedPipeline: naming the schedulers that can.
    """
    if type(scheduler).__name__ not in _FREE_GRID:
        raise UnsupportedPipeline(
            f"the time grid of {type(scheduler).__name__} cannot be changed; calibrate with timesteps='none', or use "
            f"one of {', '.join(_FREE_GRID)}"
        )


def is_euler(scheduler: Any) -> bool:
    """Whether a step is x + Δσ v and nothing else."""
    return type(scheduler).__name__ == "FlowMatchEulerDiscreteScheduler" and not scheduler.config.stochastic_sampling


def write_grid(scheduler: Any, sigmas: Tensor) -> None:
    """Replace the grid in place: pipelines iterate over views of `timesteps`, which follow.

    Args:
        sigmas: [T+1], as long as the scheduler's own.

    Raises:
        InvalidArgument: another length. UnsupportedPipeline: as `check_free_grid`.
    """
    check_free_grid(scheduler)
    if sigmas.shape != scheduler.sigmas.shape:
        raise InvalidArgument(
            f"a grid of {len(sigmas) - 1} steps was given to a scheduler set to {len(scheduler.sigmas) - 1}; "
            "call the pipeline with the profile's num_inference_steps"
        )
    scheduler.sigmas.copy_(sigmas)
    scheduler.timesteps.copy_(sigmas[:-1] * scheduler.config.num_train_timesteps)
