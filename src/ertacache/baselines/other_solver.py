"""Fewer steps of a better solver: another scheduler on the time grid that the pipeline has for as many steps."""

import copy
import functools
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any, ClassVar

from torch import Tensor

from ertacache.baselines.diffusers_cache import refuse_profile
from ertacache.baselines.fewer_steps import FewerSteps
from ertacache.core.precision import widen
from ertacache.errors import UnsupportedPipeline
from ertacache.pipelines.solvers import read_grid, solver_of

#: What diffusers keeps the first σ of a flow below, and the largest σ of a schedule without any signal at its start.
_BELOW_ONE, _NO_SIGNAL = 1 - 1e-6, 2.0**12


@dataclass(frozen=True)
class OtherSolver(FewerSteps):
    """The time grid of the pipeline's own scheduler for K steps, integrated by another solver.

    So solvers differ and grids do not. A flow keeps its σ; what works on ᾱ (DDIM) is run at σ = √(1 − ᾱ) / √ᾱ. The
    denoiser is given the timesteps of the pipeline's own scheduler, which are unrounded for a flow under Euler's.
    """

    paper: ClassVar[str] = "none: a solver of diffusers"
    other_solver: ClassVar[bool] = True
    #: The class in diffusers.
    scheduler: ClassVar[str]

    def refusal(self, pipe: Any, call: Mapping[str, Any]) -> str | None:
        own, row = type(pipe.scheduler).__name__, solver_of(pipe.scheduler)
        if row is None:
            return f"nothing takes the place of {own}, whose time grid means something else to each solver"
        if reason := row.bars(pipe.scheduler.config):
            return f"nothing takes the place of {own}: {reason}"
        if not row.affine(pipe.scheduler.config):
            return f"nothing takes the place of {own}: it clips what it integrates"
        return f"{own} is the pipeline's own solver: see fewer-steps" if own == self.scheduler else None

    def applied(self, pipe: Any, call: Mapping[str, Any]) -> AbstractContextManager[Any]:
        """See `Baseline.applied`.

        Raises:
            CacheConflict: a profile is on.
            UnsupportedPipeline: a scheduler that it cannot replace.
        """
        refuse_profile(pipe)
        if reason := self.refusal(pipe, call):
            raise UnsupportedPipeline(reason)
        own = copy.deepcopy(pipe.scheduler)
        return _replaced(pipe, self.stand_in(own))

    def stand_in(self, own: Any) -> Any:
        """`own`, a copy of the pipeline's scheduler, with steps by this solver; to the pipeline it looks as before."""
        import diffusers

        config = _config(own)
        return _stepped_by(own, lambda: getattr(diffusers, self.scheduler)(**config))


@dataclass(frozen=True)
class DPMSolver(OtherSolver):
    """DPM-Solver++ (2M): of order 2 in log(α/σ) on the predicted clean latent, arXiv 2211.01095."""

    key: ClassVar[str] = "dpm-solver"
    title: ClassVar[str] = "fewer steps, DPM-Solver++ (2M)"

    scheduler: ClassVar[str] = "DPMSolverMultistepScheduler"


@dataclass(frozen=True)
class UniPC(OtherSolver):
    """UniPC of order 2: the same with a corrector that costs no call, arXiv 2302.04867."""

    key: ClassVar[str] = "unipc"
    title: ClassVar[str] = "fewer steps, UniPC"

    scheduler: ClassVar[str] = "UniPCMultistepScheduler"


@dataclass(frozen=True)
class Adams(OtherSolver):
    """Adams-Bashforth of order 2 with its own step sizes; at even steps iPNDM of order 2.

    x + h (v_n + h / (2 h') (v_n − v_n−1)), h' the length of the step before; the first step is Euler's. h is a
    difference of σ for a flow and, for v-prediction on ᾱ, one of angles: in both v is the derivative of x.
    """

    key: ClassVar[str] = "adams"
    title: ClassVar[str] = "fewer steps, Adams-2"
    paper: ClassVar[str] = "none: Adams-Bashforth (iPNDM, arXiv 2204.13902, of order 2)"

    scheduler: ClassVar[str] = ""

    def refusal(self, pipe: Any, call: Mapping[str, Any]) -> str | None:
        reason = super().refusal(pipe, call)
        if reason is None and _angles(pipe.scheduler) and pipe.scheduler.config.prediction_type != "v_prediction":
            return f"Adams-2 needs a velocity, and the model predicts {pipe.scheduler.config.prediction_type}"
        return reason

    def stand_in(self, own: Any) -> Any:
        return _stepped_by(own, lambda: _AdamsSteps(own))


class _AdamsSteps:
    """The steps of one run on the grid of `own`, as far as `_stepped_by` asks for them."""

    def __init__(self, own: Any) -> None:
        self._grid, self.timesteps = read_grid(own).double(), own.timesteps
        self._before: Tensor | None = None

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, return_dict: bool) -> Any:
        """`scheduler.step`."""
        from diffusers.schedulers.scheduling_utils import SchedulerOutput

        i, grid, used = int((self.timesteps == timestep).nonzero()[0]), self._grid, widen(model_output)
        value = used.clone()
        if self._before is not None:
            used = used + float((grid[i + 1] - grid[i]) / (grid[i] - grid[i - 1]) / 2) * (used - self._before)
        self._before = value
        following = (widen(sample) + float(grid[i + 1] - grid[i]) * used).to(model_output.dtype)
        return SchedulerOutput(prev_sample=following) if return_dict else (following,)


def _angles(scheduler: Any) -> bool:
    row = solver_of(scheduler)
    return row is not None and row.angles


def _config(own: Any) -> dict[str, Any]:
    """What diffusers' solvers for both kinds of models are told of the pipeline's own."""
    kind = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    return {"num_train_timesteps": own.config.num_train_timesteps} | (
        {"prediction_type": own.config.prediction_type} if _angles(own) else kind
    )


def _stepped_by(own: Any, make: Callable[[], Any]) -> Any:
    """`own` with its grid and its timesteps, on which a solver that is made for each run makes the steps."""
    before = own.set_timesteps
    solvers: list[Any] = []

    @functools.wraps(before.__func__)
    def set_timesteps(_: Any, *args: Any, **kwargs: Any) -> None:
        before(*args, **kwargs)
        solver, grid = make(), read_grid(own).double()
        # diffusers' solvers take logarithms, and there is none where no signal is left.
        grid = grid.sin() / grid.cos().clamp_min(1 / _NO_SIGNAL) if _angles(own) else grid.clamp_max(_BELOW_ONE)
        solver.sigmas, solver.timesteps = grid.float(), own.timesteps
        solver.num_inference_steps = len(own.timesteps)
        solvers[:] = [solver]

    @functools.wraps(own.step.__func__)
    def step(_: Any, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        return solvers[0].step(model_output, timestep, sample, return_dict=kwargs.get("return_dict", True))

    own.set_timesteps, own.step = MethodType(set_timesteps, own), MethodType(step, own)
    return own


@contextmanager
def _replaced(pipe: Any, solver: Any) -> Generator[None]:
    own, pipe.scheduler = pipe.scheduler, solver
    try:
        yield
    finally:
        pipe.scheduler = own
