"""A run that is begun and ends before its denoiser is called: what grid it would have run on costs no step."""

from typing import Any

from torch import Tensor

from ertacache.calibration.first_steps import Seen, broken_off
from ertacache.calibration.followed import Followed
from ertacache.calibration.prompts import Prompts
from ertacache.errors import UnsupportedPipeline
from ertacache.runtime.run import Controller, Run


class _Begin(Followed):
    """Keeps the time grid [T+1] that a run begins with and its timesteps [T], as they were set."""

    sigmas: Tensor
    timesteps: Tensor | None = None

    def begin(self, run: Run) -> None:
        super().begin(run)
        self.sigmas, self.timesteps = run.sigmas.clone(), run.timesteps.to("cpu", copy=True)
        raise Seen


def begun(
    pipe: Any, prompt: Prompts, call: dict[str, Any], controller: Controller | None = None
) -> tuple[Tensor, Tensor]:
    """The grid [T+1] float32 that a call sets, and its timesteps [T]; neither as a controller may have changed them.

    Args:
        prompt: of the call. controller: begins the run.

    Raises:
        UnsupportedPipeline: the pipeline sets no timesteps; and what the controller raises.
    """
    seen = _Begin(controller or Controller())
    broken_off(pipe, prompt, seen, call)
    if seen.timesteps is None:
        raise UnsupportedPipeline(f"{type(pipe).__name__} set no timesteps; give it one step or more")
    return seen.sigmas, seen.timesteps
