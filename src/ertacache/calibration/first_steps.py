"""The first steps of a run, which tell what all of it will take: steps, calls, bytes and seconds."""

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ertacache.calibration.pipeline_run import run_pipeline
from ertacache.calibration.prompts import Prompts
from ertacache.calibration.recording import bytes_of
from ertacache.calibration.reference_log import check_start
from ertacache.errors import UnsupportedPipeline
from ertacache.pipelines.branches import direction_of
from ertacache.pipelines.guidance import TwoBranchGuidance
from ertacache.runtime.run import Controller, Run
from ertacache.runtime.watch import now

#: How many there are: the first warms up what there is to warm up, the second is timed.
_STEPS = 2


class Seen(Exception):
    """Ends a run of which enough is known."""


@dataclass
class FirstSteps(Controller):
    """Computes two steps of one prompt.

    Attributes:
        steps: of the whole run.
        outputs: shape of what each call of the first step returned, without its batch axis.
        received: shape of what the solver received, likewise.
        directed: whether the step had two branches of guidance.
        weight: of those branches, where the two steps tell it. embedded: the weight that the denoiser is given, if any.
        recorded: bytes that a recording of the whole run takes. latents: those of its latents alone.
        seconds: of the second step, of which the first has warmed up what there is to warm up; 0 where there is none.
    """

    replays = True

    steps: int = 0
    outputs: dict[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    received: tuple[int, ...] = ()
    directed: bool = False
    weight: float | None = None
    embedded: float | None = None
    recorded: int = 0
    latents: int = 0
    seconds: float = 0.0

    def begin(self, run: Run) -> None:
        self._calls: dict[str, Tensor] = {}
        self._begun = 0.0

    def call(self, run: Run, context: str, x: Tensor, compute: Any) -> Tensor:
        output = self._calls[context] = compute()
        if run.steps_done == 0:
            self.outputs[context] = tuple(output.shape[1:])
        return output

    def solve(self, run: Run, output: Tensor, x: Tensor) -> Tensor:
        if run.steps_done == 0:
            check_start(run)
            direction = direction_of(self._calls, output) if output.shape == x.shape else None
            self.embedded = run.guidance
            self.steps, self.received, self.directed = run.T, tuple(output.shape[1:]), direction is not None
            own = [0 if part is None else part.nbytes // len(part) for part in (x, output, direction)]
            self.recorded, self.latents = bytes_of(run.T, *own), bytes_of(run.T, own[0], 0, 0)
        self._note_weight(output)
        return output

    def _note_weight(self, output: Tensor) -> None:
        two = TwoBranchGuidance(tuple(self._calls))
        for context, branch in self._calls.items():
            two.observe(context, branch)
        weight = two.weight(output)
        self.weight = self.weight if weight is None else float(f"{weight:.5g}")
        self._calls.clear()

    def end_step(self, run: Run, x_next: Tensor) -> None:
        if run.steps_done < _STEPS - 1:
            self._begun = now()
            return
        self.seconds = now() - self._begun
        raise Seen

    @property
    def elements(self) -> int:
        """Elements of the largest output of a call."""
        return max(math.prod(shape) for shape in self.outputs.values())


def share_of(steps: int) -> float:
    """The work of these steps in uncached runs of one prompt."""
    return min(_STEPS, steps) / steps


def first_steps(pipe: Any, prompts: Prompts, call: dict[str, Any]) -> FirstSteps:
    """The first two steps of the first of these prompts.

    Raises:
        UnsupportedPipeline: it ran no step of its denoiser.
    """
    seen = FirstSteps()
    broken_off(pipe, prompts.first(1), seen, call)
    if not seen.outputs or not seen.steps:
        raise UnsupportedPipeline(f"{type(pipe).__name__} ran no step of its denoiser; give it one step or more")
    return seen


def broken_off(pipe: Any, prompts: Prompts, controller: Controller, call: dict[str, Any]) -> None:
    """A pipeline call that its controller ends by raising `Seen`."""
    try:
        run_pipeline(pipe, prompts, controller, call, decode=False)
    except Seen:
        pass
    finally:
        if free := getattr(pipe, "maybe_free_model_hooks", None):  # as the end of a whole run would
            free()
