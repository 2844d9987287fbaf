"""The closed loop of a fit: the pipeline is fed what the finished profile would feed it, step by step.

Because the trajectory is the cached one, every decision and every fit sees the inputs that the profile will meet. All
prompts go through it in lockstep, so that a step is solved the moment its sums are complete.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ertacache.calibration.lockstep import Lockstep
from ertacache.calibration.solving import Seat, Solving
from ertacache.core.history import History
from ertacache.core.precision import widen
from ertacache.core.rectify import Affine
from ertacache.errors import CalibrationError
from ertacache.pipelines.affine_step import aimed_output
from ertacache.pipelines.branches import DIRECTION, branch_count, direction_of, split
from ertacache.pipelines.denoiser_call import Shapes, leading
from ertacache.pipelines.solvers import write_grid
from ertacache.profile.checks import SMALL
from ertacache.runtime.run import Controller, Run
from ertacache.runtime.small_model import SmallModel, check_answer


class ClosedLoop(Controller):
    """One pass over all prompts.

    Args:
        solving: what it solves.
        contexts: names of the denoiser calls of one step. branches: see `branches`.
        seats: one for each pipeline call, in the order of their turns.
        lockstep: of these calls.
        small: the model that the method calls at predicted steps, where it does.
    """

    replays = True

    def __init__(
        self,
        solving: Solving,
        contexts: tuple[str, ...],
        branches: tuple[str, ...],
        seats: list[Seat],
        lockstep: Lockstep,
        small: SmallModel | None = None,
    ) -> None:
        self.solving, self.contexts, self.branches = solving, contexts, branches
        self.seats, self.small, self._lockstep = seats, small, lockstep
        self.placeholders, self.takes_turns = not solving.method.needs_truth, True
        self.shared = lockstep.calls > 1

    def for_run(self, run: Run) -> Controller:
        return LoopRun(self, self.seats[self._lockstep.seat])


class LoopRun(Controller):
    """The run of one pipeline call.

    Args:
        loop: what all runs share. seat: what belongs to this one.
    """

    replays = True

    def __init__(self, loop: ClosedLoop, seat: Seat) -> None:
        self._loop, self._solving, self._seat, self._method = loop, loop.solving, seat, loop.solving.method
        self.placeholders = loop.placeholders
        seat.made = seat.steps = seat.small = 0

    def begin(self, run: Run) -> None:
        method = self._method
        sources = ("guided", *self._loop.contexts, *self._loop.branches)
        levels = dict.fromkeys(sources, max(1, method.levels))
        self._history = History({**levels, DIRECTION: max(1, method.directions)})
        self._previous: dict[str, Tensor] = {}
        self._outputs: dict[str, Tensor] = {}
        self._placeholder: dict[str, Tensor] = {}
        self._shapes = Shapes()
        self._serving, self._worked = -1, False
        self._grid: Tensor | None = None
        if self._solving.solved.grid is not None:
            self._write_grid(run)
        elif method.strength:
            write_grid(run.scheduler, run.sigmas)  # the same, ready to be changed in the middle of the run

    def _write_grid(self, run: Run) -> None:
        if self._solving.solved.grid is not None and self._solving.solved.grid is not self._grid:
            self._grid = self._solving.solved.grid
            write_grid(run.scheduler, self._grid.float())

    def _given(self, run: Run) -> bool:
        """Whether what the solver receives at this step is known without a call."""
        return 0 < run.step < self._solving.known

    def _answers(self, run: Run, context: str) -> bool:
        """Whether a placeholder will do, since `solve` knows better."""
        if not self.placeholders or context not in self._placeholder:
            return False
        schedule = self._method.schedule
        predicted = schedule is not None and not schedule.computed[run.step] and self._history.depth("guided") > 0
        return predicted or self._given(run)

    def call(self, run: Run, context: str, x: Tensor, compute: Callable[..., Tensor]) -> Tensor:
        if run.denoiser != self._serving:
            self._history.clear()  # what one denoiser made says nothing of the next one
            self._serving = run.denoiser
        branches = branch_count(x, run.batch)
        self._shapes.check(run.step, f"the latent of call {context!r}", x, branches)
        if self._answers(run, context):
            like = self._placeholder[context]
            if self._loop.small is not None and run.step in self._method.small:
                answer = compute(self._loop.small.called(run.denoiser))
                return check_answer(answer, (len(x), *like.shape[1:]))
            return torch.zeros((len(x), *like.shape[1:]), dtype=like.dtype, device=x.device)
        truth = compute()
        if self._loop.shared:
            truth = truth.clone()  # a CUDA graph overwrites it in its next call, which is another prompt's
        self._worked = True
        self._shapes.check(run.step, f"the output of call {context!r}", truth, branches)
        self._outputs[context] = truth
        if context not in self._loop.contexts:
            return truth  # a call that the first step does not make is computed wherever it comes
        if self._method.site == "output":
            return self._observe(run, context, truth, leading(x, truth) if self._method.residual else x)
        if self._method.site == "hidden":
            return self._observe_hidden(run, context, truth, compute)
        self._placeholder.setdefault(context, torch.empty_like(truth, device="meta"))
        if self._method.branches and self._keeps(run.step):
            for branch, part in split(context, truth, self._loop.branches):
                self._history.push(branch, part, copy=True)
        return truth

    def _keeps(self, i: int) -> bool:
        return self._method.schedule is not None and self._method.schedule.computed[i]

    def solve(self, run: Run, output: Tensor, x: Tensor) -> Tensor:
        self._shapes.check(run.step, "what the solver receives", output)
        if self._method.site != "guided":
            return output
        if self._given(run) and self._keeps(run.step) and self._seat.known is not None:
            output = self._seat.known.outputs[run.step].to(output.device)
        return self._observe(run, "guided", output, x)

    def end_step(self, run: Run, x_next: Tensor) -> None:
        self._seat.made += 1
        self._seat.steps += self._worked
        self._worked = False
        self._outputs.clear()
        if run.step == run.T - 1:
            self._seat.final = x_next.to("cpu", torch.float32, copy=True)
            if self._seat.kept is not None:
                self._seat.kept.latents[-1].copy_(x_next)

    def _observe(self, run: Run, target: str, truth: Tensor, x: Tensor) -> Tensor:
        """What the method uses in place of `truth` at this step; sums are taken on the way."""
        self._continue(target, truth)
        if self._is_computed(run, target, lambda: (self._reused(target, x), truth)):
            corrected = self._corrected(run, truth, x)
            self._keep(run, target, corrected, x, truth)
            return corrected
        base = self._helped(truth) if run.step in self._method.small else self._reused(target, x)
        predicted = self._fitted(run, target, base, truth, x)
        if self._method.needs_truth:
            self._measure_phi(run, target, predicted, truth)
            predicted = self._rectified(run.step, target, predicted, truth)
            self._previous[target] = truth.clone()
        return predicted.to(truth.dtype)

    def _is_computed(self, run: Run, target: str, errors: Callable[[], tuple[Tensor, Tensor]]) -> bool:
        first = self._method.site == "guided" or len(run.contexts) == 1
        return self._solving.is_computed(run, self._seat, self._history.depth(target) == 0, first, errors)

    def _corrected(self, run: Run, truth: Tensor, x: Tensor) -> Tensor:
        """A computed output as the profile will hand it to the solver."""
        if (how := self._method.correcting) is None or self._method.site != "guided":
            return truth

        def exact() -> Tensor:
            if how.fit != "trajectory" and self._seat.exact is not None:
                return self._seat.exact(run.step).to(truth.device)
            aimed = self._landing(run, x)
            return truth if aimed is None else aimed

        return self._solving.corrected(run.step, truth, exact)

    def _keep(self, run: Run, target: str, truth: Tensor, x: Tensor, raw: Tensor) -> None:
        """Hold a computed output, for the steps after it, and as it came for a run that will begin like this one."""
        self._history.push(target, truth, x, copy=True)  # a CUDA graph overwrites it in its next call
        self._previous[target] = truth.clone()
        kept, direction = self._seat.kept, None
        if self._method.directions:
            direction = self._direction(run, truth)
            self._history.push(DIRECTION, direction, copy=True)
        if kept is not None and target == "guided":
            kept.outputs[run.step].copy_(raw)
            if direction is not None and kept.directions is not None:
                kept.directions[run.step].copy_(direction)

    def _direction(self, run: Run, guided: Tensor) -> Tensor:
        known = self._seat.known
        if self._given(run) and known is not None and known.directions is not None:
            return known.directions[run.step].to(guided.device)
        found = direction_of(self._outputs, guided)
        if found is None:
            raise CalibrationError(
                f"step {run.step} makes the calls {sorted(self._outputs)}, which are no two branches of guidance; "
                "calibrate without the guidance direction"
            )
        return found

    def _continue(self, target: str, output: Tensor) -> None:
        """Where guidance has come or gone, a batch of another size continues nothing."""
        if self._history.depth(target) and len(self._history.like(target)) != len(output):
            self._history.clear()

    def _reused(self, target: str, x: Tensor) -> Tensor:
        """What reuse predicts: the newest output, or the newest residual put on x (Eq. 5-6)."""
        newest = widen(self._history.outputs(target)[0])
        return newest + (widen(x) - widen(self._history.input(target))) if self._method.residual else newest

    def _helped(self, answer: Tensor) -> Tensor:
        """What the small model's guided output [B, *] predicts by itself; it is a source of the fit as well."""
        self._history.push(SMALL, answer, copy=True)
        self._seat.small += 1
        return widen(answer)

    def _observe_hidden(self, run: Run, context: str, truth: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        stack = run.stack
        if stack is None or stack.residual is None:
            raise CalibrationError(
                "site 'hidden' needs the blocks of the denoiser, which did not run in this call; use site 'output'"
            )
        residual = stack.residual
        self._continue(context, residual)
        if self._is_computed(run, context, lambda: (self._history.outputs(context)[0], residual)):
            self._history.push(context, residual)
            self._previous[context] = truth.clone()
            return truth
        truth = truth.clone()  # the head runs again
        predicted = stack.with_residual(self._history.outputs(context)[0], compute)
        self._measure_phi(run, context, predicted, truth)
        self._previous[context] = truth
        return self._rectified(run.step, context, predicted, truth).to(truth.dtype)

    def _fitted(self, run: Run, target: str, base: Tensor, truth: Tensor, x: Tensor) -> Tensor:
        if not self._method.fitted:
            return base
        small, depth = run.step in self._method.small, self._history.depth(target)
        names = self._method.features(target, self._loop.branches, depth, small=small)
        features = [widen(self._history.output(source, level)) for source, level in names]
        weights = self._solving.weights((run.step, target), features, base, lambda: self._goal(run, truth, x))
        return base + sum((float(w) * f for w, f in zip(weights, features, strict=True)), torch.zeros_like(base))

    def _goal(self, run: Run, truth: Tensor, x: Tensor) -> Tensor:
        """What a fit aims at: v_i, or the v with which the solver lands on the recorded next latent."""
        if self._method.aim == "step" or self._seat.trajectory is None:
            return truth
        aimed = self._landing(run, x)
        # A step that hardly depends on what the solver receives: any output does, and reuse is one.
        return self._reused("guided", x) if aimed is None else aimed

    def _landing(self, run: Run, x: Tensor) -> Tensor | None:
        """The v with which the solver lands on the recorded next latent; None where none does."""
        if self._seat.trajectory is None:
            return None
        sigmas = run.sigmas if self._grid is None else self._grid.float()
        return aimed_output(run.scheduler, run.step, sigmas, x, self._seat.trajectory(run.step + 1).to(x.device))

    def _rectified(self, i: int, target: str, predicted: Tensor, truth: Tensor) -> Tensor:
        if self._method.rectifier is None:
            return predicted
        affine = self._solving.rectifier((i, target), predicted, truth)
        affine = Affine(affine.kappa.to(predicted.device), affine.beta.to(predicted.device))
        return affine.apply(predicted) if self._method.activation == "linear" else affine.apply_sigmoid(predicted)

    def _measure_phi(self, run: Run, target: str, predicted: Tensor, truth: Tensor) -> None:
        if self._method.strength:
            more = self._method.site != "guided" and len(run.contexts) < len(self._loop.contexts)
            self._solving.measure_phi(run, predicted, truth, self._previous[target], more=more)
            self._write_grid(run)
