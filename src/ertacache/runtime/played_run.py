"""One run under a profile: which steps are computed, which predicted, and what is kept from step to step."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ertacache.core.history import History
from ertacache.errors import CacheConflict, ErtacacheError, ProfileMismatch, UnsupportedPipeline
from ertacache.pipelines.branches import DIRECTION, split
from ertacache.pipelines.denoiser_call import Shapes, leading
from ertacache.pipelines.guidance import TwoBranchGuidance, Weighed
from ertacache.pipelines.solvers import write_grid
from ertacache.runtime.compensating import Compensating
from ertacache.runtime.finite_watch import FiniteWatch, Made, at_once
from ertacache.runtime.matching import (
    check_boundary,
    check_branches,
    check_calls,
    check_context,
    check_embedded,
    check_options,
    check_output,
    check_shape,
    check_weight,
    direction_at,
)
from ertacache.runtime.plain_run import Otherwise
from ertacache.runtime.run import Controller, Run
from ertacache.runtime.run_stats import RunStats, of_one_run
from ertacache.runtime.scales import Scales


class Plays(Protocol):
    """What a run needs of the player that all runs of a pipeline share."""

    stats: RunStats
    keep_nan: bool
    otherwise: Otherwise

    def release(self, scales: Scales, history: History) -> None: ...


class PlayedRun(Controller):
    """Everything that a run under a profile keeps.

    Args:
        scales: the profiles for the grid of the run. Where there are several, nothing is predicted before the guidance
            of the run has told which of them it is, or between which.
        history: empty.
    """

    replays = True

    def __init__(self, scales: Scales, history: History, player: Plays) -> None:
        self.profile, self._coefficients = scales.at(0)
        self.history, self.stats = history, of_one_run()
        self._player, self._scales, self._chosen = player, scales, len(scales.profiles) == 1
        profile, predictor = self.profile, scales.predictor
        self.call_names = profile.provenance.contexts
        self.placeholders = profile.site == "guided"
        self._compensating = Compensating()
        self._levels = {i: max(1, predictor.needed_levels(i)) for i in profile.schedule.predicted_steps}
        # Where every step is computed nothing is predicted from anything.
        self._stored = set(predictor.sources) if self._levels else set[str]()
        # The newest input is kept only where something is measured from it.
        self._inputs = bool(predictor.d.any())
        self._held = 0
        self._predicts = False  # the step under way
        self._shapes = Shapes()
        self._placeholder: dict[str, Tensor] = {}
        self._returned: dict[str, tuple[int, ...]] = {}
        self._branches: dict[str, Tensor] = {}
        self._finite = FiniteWatch(profile.provenance.dtype)
        self._serving, self._fresh = -1, True
        self._guidance = TwoBranchGuidance(profile.provenance.contexts)
        self._weighed: tuple[int, Weighed] | None = None
        self._embedded: Tensor | None = None
        self._answered = False
        self._late: ErtacacheError | None = None

    def begin(self, run: Run) -> None:
        if not torch.equal(self.profile.sigmas, self.profile.base_sigmas):
            write_grid(run.scheduler, self.profile.sigmas)

    def call(self, run: Run, context: str, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        if len(run.contexts) == 1:
            self._start_step(run)
        try:
            branches = check_branches(self.profile, run, context, x)
            self._shapes.check(run.step, f"the latent of call {context!r}", x, branches)
        except (ProfileMismatch, UnsupportedPipeline) as error:
            if not self._answered:
                raise
            return self._compute_last(context, error, compute)
        if not (self._predicts and self._answers(context, x)):
            self._finite.read(self.history)
            self._check_weight()
            self._check_embedded(run)
            output = compute()
            self._record(run, context, x, output, branches)
            return output
        self._answered = True
        self.stats.predicted[context] += 1
        if self.profile.site == "guided":
            like = self._placeholder[context]
            return torch.zeros((len(x), *like.shape[1:]), dtype=like.dtype, device=x.device)
        if self.profile.site == "output":
            x = leading(x, self.history.like(context)) if self._inputs else x
            return self._predict(run, context, x)
        return self._call_hidden(run, context, compute)

    def _compute_last(self, context: str, error: ErtacacheError, compute: Callable[[], Tensor]) -> Tensor:
        """A call that does not suit, in a step that was begun as a predicted one and ends as that."""
        self._late = self._late or error
        self.stats.computed[context] += 1
        return compute()

    def _start_step(self, run: Run) -> None:
        """Whether it is predicted: a late start computes until the history it needs is there. Where another denoiser
        takes over, what the last one left means nothing."""
        if self._late is not None:
            raise self._late
        self._branches.clear()
        self._fresh = run.denoiser != self._serving
        if run.steps_done > 0:
            check_boundary(self.profile, run, self._fresh)
        if self._fresh:
            self.history.clear()
            self._held = 0
            self._compensating.forget()
            self._serving = run.denoiser
        if not self._chosen:
            self._check_weight()
        needed = self._levels.get(run.step)
        self._predicts = self._chosen and needed is not None and self._held >= needed

    def _answers(self, context: str, x: Tensor) -> bool:
        """Whether a call of a predicted step can be answered: not one that the first step did not make (skip-layer
        guidance that starts later). At site guided any output of it will do, elsewhere it is not in the profile, nor
        where the batch has changed since it was computed."""
        if self.profile.site == "guided":
            return context in self._placeholder
        known = context in self.profile.predictor.targets and self.history.depth(context) > 0
        return known and (self.profile.site == "hidden" or len(self.history.like(context)) == len(x))

    def _record(self, run: Run, context: str, x: Tensor, output: Tensor, branches: int) -> None:
        self.stats.computed[context] += 1
        self._shapes.check(run.step, f"the output of call {context!r}", output, branches)
        if run.steps_done == 0:
            check_context(self.profile, context)
            self._returned[context] = tuple(output.shape[1:])
        if DIRECTION in self._stored:  # a copy, as of all that is kept
            self._branches[context] = output.clone()
        self._guidance.observe(context, self._branches.get(context, output))
        if self.profile.site == "guided" and context not in self._placeholder:
            # Not the tensor itself: it would be held all through, and the pipeline may write in what it is given.
            self._placeholder[context] = torch.empty_like(output, device="meta")
        stack = run.stack
        # Copies: the pipeline may change an output in place, and a CUDA graph overwrites it in its next call.
        if stack is not None:
            residual = stack.take_residual()
            if context in self._stored:
                self._push(context, residual)
        x_kept = leading(x, output) if self._inputs and self.profile.site == "output" else None
        for branch, part in split(context, output, self._stored) if stack is None else ():
            self._push(branch, part, x_kept)

    def _push(self, source: str, output: Tensor, x: Tensor | None = None) -> None:
        if self.history.depth(source) and len(self.history.like(source)) != len(output):
            self.history.clear()  # guidance has come or gone: a batch of another size continues none
        self.history.push(source, output, x, copy=True)

    def _call_hidden(self, run: Run, context: str, compute: Callable[[], Tensor]) -> Tensor:
        stack = run.stack
        if stack is None:
            raise CacheConflict("site 'hidden' ran without its block stack; apply the profile again")
        like = self.history.like(context)
        terms = self._coefficients.terms(run.step, context, self.history.device)
        residual = terms(self.history, like)  # no d term here: Profile refuses one
        return self._finished(run.step, context, stack.with_residual(residual, compute))

    def solve(self, run: Run, output: Tensor, x: Tensor) -> Tensor:
        self._check_step(run, output)
        if self.profile.site != "guided":
            return output
        self._shapes.check(run.step, "what the solver receives", output)
        if self._predicts:
            self._compensating.forget()
            return self._predict(run, "guided", x)
        if self._chosen:
            raw, output = output, self._compensating.corrected(run.step, self._coefficients, output)
            output = output if output is raw else self._watched(run.step, "correction", "guided", output)
        if not self._stored:
            return output
        if DIRECTION in self._stored:
            self.history.push(DIRECTION, direction_at(run, self._branches, output))
        self.history.push("guided", output, x if self._inputs else None, copy=True)
        return output

    def _check_step(self, run: Run, output: Tensor) -> None:
        """What shows at the end of a step. Where that is a predicted one, the error waits for the next."""
        if run.steps_done == 0:
            check_options(self.profile, run)
        if self._answered:
            try:
                check_calls(self.profile, run)
            except ErtacacheError as error:
                self._late = self._late or error
            return
        check_calls(self.profile, run)
        self._weigh(run, output)
        if run.steps_done == 0:
            check_shape(self.profile, tuple(output.shape[1:]))
            for context, shape in self._returned.items():
                check_output(self.profile, context, shape)

    def _weigh(self, run: Run, output: Tensor) -> None:
        weighed = self._guidance.weigh(output)
        self._weighed = None if weighed is None else (run.step, weighed)
        if self._fresh or at_once(output):
            self._check_weight()

    def _check_weight(self) -> None:
        """The guidance of the computed step before: on a device, at the next one, which takes longer than to ask."""
        if self._weighed is not None:
            (step, weighed), self._weighed = self._weighed, None
            weight = weighed.read()
            if not self._scales.embedded:
                self._choose(step, weight)
            check_weight(self.profile, step, weight)

    def _check_embedded(self, run: Run) -> None:
        asked = self._scales.embedded and not self._chosen
        if asked or run.embedded is not self._embedded:  # the same tensor in every step of the pipelines there are
            self._embedded, weight = run.embedded, run.guidance
            if asked:
                self._choose(run.step, weight)
            check_embedded(self.profile, weight)

    def _choose(self, step: int, weight: float | None) -> None:
        """The profile for the guidance weight of a computed step, once it tells which."""
        if not self._chosen and (place := self._scales.place(step, weight)) is not None:
            self.profile, self._coefficients = self._scales.at(place)
            self._chosen = True

    def end_step(self, run: Run, x_next: Tensor) -> None:
        if not self._predicts:
            self._held += 1
        last = run.step == run.T - 1
        if last or not self._predicts:
            kept = self.history.nbytes + self._compensating.nbytes
            self.stats.extra_bytes = max(self.stats.extra_bytes, kept + self._coefficients.nbytes)
            self.stats.host_bytes = max(self.stats.host_bytes, self.history.host_nbytes)
        if last:
            self._finite.read(self.history)
            self._end_late()
        self._answered = False
        self._player.stats.show(self.stats)

    def _end_late(self) -> None:
        """What would be said at a next step, and there is none."""
        try:
            self._check_weight()
        except ProfileMismatch as error:
            self._late = self._late or error
        if self._late is not None:
            self._player.otherwise(self.stats, self._late)
        elif not self._chosen:
            self.stats.reason = "guidance weight: no computed step told it, so every step was computed"

    def end(self, run: Run) -> None:
        """The decoder may need the room."""
        self._player.release(self._scales, self.history)
        self._weighed = None
        self._compensating.forget()

    def without(self, run: Run, error: ErtacacheError, *, by_need: bool) -> Controller:
        if self._answered and not by_need:
            raise error  # what the pipeline holds of this step is a placeholder
        return self._player.otherwise(self.stats, error, by_need=by_need)

    def _predict(self, run: Run, target: str, x: Tensor) -> Tensor:
        return self._finished(
            run.step, target, self._coefficients.terms(run.step, target, self.history.device)(self.history, x)
        )

    def _finished(self, step: int, target: str, value: Tensor) -> Tensor:
        """A prediction after its rectifier; NaN and infinity are refused at once or at the next computed step."""
        return self._watched(step, "prediction", target, self._coefficients.correct(step, target, value))

    def _watched(self, step: int, what: Made, target: str, value: Tensor) -> Tensor:
        if not self._player.keep_nan:
            self._finite.note(step, target, value, what)
            if at_once(value):
                self._finite.read(self.history)
        return value
