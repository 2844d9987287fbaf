"""Runs at a speed-up that nothing was calibrated for: evenly spaced computed steps, a damped line between them."""

from collections.abc import Callable

import torch
from torch import Tensor

from ertacache.core.history import History
from ertacache.core.offload import Offload, check_offload, history_for
from ertacache.errors import ErtacacheError
from ertacache.pipelines.branches import branch_count
from ertacache.pipelines.denoiser_call import Shapes
from ertacache.runtime.finite_watch import FiniteWatch, at_once
from ertacache.runtime.plain_run import OnMismatch, Otherwise, PlainRun
from ertacache.runtime.run import Controller, Run
from ertacache.runtime.run_stats import RunStats, of_one_run
from ertacache.runtime.uncalibrated import DampedLine, check_speedup, nothing_measured, nothing_to_save, schedule_for

_SOURCE = "guided"


class EvenPlayer(Controller):
    """Gives every run an `EvenRun` on its own grid.

    Args:
        speedup: T / K, see `uncalibrated.schedule_for`.
        stats: counters that follow the runs.
        on_mismatch: "compute" goes on without a prediction where the latent changes its shape within a run.

    Raises:
        InvalidArgument: no speed-up, or another `on_mismatch`.
    """

    replays = True

    def __init__(
        self, speedup: float, stats: RunStats, offload_history: Offload = None, on_mismatch: OnMismatch = "refuse"
    ) -> None:
        self._speedup, self.stats, self._otherwise = check_speedup(speedup), stats, Otherwise(stats, on_mismatch)
        self._offload: Offload = check_offload(offload_history)

    def for_run(self, run: Run) -> Controller:
        own = of_one_run()
        own.reason = nothing_to_save(run.T, self._speedup)
        if own.reason is not None:
            return PlainRun(self.stats, own)
        line = DampedLine(run.sigmas, schedule_for(run.T, self._speedup))
        own.advice = nothing_measured(line.schedule)
        return EvenRun(line, history_for(2, self._offload), self.stats, own, self._otherwise)

    def passed_by(self) -> None:
        self.stats.outside += 1


class EvenRun(Controller):
    """One run, predicted at what the solver receives, whatever the pipeline makes it of.

    Args:
        line: on the run's own grid. history: empty, of two levels.
        stats: of the pipeline. own: of the run.
        otherwise: what goes on where nothing can be predicted any longer.
    """

    replays = True
    placeholders = True

    def __init__(
        self, line: DampedLine, history: History, stats: RunStats, own: RunStats, otherwise: Otherwise
    ) -> None:
        self._otherwise = otherwise
        self._line, self.history, self._stats, self._own = line, history, stats, own
        self._steps: list[int] = []  # of which the history has the outputs, newest first
        self._placeholder: dict[str, Tensor] = {}
        self._shapes, self._finite = Shapes(), FiniteWatch("another dtype")
        self._serving = -1
        self._predicting = False

    def call(self, run: Run, context: str, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        if len(run.contexts) == 1:
            self._shapes.check(run.step, f"the latent of call {context!r}", x, branch_count(x, run.batch))
            self._start_step(run)
        if self._predicting and context in self._placeholder:
            self._own.predicted[context] += 1
            like = self._placeholder[context]
            return torch.zeros((len(x), *like.shape[1:]), dtype=like.dtype, device=x.device)
        self._finite.read(self.history)
        output = compute()
        self._own.computed[context] += 1
        self._placeholder.setdefault(context, torch.empty_like(output, device="meta"))
        return output

    def _start_step(self, run: Run) -> None:
        if run.denoiser != self._serving:  # what another one left means nothing
            self.history.clear()
            self._steps.clear()
            self._serving = run.denoiser
        self._predicting = bool(self._steps) and not self._line.schedule.computed[run.step]

    def solve(self, run: Run, output: Tensor, x: Tensor) -> Tensor:
        self._shapes.check(run.step, "what the solver receives", output)
        if not self._predicting:
            self.history.push(_SOURCE, output, copy=True)
            self._steps = [run.step, *self._steps[:1]]
            return output
        value = self._line(run.step, self._steps, self.history.outputs(_SOURCE))
        self._finite.note(run.step, _SOURCE, value)
        if at_once(value):
            self._finite.read(self.history)
        return value

    def end_step(self, run: Run, x_next: Tensor) -> None:
        if run.step == run.T - 1:
            self._finite.read(self.history)
        self._own.extra_bytes = max(self._own.extra_bytes, self.history.nbytes)
        self._own.host_bytes = max(self._own.host_bytes, self.history.host_nbytes)
        self._stats.show(self._own)

    def end(self, run: Run) -> None:
        self.history.clear()

    def without(self, run: Run, error: ErtacacheError, *, by_need: bool) -> Controller:
        return self._otherwise(self._own, error, by_need=by_need)
