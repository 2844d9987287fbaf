"""What the runs of a closed loop solve together: the sums of all prompts, and what they give, step by step."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ertacache.calibration.lockstep import Lockstep
from ertacache.calibration.method import Method
from ertacache.calibration.recording import Recording
from ertacache.calibration.solved import Solved
from ertacache.calibration.sums import Key, PhiSums, Sums
from ertacache.core.compensation import Compensation
from ertacache.core.compensation_fit import CompensationSums
from ertacache.core.fit import prompt_weights
from ertacache.core.policy import RelativeL1, decide
from ertacache.core.precision import widen
from ertacache.core.rectify import Affine
from ertacache.core.timesteps import phi, soften, stretch
from ertacache.runtime.run import Run


@dataclass
class Seat:
    """What belongs to one of the pipeline calls of a closed loop.

    Attributes:
        reference_l1: [T, B] ‖v − x‖₁ of the uncached run; for a threshold only.
        trajectory: gives the latent [B, *] to aim at after each step; for plans that aim at it only.
        exact: gives what the solver received at each step of the full-precision run; for corrections that aim at it.
        known: outputs of computed steps that an earlier run of the same beginning has left, or None.
        kept: where the outputs of computed steps and the final latent are kept for a later run, or None.
        final: [B, *] where the run has ended. made: how many steps it has made. steps: how many of them it computed.
        small: at how many of them it called a small model.
    """

    reference_l1: Tensor | None = None
    trajectory: Callable[[int], Tensor] | None = None
    exact: Callable[[int], Tensor] | None = None
    known: Recording | None = None
    kept: Recording | None = None
    final: Tensor | None = None
    made: int = 0
    steps: int = 0
    small: int = 0


class Solving:
    """One pass of a method over all prompts.

    Args:
        method: what to do.
        lockstep: of the pipeline calls.
        channel_axis: see `models.Family`.
        begun: what an earlier pass of the same beginning has solved, or all that is to be played.
        known: the outputs of computed steps before this one come from the seats' store, without a call.
    """

    def __init__(
        self, method: Method, lockstep: Lockstep, channel_axis: int = -1, begun: Solved | None = None, known: int = 0
    ) -> None:
        self.method, self.known, self._lockstep, self._axis = method, known, lockstep, channel_axis
        self.solved = begun or Solved()
        if method.grid is not None:
            self.solved.grid = torch.tensor(method.grid, dtype=torch.float64)
        self.sums = Sums(method.rectifier or "scalar", channel_axis)
        self._decided: dict[int, bool] = dict(self.solved.computed)

    def is_computed(
        self, run: Run, seat: Seat, fresh: bool, first: bool, errors: Callable[[], tuple[Tensor, Tensor]]
    ) -> bool:
        """Whether a call of this step is computed: by the schedule, or by Algorithm 2.

        Args:
            fresh: there is no history (at the first step of a denoiser, at a call that the last steps did not make)
                and nothing to use.
            first: it decides for the later calls of its step.
            errors: gives what reuse predicts and the truth, [B, *] each: the error of what the step would use.
        """
        i, method = run.step, self.method
        if method.schedule is not None:
            return fresh or method.schedule.computed[i]
        if not first:
            return fresh or self._decided[i]
        if fresh:  # for all of them, which need not meet over it
            self._decided[i] = self.solved.computed[i] = True
            return True
        if seat.reference_l1 is not None:
            self.sums.policy.setdefault(i, RelativeL1()).update(*errors(), seat.reference_l1[i])
        self._lockstep.meet(lambda: self._decide(i, run.T))
        return self._decided[i]

    def _decide(self, i: int, T: int) -> None:
        self._decided[i] = not decide(i, T, self.sums.policy[i].value, self.method.threshold or 0.0)
        self.solved.computed[i] = self._decided[i]

    def weights(self, key: Key, features: list[Tensor], base: Tensor, goal: Callable[[], Tensor]) -> Tensor:
        """The weights of the fit at one step: those that all prompts ask for, or that an earlier run has solved."""
        if key not in self.solved.weights:
            aimed = goal()
            left = widen(aimed) - base
            self.sums.ridge_at(key, len(features)).update(features, left, prompt_weights(left, aimed))
            self._lockstep.meet(lambda: self._solve(key))
        return self.solved.weights[key]

    def _solve(self, key: Key) -> None:
        self.solved.weights[key] = self.sums.ridge.pop(key).solve(self.method.ridge)

    def rectifier(self, key: Key, predicted: Tensor, truth: Tensor) -> Affine:
        """The rectifier of one step, fitted to what all prompts leave."""
        self.sums.affine_at(key).update(predicted, widen(predicted) - widen(truth))

        def solve() -> None:
            self.solved.affine[key] = self.sums.affine.pop(key).solve(self.method.rectifier_ridge)

        self._lockstep.meet(solve)
        return self.solved.affine[key]

    def corrected(self, i: int, output: Tensor, exact: Callable[[], Tensor]) -> Tensor:
        """What a computed step gives the solver for its raw output [B, *], once all prompts say what is exact."""
        if i not in self.solved.corrections:
            self.sums.corrections.setdefault(i, CompensationSums(self._axis)).update(exact(), output)
            self._lockstep.meet(lambda: self._solve_correction(i))
        rows = (row.float()[None] for row in self.solved.corrections[i])
        return Compensation(*rows).apply(0, output, None, self._axis)

    def _solve_correction(self, i: int) -> None:
        if (how := self.method.correcting) is None:
            return
        gain, bias = self.sums.corrections.pop(i).solve(how.estimator, how.sharing)
        self.solved.corrections[i] = (gain, torch.zeros_like(gain), bias)

    def measure_phi(self, run: Run, predicted: Tensor, truth: Tensor, before: Tensor, *, more: bool) -> None:
        """Eq. 13 over all prompts, and Eq. 14 on the running grid: what lies ahead of this step moves.

        Args:
            more: whether another call of this step will still add to the sums.
        """
        i = run.step
        self.sums.phi.setdefault(i, PhiSums()).update(predicted, truth, before)
        if not more:
            self._lockstep.meet(lambda: self._stretch(i, run.sigmas))

    def _stretch(self, i: int, sigmas: Tensor) -> None:
        sums = self.sums.phi[i]
        self.solved.phis[i] = phi(sums.error, sums.change)
        grid = self.solved.grid if self.solved.grid is not None else sigmas.double()
        self.solved.grid = stretch(grid, i, soften(self.solved.phis[i], self.method.strength))
