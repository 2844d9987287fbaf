"""Teacher forcing: a quantised denoiser on the latents of the full-precision run, and the errors it makes there."""

from typing import Any

from torch import Tensor

from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.prompts import Prompts
from ertacache.calibration.recording import Recording
from ertacache.core.compensation_fit import CompensationSums
from ertacache.pipelines.affine_step import is_affine, step_factors
from ertacache.runtime.run import Controller, Run


class ForcedRun(Controller):
    """Adds up raw and exact outputs of every step, and gives the solver the exact one, so that its latents are exact.

    Args:
        exact: the full-precision run of the same batch. sums: of each step.

    Attributes:
        factors: A and B of every step's x' = A x + B o; empty for a solver that is not affine.
    """

    replays = True

    def __init__(self, exact: Recording, sums: list[CompensationSums]) -> None:
        self._exact, self._sums = exact, sums
        self.factors: list[tuple[float, float]] = []

    def solve(self, run: Run, output: Tensor, x: Tensor) -> Tensor:
        exact = self._exact.outputs[run.step].to(output)
        self._sums[run.step].update(exact, output)
        if is_affine(run.scheduler):
            self.factors.append(step_factors(run.scheduler, run.step, run.sigmas))
        return exact


def forced_sums(calibrator: Calibrator) -> tuple[list[CompensationSums], list[tuple[float, float]]]:
    """The sums of each step over the fitted prompts, from one run of each, and the solver's factors."""
    axis = calibrator.family.channel_axis
    total, factors = [CompensationSums(axis) for _ in range(calibrator.T)], list[tuple[float, float]]()
    for n, (batch, exact) in enumerate(zip(calibrator.batches, calibrator.taught, strict=True)):

        def run(batch: Prompts = batch, exact: Recording = exact) -> dict[str, Any]:
            sums = [CompensationSums(axis) for _ in range(calibrator.T)]
            forced = ForcedRun(exact, sums)
            calibrator.run(batch, forced, "teacher-forced run")
            return {"sums": [one.state() for one in sums], "factors": forced.factors}

        found = calibrator.store.get(f"teacher-forced {n}", run)
        for one, state in zip(total, found["sums"], strict=True):
            one.merge(CompensationSums.from_state(axis, state))
        factors = [(scale, slope) for scale, slope in found["factors"]]
    return total, factors
