"""The calibration controller: it computes the denoiser at every step and feeds the pipeline what a plan would.

Because the trajectory is the cached one, every decision and every fit sees the inputs that the finished profile will
meet. With all calibration prompts in one batch (lockstep) a step is solved the moment its sums are complete; with
prompts in several batches, each pass uses what the pass before it solved.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ertacache.calibration.plan import Plan, Solved, feature_names, largest_change
from ertacache.calibration.sums import PhiSums, Sums
from ertacache.core.fit import prompt_weights
from ertacache.core.history import History
from ertacache.core.policy import RelativeL1, decide
from ertacache.core.precision import widen
from ertacache.core.rectify import Affine
from ertacache.core.timesteps import adjust, phi, soften, stretch
from ertacache.errors import CalibrationError
from ertacache.pipelines.affine_step import aimed_output
from ertacache.pipelines.branches import branch_count, split
from ertacache.pipelines.denoiser_call import Shapes, leading
from ertacache.pipelines.solvers import write_grid
from ertacache.runtime.run import Controller, Run


class ClosedLoop(Controller):
    """One pass of a plan over batches of prompts.

    Args:
        plan: what to do.
        contexts: names of the denoiser calls of one step.
        branches: names of the outputs for guidance that they make; see `branches`.
        before: what the last pass solved; None in lockstep, where each step is solved at once.
        grid: time grid [T+1] to run on instead of the solver's own.

    Attributes:
        reference_l1: [T, B] ‖v − x‖₁ of the uncached run on the batch under way; for a threshold only.
        trajectory: [T+1, B, *] latents of that run; for a plan that aims at them only.
        sums: over the batches so far.
    """

    replays = True

    def __init__(
        self,
        plan: Plan,
        contexts: tuple[str, ...],
        branches: tuple[str, ...] = (),
        *,
        before: Solved | None = None,
        grid: Tensor | None = None,
    ) -> None:
        self.plan = plan
        self.contexts = contexts
        self.branches = branches
        self.before = before
        self.solved = Solved(grid=grid)
        self.reference_l1 = torch.zeros(0, 0)
        self.trajectory = torch.zeros(0)
        self.sums = Sums(plan.rectifier or "scalar", plan.channel_axis)

    def begin(self, run: Run) -> None:
        self._history = History(max(1, self.plan.levels))
        self._previous: dict[str, Tensor] = {}
        self._shapes = Shapes()
        self._serving = -1
        grid = self.before.grid if self.before is not None and self.before.grid is not None else self.solved.grid
        if grid is not None:
            write_grid(run.scheduler, grid.float())
        elif self.plan.strength:
            write_grid(run.scheduler, run.sigmas)  # the same, ready to be changed in the middle of the run

    def call(self, run: Run, context: str, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        if run.denoiser != self._serving:
            self._history.clear()  # what one denoiser made says nothing of the next one
            self._serving = run.denoiser
        truth = compute()
        branches = branch_count(x, run.batch)
        self._shapes.check(run.step, f"the latent of call {context!r}", x, branches)
        self._shapes.check(run.step, f"the output of call {context!r}", truth, branches)
        if context not in self.contexts:
            return truth  # a call that the first step does not make is computed wherever it comes
        if self.plan.level == "output":
            return self._observe(run, context, truth, leading(x, truth) if self.plan.residual else x)
        if self.plan.level == "hidden":
            return self._observe_hidden(run, context, truth, compute)
        if self.plan.branches and self._keeps(run.step):
            for branch, part in split(context, truth, self.branches):
                self._history.push(branch, part, copy=True)
        return truth

    def _keeps(self, i: int) -> bool:
        return self.plan.schedule is not None and self.plan.schedule.computed[i]

    def solve(self, run: Run, output: Tensor, x: Tensor) -> Tensor:
        self._shapes.check(run.step, "what the solver receives", output)
        return self._observe(run, "guided", output, x) if self.plan.level == "guided" else output

    def _observe(self, run: Run, target: str, truth: Tensor, x: Tensor) -> Tensor:
        """What the plan uses in place of `truth` at this step; sums are taken on the way."""
        self._continue(target, truth)
        if self._is_computed(run, target, lambda: self._reused(target, x), truth):
            self._history.push(target, truth, x, copy=True)  # a CUDA graph overwrites it in its next call
            self._previous[target] = truth.clone()
            return truth
        predicted = self._fitted(run.step, target, self._reused(target, x), self._goal(run, truth, x))
        self._measure_phi(run, target, predicted, truth)
        used = self._rectified(run.step, target, predicted, truth)
        self._previous[target] = truth.clone()
        return used.to(truth.dtype)

    def _continue(self, target: str, output: Tensor) -> None:
        """Where guidance has come or gone, a batch of another size continues nothing."""
        if self._history.depth(target) and len(self._history.like(target)) != len(output):
            self._history.clear()

    def _reused(self, target: str, x: Tensor) -> Tensor:
        """What reuse predicts: the newest output, or the newest residual put on x (Eq. 5-6)."""
        newest = widen(self._history.outputs(target)[0])
        return newest + (widen(x) - widen(self._history.input(target))) if self.plan.residual else newest

    def _observe_hidden(self, run: Run, context: str, truth: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        stack = run.stack
        if stack is None or stack.residual is None:
            raise CalibrationError(
                "site 'hidden' needs the blocks of the denoiser, which did not run in this call; use site 'output'"
            )
        residual = stack.residual
        self._continue(context, residual)
        if self._is_computed(run, context, lambda: self._history.outputs(context)[0], residual):
            self._history.push(context, residual)
            self._previous[context] = truth.clone()
            return truth
        truth = truth.clone()  # the head runs again
        predicted = stack.with_residual(self._history.outputs(context)[0], compute)
        self._measure_phi(run, context, predicted, truth)
        self._previous[context] = truth
        return self._rectified(run.step, context, predicted, truth).to(truth.dtype)

    def _is_computed(self, run: Run, target: str, reused: Callable[[], Tensor], true: Tensor) -> bool:
        """Algorithm 2 where no schedule is given: ‖reused − true‖₁ is the error of what the step would use.

        Without history (at the first step of a denoiser, at a call that the last steps did not make) there is nothing
        to use.
        """
        i, fresh = run.step, self._history.depth(target) == 0
        if self.plan.schedule is not None:
            return fresh or self.plan.schedule.computed[i]
        decided = self.solved.computed if self.before is None else self.before.computed
        if i in decided:
            return fresh or decided[i]  # also a later call of the step, which follows the first
        first = self.plan.level == "guided" or len(run.contexts) == 1
        if first and not fresh:
            sums = self.sums.policy.setdefault(i, RelativeL1())
            sums.update(reused(), true, self.reference_l1[i])
        if self.before is not None:
            return True  # undecided in this pass; `finish` decides
        self.solved.computed[i] = fresh or not decide(i, run.T, self.sums.policy[i].value, self.plan.threshold)
        return self.solved.computed[i]

    def _goal(self, run: Run, truth: Tensor, x: Tensor) -> Tensor:
        """What a fit aims at: v_i, or the v with which the solver lands on the uncached run's next latent."""
        if self.plan.aim == "step":
            return truth
        x_next = self.trajectory[run.step + 1].to(x.device)
        aimed = aimed_output(run.scheduler, run.step, run.sigmas, x, x_next)
        return truth if aimed is None else aimed

    def _fitted(self, i: int, target: str, base: Tensor, goal: Tensor) -> Tensor:
        if self.plan.levels == 0:
            return base
        features = [widen(f) for f in self._features(target)]
        left = widen(goal) - base
        sums = self.sums.ridge_at((i, target), len(features))
        sums.update(features, left, prompt_weights(left, goal))
        if self.before is None:
            self.solved.weights[i, target] = sums.solve(self.plan.ridge)
            weights = self.solved.weights[i, target]
        else:
            weights = self.before.weights.get((i, target), torch.zeros(len(features)))
        return base + sum((float(w) * f for w, f in zip(weights, features, strict=True)), torch.zeros_like(base))

    def _features(self, target: str) -> list[Tensor]:
        names = feature_names(self.plan, target, self.branches, self._history.depth(target))
        return [self._history.outputs(source)[level] for source, level in names]

    def _rectified(self, i: int, target: str, predicted: Tensor, truth: Tensor) -> Tensor:
        plan = self.plan
        if plan.rectifier is None:
            return predicted
        key = (i, target)
        sums = self.sums.affine_at(key)
        sums.update(predicted, widen(predicted) - widen(truth))
        if self.before is None:
            self.solved.affine[key] = sums.solve(plan.rectifier_ridge)
            affine = self.solved.affine[key]
        else:
            affine = self.before.affine.get(key)
        if affine is None:
            return predicted
        affine = Affine(affine.kappa.to(predicted.device), affine.beta.to(predicted.device))
        return affine.apply(predicted) if plan.activation == "linear" else affine.apply_sigmoid(predicted)

    def _measure_phi(self, run: Run, target: str, predicted: Tensor, truth: Tensor) -> None:
        if self.plan.strength == 0:
            return
        sums = self.sums.phi.setdefault(run.step, PhiSums())
        sums.update(predicted, truth, self._previous[target])
        if self.before is None and not self._more_calls(run):
            self.solved.phis[run.step] = phi(sums.error, sums.change)
            self._stretch(run)

    def _more_calls(self, run: Run) -> bool:
        """Whether another call of this step will still add to the sums."""
        return self.plan.level != "guided" and len(run.contexts) < len(self.contexts)

    def _stretch(self, run: Run) -> None:
        """Eq. 13-14 on the running grid: what lies ahead of this step moves, what is done stays."""
        grid = self.solved.grid if self.solved.grid is not None else run.sigmas.double()
        self.solved.grid = stretch(grid, run.step, soften(self.solved.phis[run.step], self.plan.strength))
        write_grid(run.scheduler, self.solved.grid.float())

    def finish(self, sigmas: Tensor) -> Solved:
        """What this pass over all batches solved; in lockstep that is already there.

        Args:
            sigmas: [T+1] the solver's own grid.
        """
        if self.before is None:
            return self.solved
        solved, sums = self.solved, self.sums
        solved.weights = {key: part.solve(self.plan.ridge) for key, part in sums.ridge.items()}
        solved.affine = {key: part.solve(self.plan.rectifier_ridge) for key, part in sums.affine.items()}
        solved.phis = {i: phi(part.error, part.change) for i, part in sums.phi.items()}
        if self.plan.strength and self.plan.schedule is not None:
            solved.grid = adjust(sigmas, self.plan.schedule, solved.phis, self.plan.strength)
        solved.computed = self._decide_next(len(sigmas) - 1) if self.plan.schedule is None else {}
        solved.change = largest_change(self.before, solved)
        return solved

    def _decide_next(self, T: int) -> dict[int, bool]:
        """Decisions that this pass could take: up to and including the next step that is predicted."""
        decided = {0: True, **(self.before.computed if self.before else {})}
        for i in range(max(decided) + 1, T):
            # Without sums there was nothing to use: another denoiser takes over.
            decided[i] = i not in self.sums.policy or not decide(i, T, self.sums.policy[i].value, self.plan.threshold)
            if not decided[i]:
                break
        return decided
