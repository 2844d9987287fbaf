"""A finer teacher: a run whose time grid has the pipeline's own among its nodes, nearer to the exact trajectory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ertacache.calibration.begun import begun
from ertacache.calibration.checks import check_whole
from ertacache.calibration.prompts import Prompts
from ertacache.calibration.recording import Recording, Writing
from ertacache.calibration.reference_log import Reference
from ertacache.calibration.taught import Runs
from ertacache.errors import CalibrationError, InvalidArgument, UnsupportedPipeline
from ertacache.pipelines.affine_step import is_affine
from ertacache.pipelines.guidance import TwoBranchGuidance
from ertacache.pipelines.inputs import Inputs, input_names
from ertacache.pipelines.models import denoisers_of
from ertacache.pipelines.pipeline_call import defaults_of
from ertacache.pipelines.solvers import grid_refusal, read_grid, write_grid
from ertacache.profile.guidance_scale import same_guidance
from ertacache.runtime.run import Controller, Run


@dataclass(frozen=True, eq=False)
class FineGrid:
    """The time grid of a pipeline call with every interval split into `parts` equal ones.

    Equal in what `solvers.read_grid` gives, σ or DDIM's angle, in which the solver steps: the error that a step makes
    in an interval of the own grid then falls by the same factor everywhere, whatever has shifted that grid, and no
    scheduler has to be asked how it shifts.

    Attributes:
        sigmas: [T+1] float32, the call's own grid. timesteps: [T] those of it.
        parts: 2 or more.
    """

    sigmas: Tensor
    timesteps: Tensor
    parts: int

    name: ClassVar[str] = "fine"

    @property
    def words(self) -> dict[str, Any]:
        """What figures that are measured from its runs are told of them."""
        return {"steps": self.steps}

    @property
    def choices(self) -> dict[str, Any]:
        """What a provenance has among the choices of the method."""
        return {"teacher_steps": self.steps}

    def identity(self) -> dict[str, Any]:
        """What tells it from others, for a checkpoint."""
        return {"teacher": self.steps}

    def facts(self, pipe: Any) -> dict[str, Any]:
        """No further fields of a provenance."""
        return {}

    def watching(self) -> Controller:
        """A controller that puts a run on the grid."""
        return FineRun(self)

    def run(self, recorder: Runs, prompts: Prompts, controller: Controller, *, decode: bool = False) -> Tensor:
        """A pipeline call with as many steps as the grid has, on which the controller has to put it."""
        call = {**recorder.call, "num_inference_steps": self.steps}
        return recorder.run(prompts, controller, "fine run", decode=decode, share=self.parts, call=call)

    def record(self, recorder: Runs, prompts: Prompts, path: Path, own: Reference) -> dict[str, Any]:
        """Record the latents of a run at the nodes of the own grid; returns the layout of the file."""
        log = FineLog(self, path, own.contexts, own.step_weights)
        try:
            self.run(recorder, prompts, log)
            return log.finish()
        finally:
            log.discard()

    def check(self, own: Recording, found: Recording) -> None:
        """Nothing: it is a run of the same pipeline."""

    @property
    def steps(self) -> int:
        """Of the fine run."""
        return len(self.timesteps) * self.parts

    @property
    def nodes(self) -> Tensor:
        """[steps+1] float32; every `parts`-th one is the own grid's, bit for bit."""
        own = self.sigmas.double()
        shares = torch.arange(self.parts, dtype=torch.float64) / self.parts
        inner = torch.lerp(own[:-1, None], own[1:, None], shares)
        return torch.cat([inner.flatten(), own[-1:]]).float()

    def write(self, scheduler: Any) -> None:
        """Put a scheduler that is set to as many steps on this grid; at its own nodes it keeps its own timesteps.

        Raises:
            UnsupportedPipeline: it is set to another number of steps, ends elsewhere or cannot start so finely.
        """
        made = len(read_grid(scheduler)) - 1
        if made != self.steps:
            raise UnsupportedPipeline(
                f"the fine run has {made} steps, not teacher_steps={self.steps}; leave teacher_steps out"
            )
        try:
            write_grid(scheduler, self.nodes)
        except InvalidArgument as error:
            raise UnsupportedPipeline(f"teacher_steps={self.steps} is too fine a grid here ({error})") from error
        scheduler.timesteps[:: self.parts].copy_(self.timesteps)
        if not torch.equal(read_grid(scheduler)[:: self.parts], self.sigmas):
            raise UnsupportedPipeline(
                f"with teacher_steps={self.steps} {type(scheduler).__name__} ends its run elsewhere than with "
                f"{len(self.timesteps)} steps; use another multiple of {len(self.timesteps)}"
            )


class FineRun(Controller):
    """Runs the pipeline on a fine grid."""

    replays = True

    def __init__(self, grid: FineGrid) -> None:
        self._grid = grid

    def begin(self, run: Run) -> None:
        self._grid.write(run.scheduler)


class FineLog(FineRun):
    """Keeps the latents of a fine run at the nodes of the own grid, in a recording without outputs.

    Args:
        path: of the recording. contexts: names of the calls of a step.
        weights: guidance weight of each step of the own run, or None.
    """

    def __init__(self, grid: FineGrid, path: Path, contexts: Sequence[str], weights: Sequence[float | None]) -> None:
        super().__init__(grid)
        self._path, self._contexts, self._weights = path, tuple(contexts), weights
        self._outputs: dict[str, Tensor] = {}
        self._writing: Writing | None = None

    def call(self, run: Run, context: str, x: Tensor, compute: Any) -> Tensor:
        output = self._outputs[context] = compute()
        return output

    def solve(self, run: Run, output: Tensor, x: Tensor) -> Tensor:
        if self._writing is None:
            T = len(self._weights)
            self._writing = Recording.create(self._path, T, x, output.new_empty(len(output), 0), None)
            self._writing.recording.latents[0].copy_(x)
        i, inside = divmod(run.step, self._grid.parts)
        if not inside:
            self._check_guidance(i, output)
        self._outputs.clear()
        return output

    def _check_guidance(self, i: int, output: Tensor) -> None:
        two, own = TwoBranchGuidance(self._contexts), self._weights[i]
        for context, branch in self._outputs.items():
            two.observe(context, branch)
        found = two.weight(output)
        if found is not None and own is not None and not same_guidance(own, found):
            raise UnsupportedPipeline(
                f"the guidance weight at step {i} is {own:g}, and {found:g} there in the fine run: it follows the "
                "number of steps, so that a finer run has another trajectory; leave teacher_steps out"
            )

    def end_step(self, run: Run, x_next: Tensor) -> None:
        node, inside = divmod(run.step + 1, self._grid.parts)
        if self._writing is not None and not inside:
            self._writing.recording.latents[node].copy_(x_next)

    def finish(self) -> dict[str, Any]:
        """Name the file of the recording; returns its layout.

        Raises:
            CalibrationError: the run ended in NaN or infinity.
        """
        if self._writing is None or not self._writing.recording.latents[-1].isfinite().all():
            raise CalibrationError(
                f"the fine run of {self._grid.steps} steps ends in NaN or infinity; run the pipeline in a wider dtype, "
                "or leave teacher_steps out"
            )
        self._writing.finish()
        return self._writing.layout

    def discard(self) -> None:
        """Remove a recording that was not finished."""
        if self._writing is not None:
            self._writing.discard()


def check_teacher(pipe: Any, call: Mapping[str, Any], inputs: Sequence[Inputs], steps: Any, *, aimed: bool) -> None:
    """What rules a finer teacher out, before anything runs.

    Args:
        call, inputs: of the calibration. steps: of the fine run.
        aimed: whether every plan is fitted to the trajectory.

    Raises:
        InvalidArgument: no whole multiple of the call's own number of steps, a plan that aims at something else, or
            an argument of the call that fixes the grid or draws noise.
        UnsupportedPipeline: the solver follows no other grid, draws noise or cannot be inverted, or there are two
            denoisers.
    """
    check_whole("teacher_steps", steps, 2, "a multiple of the call's own number of steps, such as 4 times as many")
    if (bar := grid_refusal(pipe.scheduler)) is not None:
        raise _unsupported(f"the time grid of {type(pipe.scheduler).__name__} cannot be changed: {bar}")
    if not is_affine(pipe.scheduler):
        raise _unsupported(f"{type(pipe.scheduler).__name__} with this configuration cannot be inverted to aim at it")
    if (count := len(denoisers_of(pipe))) > 1:
        raise _unsupported(
            f"{type(pipe).__name__} has {count} denoisers, and on another grid the second takes over at another time"
        )
    if call.get("eta"):
        raise InvalidArgument(f"teacher_steps follows the exact trajectory, but eta={call['eta']:g} draws noise; use 0")
    brought = input_names(inputs)
    if fixed := [name for name in ("sigmas", "timesteps") if call.get(name) is not None or name in brought]:
        raise InvalidArgument(f"{fixed[0]} in the call fixes the solver's steps; leave it or teacher_steps out")
    if "num_inference_steps" not in (known := defaults_of(pipe)):
        raise _unsupported(f"{type(pipe).__name__} takes no num_inference_steps")
    if not aimed:
        raise InvalidArgument(
            f"teacher_steps={steps} needs a plan that aims at the trajectory (site 'guided', aim='trajectory', no "
            "rectifier, the solver's own grid); leave one of the two out"
        )
    own = call.get("num_inference_steps", known["num_inference_steps"])
    if isinstance(own, int):
        parts_of(steps, own)


def _unsupported(why: str) -> UnsupportedPipeline:
    return UnsupportedPipeline(f"{why}; leave teacher_steps out")


def parts_of(steps: int, own: int) -> int:
    """Into how many parts a fine run of `steps` splits each step of the call's own.

    Raises:
        InvalidArgument: it is no whole number of 2 or more.
    """
    if steps % own or steps < 2 * own:
        raise InvalidArgument(
            f"teacher_steps is {steps}; give a whole multiple of the call's {own} steps from {2 * own} on, such as "
            f"{4 * own}"
        )
    return steps // own


def fine_grid(pipe: Any, prompt: Prompts, call: dict[str, Any], steps: int) -> FineGrid:
    """The fine grid of a call, which is begun with it once and ends before the denoiser runs.

    Raises:
        InvalidArgument: as `parts_of`.
        UnsupportedPipeline: as `FineGrid.write`.
    """
    sigmas, timesteps = begun(pipe, prompt, call)
    grid = FineGrid(sigmas, timesteps, parts_of(steps, len(timesteps)))
    begun(pipe, prompt, {**call, "num_inference_steps": steps}, FineRun(grid))
    return grid
