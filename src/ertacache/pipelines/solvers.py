"""What each scheduler needs to run on a given time grid, as one row of data each."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ertacache.errors import InvalidArgument, UnsupportedPipeline
from ertacache.pipelines import angle_grid

#: What `step` takes first, in this order, whatever else it takes.
STEP_ARGUMENTS = ("model_output", "timestep", "sample")

_NOISE = "it draws noise in every step"


def _euler_bars(config: Any) -> str | None:
    return _NOISE if config.get("stochastic_sampling") else None


def _flow_bars(config: Any) -> str | None:
    """UniPC and DPM-Solver: on flow sigmas only."""
    if str(config.get("algorithm_type", "")).startswith("sde"):
        return _NOISE
    if config.get("algorithm_type", "dpmsolver++") != "dpmsolver++":
        return f"its algorithm_type is {config.algorithm_type!r}, not 'dpmsolver++'"
    if not config.get("use_flow_sigmas"):
        return "it does not run on flow sigmas: set use_flow_sigmas=True where the model is a flow"
    for name in ("use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"):
        if config.get(name):
            return f"{name} takes the place of its flow sigmas"
    return "solver_p keeps a grid of its own" if config.get("solver_p") is not None else None


def _flow_is_affine(config: Any) -> bool:
    noisy = str(config.get("algorithm_type", "")).startswith("sde")
    return not noisy and not config.thresholding and config.get("solver_p") is None


def _nothing(config: Any) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Solver:
    """How to serve one scheduler class.

    Attributes:
        scheduler: its class name.
        bars: what keeps this configuration from another time grid, or None.
        affine: whether a step of this configuration is c + B v in what it receives, B a number.
        angles: whether its grid is of angles, see `angle_grid`; else of sigmas.
        whole: whether its timesteps are whole numbers.
    """

    scheduler: str
    bars: Callable[[Any], str | None]
    affine: Callable[[Any], bool]
    angles: bool = False
    whole: bool = False


SOLVERS = (
    Solver("FlowMatchEulerDiscreteScheduler", _euler_bars, lambda config: not config.stochastic_sampling),
    Solver("UniPCMultistepScheduler", _flow_bars, _flow_is_affine, whole=True),
    Solver("DPMSolverMultistepScheduler", _flow_bars, _flow_is_affine, whole=True),
    Solver("DDIMScheduler", _nothing, lambda config: not (config.clip_sample or config.thresholding), angles=True),
    Solver("CogVideoXDDIMScheduler", _nothing, lambda config: True, angles=True),
)
#: Draw noise in every step; whether others do shows only in a run.
_STOCHASTIC = (
    "CogVideoXDPMScheduler", "DDPMParallelScheduler", "DDPMScheduler", "DPMSolverSDEScheduler",
    "EulerAncestralDiscreteScheduler", "FlowMatchLCMScheduler", "KDPM2AncestralDiscreteScheduler", "LCMScheduler",
    "SASolverScheduler", "SCMScheduler", "TCDScheduler",
)  # fmt: skip


def solver_of(scheduler: Any) -> Solver | None:
    """The row of a scheduler, if there is one."""
    return next((row for row in SOLVERS if row.scheduler == type(scheduler).__name__), None)


def is_euler(scheduler: Any) -> bool:
    """Whether a step is x + Δσ v and nothing else: then errors add up to the latent's deviation as Eq. 11 says."""
    return type(scheduler).__name__ == "FlowMatchEulerDiscreteScheduler" and not scheduler.config.stochastic_sampling


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
    """The time grid [T+1] that the scheduler runs on, float32 on the CPU.

    A scheduler of the variance-preserving kind that works on ᾱ alone (DDIM) is read as the angle
    φ = atan2(√(1 − ᾱ), √ᾱ), from about π/2 down to about 0.

    Raises:
        UnsupportedPipeline: the scheduler keeps neither `sigmas` nor `alphas_cumprod`, or calls the denoiser again
            for a timestep that it was called for (PNDM).
    """
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None and isinstance(getattr(scheduler, "alphas_cumprod", None), Tensor):
        _check_visits(scheduler)
        return angle_grid.read(scheduler)
    if not isinstance(sigmas, Tensor):
        raise UnsupportedPipeline(
            f"{type(scheduler).__name__} keeps no sigmas; use FlowMatchEulerDiscreteScheduler or another flow solver"
        )
    return sigmas.detach().to("cpu", torch.float32).clone()


def _check_visits(scheduler: Any) -> None:
    again = (scheduler.timesteps.diff() == 0).nonzero()
    if len(again):
        raise UnsupportedPipeline(
            f"{type(scheduler).__name__} visits timestep {int(scheduler.timesteps[again[0]])} twice, so that its calls "
            "of the denoiser are not steps of a grid; use another scheduler, such as DDIMScheduler"
        )


def grid_refusal(scheduler: Any) -> str | None:
    """Why the grid of a scheduler cannot be changed; None where it can."""
    row = solver_of(scheduler)
    if row is not None:
        return row.bars(scheduler.config)
    if type(scheduler).__name__ in _STOCHASTIC:
        return _NOISE
    if getattr(scheduler, "order", 1) != 1:
        return f"it calls the denoiser {scheduler.order} times per step"
    return "how it follows another grid is not known"


def check_free_grid(scheduler: Any) -> None:
    """Refuse to change the grid of a scheduler that would not follow it.

    Raises:
        UnsupportedPipeline: with the reason, naming the schedulers that can.
    """
    if (reason := grid_refusal(scheduler)) is not None:
        raise UnsupportedPipeline(
            f"the time grid of {type(scheduler).__name__} cannot be changed: {reason}. Calibrate with "
            f"timesteps='none', or use one of {', '.join(row.scheduler for row in SOLVERS)}"
        )


def write_grid(scheduler: Any, grid: Tensor) -> None:
    """Replace the grid: entries that differ from the scheduler's own get the timestep that belongs to them.

    The timesteps change in place, so that the views that pipelines iterate over follow; only the first grid of a run
    that is of angles makes `timesteps` a new tensor of floats, so write it inside of `set_timesteps`.

    Args:
        grid: [T+1] of sigmas or angles, as `read_grid` gives them and as long.

    Raises:
        InvalidArgument: another length, or a first sigma or timesteps that the solver cannot start with.
        UnsupportedPipeline: as `check_free_grid`.
    """
    check_free_grid(scheduler)
    own = read_grid(scheduler)
    if grid.shape != own.shape:
        raise InvalidArgument(
            f"a grid of {len(grid) - 1} steps was given to a scheduler set to {len(own) - 1}; "
            "call the pipeline with the profile's num_inference_steps"
        )
    row = solver_of(scheduler)
    if row is not None and row.angles:
        angle_grid.write(scheduler, grid)
        return
    changed = (grid.cpu().float() != own)[:-1].to(scheduler.timesteps.device)
    timesteps = grid[:-1].to(scheduler.timesteps.device) * scheduler.config.num_train_timesteps
    timesteps = torch.where(changed, timesteps.to(scheduler.timesteps.dtype), scheduler.timesteps)
    if row is not None and row.whole:
        _check_start(scheduler, grid, timesteps)
    scheduler.sigmas.copy_(grid)
    scheduler.timesteps.copy_(timesteps)


def _check_start(scheduler: Any, grid: Tensor, timesteps: Tensor) -> None:
    """UniPC and DPM-Solver take log(1 − σ), and find their first step by its whole timestep."""
    name = type(scheduler).__name__
    if float(grid[0]) >= 1:
        raise InvalidArgument(f"sigmas[0] is {float(grid[0])}; {name} needs a grid that starts below 1")
    if len(timesteps) > 1 and int(timesteps[0]) == int(timesteps[1]):
        raise InvalidArgument(
            f"the first two steps of the grid both have timestep {int(timesteps[0])}, by which {name} finds its first "
            "step; make the first interval longer"
        )


def restore_grid(scheduler: Any, sigmas: Tensor, timesteps: Tensor) -> None:
    """Put back the grid [T+1] that `set_timesteps` made, where another one was written since.

    Args:
        timesteps: [T] those of that grid, which rounding does not always lead back to.
    """
    if not torch.equal(read_grid(scheduler), sigmas):
        write_grid(scheduler, sigmas)
        scheduler.timesteps.copy_(timesteps)


def first_index(scheduler: Any, timestep: Any) -> int:
    """Where in the grid a run starts: the scheduler's own word, else the place of the timestep."""
    begin = getattr(scheduler, "begin_index", None)
    if isinstance(begin, int):
        return begin
    return int((scheduler.timesteps == torch.as_tensor(timestep).to(scheduler.timesteps)).nonzero()[0])


def step_options(original: Callable[..., Any]) -> tuple[str, ...]:
    """What a scheduler's `step` takes besides its first three arguments."""
    return tuple(inspect.signature(original).parameters)[len(STEP_ARGUMENTS) :]


def numbers_in(options: Mapping[str, Any]) -> dict[str, float]:
    """Those of the options of a solver step that are numbers: the strength of its noise, DDIM's eta."""
    return {
        name: float(value)
        for name, value in options.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def solver_step(original: Callable[..., Any], scheduler: Any, i: int, output: Any, timestep: Any, sample: Any,
                *args: Any, **kwargs: Any) -> Any:  # fmt: skip
    """`scheduler.step` on the grid that was written.

    Args:
        original: the scheduler's own `step`.
        i: index of the step in the grid.
    """
    row = solver_of(scheduler)
    if row is None or not row.angles or not angle_grid.is_written(scheduler):
        return original(output, timestep, sample, *args, **kwargs)
    with angle_grid.stand_in(scheduler, i) as index:
        return original(output, index, sample, *args, **kwargs)
