"""Whole steps predicted on a schedule that is known before the run, at any of three places of the denoiser."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ertacache.baselines.baseline import Bench
from ertacache.calibration.pipeline_run import run_pipeline
from ertacache.core.precision import exact
from ertacache.core.schedule import Schedule
from ertacache.errors import CacheConflict
from ertacache.pipelines.block_stack import BlockStack
from ertacache.pipelines.denoiser_call import leading
from ertacache.runtime.run import Controller, Run

#: What the solver receives, what each denoiser call returns, or what its last block returns, before the head.
Place = Literal["solver", "output", "features"]

_SOLVER = "solver"


class Forecast(ABC):
    """What one stream of one run is predicted by: what the solver receives, or one kind of denoiser call.

    Every tensor that it is given is its own, and may be kept.
    """

    @abstractmethod
    def push(self, step: int, value: Tensor, x: Tensor) -> None:
        """A computed step: its value [B, *], and x [B, *], the latent (at the features, what the first block got)."""

    @abstractmethod
    def predict(self, step: int, x: Tensor) -> Tensor:
        """The value [B, *] of a step that is not computed, in the dtype of those that were."""


class Forecasting(Controller):
    """Computes the steps of a schedule and predicts the others.

    Where another denoiser takes over, or a call comes with another batch, it computes and begins anew.

    Args:
        schedule: for a number of steps.
        make: a forecast for each stream of each run.
    """

    def __init__(self, place: Place, schedule: Callable[[int], Schedule], make: Callable[[Run], Forecast]) -> None:
        self._place: Place = place
        self._schedule, self._make = schedule, make

    def for_run(self, run: Run) -> Controller:
        schedule = self._schedule(run.T)
        return _AtSolver(schedule, self._make) if self._place == "solver" else _AtCalls(schedule, self._make)


class _Forecasted(Controller):
    """One run."""

    def __init__(self, schedule: Schedule, make: Callable[[Run], Forecast]) -> None:
        self._computed, self._make = schedule.computed, make
        self._streams: dict[str, Forecast] = {}
        self._seen: dict[str, Tensor] = {}  # the last value of each stream without its data
        self._serving = -1

    def end(self, run: Run) -> None:
        self._streams.clear()

    def _start(self, run: Run) -> None:
        if len(run.contexts) == 1 and run.denoiser != self._serving:
            self._serving = run.denoiser
            self._streams.clear()

    def _push(self, run: Run, stream: str, value: Tensor, x: Tensor) -> None:
        if stream not in self._streams or len(self._seen[stream]) != len(value):
            self._streams[stream] = self._make(run)
        self._seen[stream] = torch.empty_like(value, device="meta")
        self._streams[stream].push(run.step, value, x)

    def _predicts(self, run: Run, stream: str, batch: int) -> bool:
        known = stream in self._streams and len(self._seen[stream]) == batch
        return known and not self._computed[run.step]


class _AtSolver(_Forecasted):
    placeholders = True

    def call(self, run: Run, context: str, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        self._start(run)
        if self._predicts(run, _SOLVER, run.batch) and context in self._seen:
            like = self._seen[context]
            return torch.zeros((len(x), *like.shape[1:]), dtype=like.dtype, device=x.device)
        output = compute()
        self._seen[context] = torch.empty_like(output, device="meta")
        return output

    def solve(self, run: Run, output: Tensor, x: Tensor) -> Tensor:
        if self._predicts(run, _SOLVER, len(output)):
            return self._streams[_SOLVER].predict(run.step, x)
        self._push(run, _SOLVER, output.clone(), x.clone())
        return output


class _AtCalls(_Forecasted):
    """At the output or, where the block stack is attached, at the features."""

    def call(self, run: Run, context: str, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        self._start(run)
        predicts = self._predicts(run, context, len(x))
        if run.stack is not None:
            return self._features(run, run.stack, context, predicts, compute)
        if predicts:
            return self._streams[context].predict(run.step, leading(x, self._seen[context]))
        output = compute()
        self._push(run, context, output.clone(), leading(x, output).clone())
        return output

    def _features(
        self, run: Run, stack: BlockStack, context: str, predicts: bool, compute: Callable[[], Tensor]
    ) -> Tensor:
        entries: list[Tensor] = []

        def entered(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
            entry = stack.entry
            entries.append(entry.clone())  # a block may write in what it is given
            return self._streams[context].predict(run.step, entry) - entry if predicts else None

        stack.on_entry = entered
        try:
            output = compute()
        finally:
            stack.on_entry = None
        if not entries:
            raise CacheConflict("the blocks ran without passing by their entry; take other changes of them off first")
        if not predicts:
            self._push(run, context, entries[0] + stack.take_residual(), entries[0])
        return output


@dataclass
class Kept(Forecast):
    """Keeps the values and inputs of an uncached run, one [B, *] in float64 on the CPU for each step."""

    values: list[Tensor] = field(default_factory=list[Tensor])
    inputs: list[Tensor] = field(default_factory=list[Tensor])

    def push(self, step: int, value: Tensor, x: Tensor) -> None:
        self.values.append(exact(value))
        self.inputs.append(exact(x))

    def predict(self, step: int, x: Tensor) -> Tensor:
        raise NotImplementedError("every step of the uncached run is computed")


def recorded(bench: Bench, prompts: int, place: Place) -> Iterator[list[Kept]]:
    """The streams of the uncached run, prompt by prompt."""
    for batch in bench.prompts.first(prompts).batches(1):
        streams: list[Kept] = []

        def make(run: Run, streams: list[Kept] = streams) -> Forecast:
            streams.append(Kept())
            return streams[-1]

        controller = Forecasting(place, Schedule.all_computed, make)
        run_pipeline(bench.pipe, batch, controller, bench.call, hidden=place == "features", decode=False)
        bench.progress("calibration run")
        yield streams
