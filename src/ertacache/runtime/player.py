"""A profile at work: the controller that computes or predicts each step, and what it counts."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ertacache.core.offload import Offload, check_offload, history_for
from ertacache.core.predictor import Terms
from ertacache.errors import CacheConflict
from ertacache.pipelines.branches import split
from ertacache.pipelines.denoiser_call import Shapes, leading
from ertacache.pipelines.guidance import TwoBranchGuidance
from ertacache.pipelines.solvers import write_grid
from ertacache.profile.profile import Profile
from ertacache.runtime.coefficients import Coefficients
from ertacache.runtime.finite_watch import FiniteWatch
from ertacache.runtime.hooks import Controller, Run
from ertacache.runtime.matching import (
    check_boundary,
    check_call,
    check_context,
    check_grid,
    check_output,
    check_shape,
)
from ertacache.runtime.retarget import retargeted, warn_of_loss


@dataclass
class RunStats:
    """What the last run did; a new run starts it afresh.

    Attributes:
        runs: number of runs since the profile was applied.
        computed: number of calls that ran the denoiser, per context.
        predicted: number of calls that were answered without it, per context.
        extra_bytes: most bytes held for prediction between two steps on the device: kept outputs and inputs, and
            tensor coefficients.
        host_bytes: bytes of the host's memory that kept outputs and inputs are moved to, where that was asked for.
    """

    runs: int = 0
    computed: Counter[str] = field(default_factory=Counter[str])
    predicted: Counter[str] = field(default_factory=Counter[str])
    extra_bytes: int = 0
    host_bytes: int = 0


class Player(Controller):
    """Runs one profile: the schedule decides, formula (P) predicts.

    Args:
        keep_nan: go on where a prediction is NaN or infinite, for those who measure how far off it is; otherwise that
            raises PredictionDiverged.
    """

    def __init__(
        self,
        profile: Profile,
        stats: RunStats,
        offload_history: Offload = None,
        *,
        retarget: bool = False,
        keep_nan: bool = False,
    ) -> None:
        self.stats = stats
        self._keep_nan = keep_nan
        self._offload: Offload = check_offload(offload_history)
        self._retarget = retarget
        self._calibrated = profile
        self._warned = False
        self._use(profile)

    def _use(self, profile: Profile) -> None:
        self.profile = profile
        self.call_names = profile.provenance.contexts
        self.placeholders = profile.site == "guided"
        predictor = profile.predictor
        self._levels = {i: max(1, predictor.needed_levels(i)) for i in profile.schedule.predicted_steps}
        self.history = history_for(predictor.depths(), self._offload)
        self._stored = set(predictor.sources)
        # The newest input is kept only where something is measured from it.
        self._inputs = bool(predictor.d.any())
        self._coefficients = Coefficients(profile)
        self._reset()

    def _reset(self) -> None:
        self.history.clear()
        self._held = 0
        self._shapes = Shapes()
        self._placeholder: dict[str, Tensor] = {}
        self._returned: dict[str, tuple[int, ...]] = {}
        self._finite = FiniteWatch(self._calibrated.provenance.dtype)
        self._serving, self._fresh = -1, True
        self._guidance = TwoBranchGuidance(self.profile.provenance.contexts)

    def _fit_to(self, run: Run) -> None:
        """Another number of steps, where that was allowed: the profile for it, made from the calibrated one."""
        if not self._retarget or run.T == self._calibrated.schedule.T:
            if self.profile is not self._calibrated:
                self._use(self._calibrated)
            return
        if not torch.equal(run.sigmas, self.profile.base_sigmas):
            self._use(retargeted(self._calibrated, run.sigmas))
        if not self._warned:
            self._warned = True
            warn_of_loss(self._calibrated.schedule.T, run.T)

    def begin(self, run: Run) -> None:
        self._fit_to(run)
        self._reset()
        check_grid(self.profile, run)
        if not torch.equal(self.profile.sigmas, self.profile.base_sigmas):
            write_grid(run.scheduler, self.profile.sigmas)
        self.stats.runs += 1
        self.stats.computed.clear()
        self.stats.predicted.clear()
        self.stats.extra_bytes = self.stats.host_bytes = 0

    def _predicts(self, run: Run) -> bool:
        """Whether this step is predicted: a late start computes until the history it needs is there."""
        needed = self._levels.get(run.step)
        return needed is not None and self._held >= needed

    def call(self, run: Run, context: str, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        if len(run.contexts) == 1:
            self._follow(run)
        self._shapes.check(run.step, f"the latent of call {context!r}", x)
        if not (self._predicts(run) and self._answers(context)):
            self._finite.read(self.history)
            output = compute()
            self._record(run, context, x, output)
            return output
        self.stats.predicted[context] += 1
        if self.profile.site == "guided":
            return torch.zeros_like(self._placeholder[context], device=x.device)
        if self.profile.site == "output":
            x = leading(x, self.history.like(context)) if self._inputs else x
            return self._predict(run, context, x)
        return self._call_hidden(run, context, compute)

    def _follow(self, run: Run) -> None:
        """At the first call of a step: where another denoiser takes over, what the last one left means nothing."""
        self._fresh = run.denoiser != self._serving
        if run.steps_done > 0:
            check_boundary(self.profile, run, self._fresh)
        if self._fresh:
            self.history.clear()
            self._held = 0
            self._serving = run.denoiser

    def _answers(self, context: str) -> bool:
        """Whether a call of a predicted step can be answered: not one that the first step did not make (skip-layer
        guidance that starts later). At site guided any output of it will do, elsewhere it is not in the profile."""
        if self.profile.site == "guided":
            return context in self._placeholder
        return context in self.profile.predictor.targets and self.history.depth(context) > 0

    def _record(self, run: Run, context: str, x: Tensor, output: Tensor) -> None:
        self.stats.computed[context] += 1
        self._shapes.check(run.step, f"the output of call {context!r}", output)
        if run.steps_done == 0:
            check_context(self.profile, context)
            self._returned[context] = tuple(output.shape[1:])
        if self._fresh:
            self._guidance.observe(context, output)
        if self.profile.site == "guided" and context not in self._placeholder:
            # Not the tensor itself: it would be held all through, and the pipeline may write in what it is given.
            self._placeholder[context] = torch.empty_like(output, device="meta")
        stack = run.stack
        # Copies: the pipeline may change an output in place, and a CUDA graph overwrites it in its next call.
        if stack is not None:
            residual = stack.take_residual()
            if context in self._stored:
                self.history.push(context, residual, copy=True)
        x_kept = leading(x, output) if self._inputs and self.profile.site == "output" else None
        for branch, part in split(context, output, self._stored) if stack is None else ():
            self.history.push(branch, part, x_kept, copy=True)

    def _call_hidden(self, run: Run, context: str, compute: Callable[[], Tensor]) -> Tensor:
        stack = run.stack
        if stack is None:
            raise CacheConflict("site 'hidden' ran without its block stack; apply the profile again")
        like = self.history.like(context)
        residual = self._terms(run, context)(self.history, like)  # no d term here: Profile refuses one
        return self._finished(run.step, context, stack.with_residual(residual, compute))

    def solve(self, run: Run, output: Tensor, x: Tensor) -> Tensor:
        if self._fresh:
            check_call(self.profile, run, self._guidance.weight(output))
        if run.steps_done == 0:
            check_shape(self.profile, tuple(output.shape[1:]))
            for context, shape in self._returned.items():
                check_output(self.profile, context, shape)
        if self.profile.site != "guided":
            return output
        self._shapes.check(run.step, "what the solver receives", output)
        if self._predicts(run):
            return self._predict(run, "guided", x)
        self.history.push("guided", output, x if self._inputs else None, copy=True)
        return output

    def end_step(self, run: Run, x_next: Tensor) -> None:
        if not self._predicts(run):
            self._held += 1
        last = run.step == run.T - 1
        if last or not self._predicts(run):
            self.stats.extra_bytes = max(self.stats.extra_bytes, self._bytes_held())
            self.stats.host_bytes = max(self.stats.host_bytes, self.history.host_nbytes)
        if last:
            self._finite.read(self.history)
            self._reset()  # the decoder may need the room

    def _bytes_held(self) -> int:
        return self.history.nbytes + self._coefficients.nbytes

    def _predict(self, run: Run, target: str, x: Tensor) -> Tensor:
        return self._finished(run.step, target, self._terms(run, target)(self.history, x))

    def _terms(self, run: Run, target: str) -> Terms:
        return self._coefficients.terms(run.step, target, self.history.device)

    def _finished(self, step: int, target: str, value: Tensor) -> Tensor:
        """A prediction after its rectifier; NaN and infinity are refused at once or at the next computed step."""
        value = self._coefficients.correct(step, target, value)
        if not self._keep_nan:
            self._finite.note(step, target, value)
            if value.device.type == "cpu":
                self._finite.read(self.history)
        return value
