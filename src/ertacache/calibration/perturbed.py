"""How much an error of one step has grown or shrunk by the end of a run, measured on one perturbed run."""

import torch
from torch import Tensor

from ertacache.calibration.calibrator import Calibrator
from ertacache.core.growth import growth_of
from ertacache.core.precision import exact
from ertacache.runtime.run import Controller, Run

#: By how much the first output is scaled: far above rounding, far below what changes the picture.
_SHARE = 0.02


class Perturbed(Controller):
    """Scales what the solver receives at the first step, and measures how far the latents are from recorded ones.

    Args:
        latents: [T+1, *] of the uncached run of the same prompt.

    Attributes:
        deviation: [T+1] root mean squares.
    """

    replays = True

    def __init__(self, latents: Tensor) -> None:
        self._latents = latents
        self.deviation = torch.zeros(len(latents), dtype=torch.float64)

    def solve(self, run: Run, output: Tensor, x: Tensor) -> Tensor:
        return output * (1 + _SHARE) if run.steps_done == 0 else output

    def end_step(self, run: Run, x_next: Tensor) -> None:
        apart = exact(x_next[0]) - exact(self._latents[run.step + 1])
        self.deviation[run.step + 1] = apart.square().mean().sqrt()


def growth_of_run(calibrator: Calibrator) -> Tensor:
    """Factors [T+1] float64, see `core.growth.growth_of`, from one run of the first fitted prompt.

    A run that ends in NaN or infinity tells nothing: every factor is 1.
    """
    recording = calibrator.reference.recordings[0]

    def run() -> Tensor:
        perturbed = Perturbed(recording.latents[:, 0])
        calibrator.run(calibrator.parts.fitted.first(1), perturbed, "perturbed run")
        return perturbed.deviation

    deviation = calibrator.store.get("perturbed run", run)
    return growth_of(deviation if bool(deviation.isfinite().all()) else torch.zeros_like(deviation))
