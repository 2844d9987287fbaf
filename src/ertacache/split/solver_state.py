"""What a solver has to remember between two steps, as one row of data for each scheduler class."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ertacache.errors import UnsupportedPipeline
from ertacache.runtime.identity import settings_of

#: After k steps, for a solver of order n: how many.
Count = Callable[[int, int], int]


def _fixed(k: int, n: int) -> int:
    return n


def _filled(k: int, n: int) -> int:
    return min(k, n)


def _plms(k: int, n: int) -> int:
    """PNDM's second call repeats the first timestep and keeps nothing new."""
    return min(max(k - 1, 1), 4)


@dataclass(frozen=True, slots=True)
class Listed:
    """A list of tensors: how long it is, and how many of them, the last ones, are there; the others are None.

    Attributes:
        times: whether they are timesteps, single numbers, in place of tensors like the latent.
    """

    name: str
    length: Count = _fixed
    held: Count = _filled
    times: bool = False


@dataclass(frozen=True, slots=True)
class Memory:
    """What one scheduler class remembers between two steps, beside its grid.

    Attributes:
        scheduler: its class name.
        sigmas: whether it keeps a grid of sigmas besides its timesteps.
        counts: attributes that are whole numbers, with the least and the greatest that they may be.
        tensors: attributes like the latent, with whether they are there after k steps.
        lists: attributes that are lists of tensors.
        order: of a configuration that does not say its `solver_order`.
        draws: whether a step of this configuration draws noise.
        bars: what keeps this configuration from a handover, or None.
        even: whether a step is two calls, between which nothing can be handed over.
    """

    scheduler: str
    sigmas: bool = True
    counts: tuple[tuple[str, Count, Count], ...] = (("_step_index", lambda k, n: k, lambda k, n: k),)
    tensors: tuple[tuple[str, Callable[[int], bool]], ...] = ()
    lists: tuple[Listed, ...] = ()
    order: int = 1
    draws: Callable[[Mapping[str, Any]], bool] = lambda config: False
    bars: Callable[[Mapping[str, Any]], str | None] = lambda config: None
    even: bool = False

    def order_of(self, config: Mapping[str, Any]) -> int:
        """The order of the solver."""
        return int(config.get("solver_order", self.order))


_INDEX = Memory("").counts
_MULTISTEP = (*_INDEX, ("lower_order_nums", _filled, _filled))
_OUTPUTS = Listed("model_outputs")


def _half_sums(config: Mapping[str, Any]) -> str | None:
    if config.get("skip_prk_steps"):
        return None
    return "its Runge-Kutta steps keep half-made sums: set skip_prk_steps=True, as Stable Diffusion does"


def _own_predictor(config: Mapping[str, Any]) -> str | None:
    return None if config.get("solver_p") is None else "solver_p is a solver with a memory of its own: set it to None"


MEMORIES = (
    Memory("FlowMatchEulerDiscreteScheduler", draws=lambda config: bool(config.get("stochastic_sampling"))),
    Memory("EulerDiscreteScheduler"),
    Memory("EulerAncestralDiscreteScheduler", draws=lambda config: True),
    Memory("DDIMScheduler", sigmas=False, counts=()),
    Memory("CogVideoXDDIMScheduler", sigmas=False, counts=()),
    Memory("LCMScheduler", sigmas=False, draws=lambda config: True),
    Memory("HeunDiscreteScheduler", even=True),
    Memory(
        "DPMSolverMultistepScheduler", counts=_MULTISTEP, lists=(_OUTPUTS,), order=2,
        draws=lambda config: str(config.get("algorithm_type", "")).startswith("sde"),
    ),
    Memory("DEISMultistepScheduler", counts=_MULTISTEP, lists=(_OUTPUTS,), order=2),
    Memory(
        "UniPCMultistepScheduler",
        counts=(*_MULTISTEP, ("this_order", lambda k, n: 1, _filled)),
        tensors=(("last_sample", lambda k: True),),
        lists=(_OUTPUTS, Listed("timestep_list", times=True)), order=2, bars=_own_predictor,
    ),
    Memory("LMSDiscreteScheduler", lists=(Listed("derivatives", _filled),), order=4),
    Memory(
        "PNDMScheduler", sigmas=False, counts=(("counter", lambda k, n: k, lambda k, n: k),),
        tensors=(("cur_sample", lambda k: k == 1),), lists=(Listed("ets", _plms, _plms),), order=4, bars=_half_sums,
    ),
)  # fmt: skip

#: What is known of others.
_REFUSED = {
    "CogVideoXDPMScheduler": "its last prediction lives in a variable of the pipeline, which nobody else can set; use "
    "CogVideoXDDIMScheduler",
    "DPMSolverSDEScheduler": "its noise is a Brownian tree, which grows with the run and cannot be sent",
    "CosineDPMSolverMultistepScheduler": "its noise is a Brownian tree, which grows with the run and cannot be sent",
    "DPMSolverSinglestepScheduler": "its order changes from step to step by a list of its own, which was not tried",
    "KDPM2DiscreteScheduler": "a step is two calls of another kind than Heun's, which was not tried",
    "KDPM2AncestralDiscreteScheduler": "a step is two calls with noise between them, which was not tried",
    "FlowMatchHeunDiscreteScheduler": "a step is two calls, and its state between them was not tried",
    "SASolverScheduler": "its predictor, its corrector and its noise each have a history, which was not tried",
}


@dataclass(frozen=True, eq=False)
class SolverState:
    """A solver between two steps.

    Attributes:
        scheduler: its class name. config: what of its configuration differs from the defaults of that class.
        counts: attributes that are whole numbers.
        tensors: by name: `last_sample`, or `model_outputs.1` for an entry of a list; on the CPU.
    """

    scheduler: str
    config: dict[str, Any] = field(default_factory=dict[str, Any])
    counts: dict[str, int] = field(default_factory=dict[str, int])
    tensors: dict[str, Tensor] = field(default_factory=dict[str, Tensor])


def memory_of(name: str) -> Memory | None:
    """The row of a scheduler class, if there is one."""
    return next((row for row in MEMORIES if row.scheduler == name), None)


def check_solver(scheduler: Any) -> Memory:
    """The row of a scheduler.

    Raises:
        UnsupportedPipeline: its state between two steps cannot be handed over, with the reason.
    """
    name = type(scheduler).__name__
    row = memory_of(name)
    reason = _REFUSED.get(name, "what it keeps from step to step is not known") if row is None else None
    if row is not None:
        reason = row.bars(scheduler.config)
    if row is None or reason is not None:
        raise UnsupportedPipeline(
            f"the state of {name} cannot be handed over: {reason}. Solvers that can: "
            f"{', '.join(row.scheduler for row in MEMORIES)}"
        )
    return row


def expected(row: Memory, step: int, order: int) -> dict[str, bool]:
    """The tensors that a solver of this order has after `step` steps: by name whether they are timesteps."""
    names = {name: False for name, there in row.tensors if there(step)}
    for one in row.lists:
        length, held = one.length(step, order), one.held(step, order)
        names |= {f"{one.name}.{n}": one.times for n in range(length - held, length)}
    return names


def captured(scheduler: Any, step: int) -> SolverState:
    """The state of a scheduler after `step` steps, in copies on the CPU.

    Raises:
        UnsupportedPipeline: as `check_solver`, or its state is not what its row says.
    """
    row = check_solver(scheduler)
    found: dict[str, Any] = {}
    for name in expected(row, step, row.order_of(scheduler.config)):
        attribute, _, place = name.partition(".")
        value = getattr(scheduler, attribute)
        found[name] = value[int(place)] if place and int(place) < len(value) else None if place else value
    counts: dict[str, Any] = {name: getattr(scheduler, name, None) for name, _, _ in row.counts}
    for name, value in (*counts.items(), *found.items()):
        if not isinstance(value, Tensor if name in found else int):
            raise UnsupportedPipeline(
                f"the state of {row.scheduler} after step {step} has {name} = {value!r}, which no run has that began "
                "at its first step and made each once; hand over from a plain run"
            )
    tensors = {name: value.detach().to("cpu", copy=True) for name, value in found.items()}
    return SolverState(row.scheduler, settings_of(scheduler), counts, tensors)


def restore(scheduler: Any, state: SolverState, step: int, like: Tensor) -> None:
    """Put a state into a scheduler that `set_timesteps` has just set up for the same number of steps.

    Args:
        step: that the state was captured after.
        like: a latent on the device where the run goes on.
    """
    row = check_solver(scheduler)
    order = row.order_of(scheduler.config)
    moved = {name: tensor.to(like.device, copy=True) for name, tensor in state.tensors.items()}
    for name, _ in row.tensors:
        setattr(scheduler, name, moved.get(name))
    for one in row.lists:
        names = (f"{one.name}.{n}" for n in range(one.length(step, order)))
        setattr(scheduler, one.name, [moved.get(name) for name in names])
    for name, value in state.counts.items():
        setattr(scheduler, name, value)
    if hasattr(scheduler, "set_begin_index"):  # where those who follow the run look for its first step
        scheduler.set_begin_index(step)
