"""How much an error of one step has grown or shrunk by the end of a run, measured on runs with one early error."""

from functools import partial

import torch
from torch import Tensor

from ertacache.calibration.calibrator import Calibrator
from ertacache.core.growth import growth_of
from ertacache.core.precision import exact
from ertacache.runtime.run import Controller, Run

#: Fitted prompts that are run.
PROMPTS = 4


class HeldOnce(Controller):
    """Repeats the first output at the second step: the kind of error that caching makes, where noise tells little.

    Args:
        latents: [T+1, *] of the uncached run of the same prompt.

    Attributes:
        squares: [T+1] mean squares of the latents' deviations.
    """

    replays = True

    def __init__(self, latents: Tensor) -> None:
        self._latents, self._first = latents, torch.zeros(0)
        self.squares = torch.zeros(len(latents), dtype=torch.float64)

    def solve(self, run: Run, output: Tensor, x: Tensor) -> Tensor:
        if run.steps_done == 0:
            self._first = output.clone()
        return self._first if run.steps_done == 1 else output

    def end_step(self, run: Run, x_next: Tensor) -> None:
        apart = exact(x_next[0]) - exact(self._latents[run.step + 1])
        self.squares[run.step + 1] = apart.square().mean()


def growth_of_runs(calibrator: Calibrator) -> Tensor:
    """Factors [T+1] float64, see `core.growth.growth_of`, from one run each of the first fitted prompts.

    Runs that end in NaN or infinity tell nothing: every factor is 1.
    """
    count = range(min(PROMPTS, len(calibrator.parts.fitted.texts)))
    _ = calibrator.reference
    calibrator.ahead({f"one error {n}": partial(_squares, n=n) for n in count})
    deviation = torch.stack([_squares(calibrator, n) for n in count]).mean(0).sqrt()
    return growth_of(deviation if bool(deviation.isfinite().all()) else torch.zeros_like(deviation))


def _squares(calibrator: Calibrator, n: int) -> Tensor:
    """Those of `HeldOnce` for the n-th fitted prompt."""
    recordings = calibrator.reference.recordings

    def run() -> Tensor:
        recorded = [run.latents[:, k] for run in recordings for k in range(run.latents.shape[1])]
        held = HeldOnce(recorded[n])
        calibrator.run(calibrator.parts.fitted.part(n, n + 1), held, "run with one error")
        return held.squares

    return calibrator.store.get(f"one error {n}", run)
