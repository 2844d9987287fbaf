"""The stages of a calibration: record, choose a schedule, fit along the closed loop. Each run is done once."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from copy import copy
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

from torch import Tensor

from ertacache.calibration.checkpoint import Cost
from ertacache.calibration.closed_loop import ClosedLoop
from ertacache.calibration.deviation import log10_error
from ertacache.calibration.kept import Kept, loop_name, shared_steps
from ertacache.calibration.lockstep import Lockstep, check_copies, own_copy
from ertacache.calibration.method import Method
from ertacache.calibration.pipeline_run import call_pipeline, quiet
from ertacache.calibration.recorder import Recorder, ended_early
from ertacache.calibration.solved import Solved, from_state, schedule_of, to_state
from ertacache.calibration.solving import Seat, Solving
from ertacache.core.interpolation import between
from ertacache.core.policy import Probe, nearest_threshold
from ertacache.core.schedule import Schedule
from ertacache.runtime.hooks import attached
from ertacache.runtime.watch import now

#: λ beyond which no published model reuses less; Eq. 12 is about 2 for outputs that have nothing in common.
_LARGEST_THRESHOLD = 4.0
_SMALLEST_BRACKET = 0.05


class Calibrator(Recorder):
    """The fits of a calibration along its recorded runs; shared by all plans that are compared on them."""

    @cached_property
    def kept(self) -> Kept:
        """Outputs that closed loops have left for others."""
        return Kept(self.store, self.reference.recordings)

    def judging(self, call: dict[str, Any], checkpoint: str | os.PathLike[str] | None) -> "Calibrator":
        """The same prompts at another call on the same grid, to judge a profile there: nothing is recorded for it."""
        other = copy(self)
        other.call = call
        other.store = other._store(checkpoint)
        return other

    def solve(self, method: Method, after: Method | None = None, *, keep: bool = False) -> Solved:
        """Run a method along the closed loop on the fitted prompts; the same one is run once only.

        Args:
            after: one whose loop may be kept. Up to the step at which the schedules differ it has made the same run,
                so that its outputs stand for calls.
            keep: leave the outputs for others.
        """
        _ = self.aimed  # results of their own, whatever is solved first
        self.ahead({loop_name(method): partial(Calibrator.solve, method=method, after=after, keep=keep)})
        name, begun, known = loop_name(method), Solved(), 0
        if after is not None and name not in self.store and loop_name(after) in self.kept:
            known = shared_steps(method, after)
            begun = self.solve(after).before(known) if known else begun
        kept = loop_name(after) if after is not None and known else None
        return from_state(self.store.get(name, lambda: to_state(self._solve(method, begun, known, kept, keep))))

    def _solve(self, method: Method, begun: Solved, known: int, kept: str | None, keep: bool) -> Solved:
        seats = {n: self._seat(method, n, kept) for n in range(len(self.batches))}
        solved = self.play(method, begun, known, seats, loop_name(method) if keep else None)
        solved.errors = self.errors(seats)
        return solved

    def errors(self, seats: dict[int, Seat]) -> list[float]:
        """`deviation.log10_error` of each prompt's final latent, once the calls have ended."""
        ended = [(n, seat.final) for n, seat in seats.items() if seat.final is not None]
        ends = {n: self.aimed[n].latents[-1].float() for n, _ in ended}
        return [float(e) for n, x in ended for e in log10_error(x, ends[n], len(self.batches[n].texts))]

    def play(
        self, method: Method, begun: Solved, known: int, seats: dict[int, Seat], kept: str | None = None
    ) -> Solved:
        """A pass over fitted prompts, in lockstep, that solves what is not solved yet; its cost is what it computes.

        Args:
            begun: what is solved.
            known: outputs of computed steps before this one are not computed again, see `Seat.known`.
            seats: by the number of the pipeline call.
            kept: a name under which the outputs are left.

        Raises:
            UnsupportedPipeline: a run ends before its last step.
            CalibrationError: a call of several cannot have a copy of the pipeline.
        """
        if len(seats) > 1:
            check_copies(self.pipe.scheduler)
        start, lockstep = now(), Lockstep(len(seats))
        solving = Solving(method, lockstep, self.family.channel_axis, begun, known)
        small = self.small if method.small else None
        names = self.reference.contexts, self.reference.branches
        loop = ClosedLoop(solving, *names, [*seats.values()], lockstep, small)

        def call(n: int) -> Callable[[], Tensor]:
            pipe = self.pipe if len(seats) == 1 else own_copy(self.pipe)
            return partial(call_pipeline, pipe, self.batches[n], self.call, decode=False)

        with ExitStack() as stack:
            if kept is not None:
                stack.enter_context(self.kept.keeping(kept, seats.items()))
            stack.enter_context(quiet(self.pipe))  # for all: copies may share the blocks that have the bars
            stack.enter_context(attached(self.pipe, loop, method.site == "hidden"))
            lockstep.run([call(n) for n in seats])
        for n, seat in seats.items():
            if seat.final is None:
                raise ended_early("closed loop", seat.made, self.T)
            steps = seat.steps + seat.small * self.small_share
            self.store.charge(Cost(len(self.batches[n].texts) * steps / self.T))
            self.progress("closed loop")
        self.store.charge(Cost(0.0, now() - start))
        return solving.solved

    def _seat(self, method: Method, n: int, kept: str | None = None) -> Seat:
        seat = Seat(known=None if kept is None else self.kept.of(kept, n))
        if method.schedule is None:
            seat.reference_l1 = self.hidden_l1(n) if method.site == "hidden" else self.reference.guided_l1(n)
        how = method.correcting
        if method.aim == "trajectory" or (how is not None and how.fit == "trajectory"):
            seat.trajectory = self.trajectory(method.grid, n)
        if how is not None and how.fit == "closed-loop":
            seat.exact = lambda i: self.taught[n].outputs[i]
        return seat

    def trajectory(self, grid: tuple[float, ...] | None, n: int) -> Callable[[int], Tensor]:
        """The latents [B, *] that the n-th call aims at: those of its uncached run or its fine one, or between them on
        another grid."""
        latents = self.aimed[n].latents
        if grid is None:
            return lambda i: latents[i]
        return lambda i: between(self.reference.sigmas, latents, grid[i])

    def policy(self, method: Method) -> Schedule:
        """Algorithm 2 at the method's threshold."""
        return schedule_of(self.solve(replace(method, schedule=None)), self.T)

    def nearest_policy(self, method: Method, K: int) -> tuple[float, Schedule]:
        """The λ whose schedule computes most nearly K steps, and that schedule. K(λ) skips values."""

        def count(threshold: float) -> int:
            return self.policy(replace(method, threshold=threshold)).K

        tried = [Probe(_SMALLEST_BRACKET, count(_SMALLEST_BRACKET))]
        while tried[-1].computed > K and tried[-1].threshold < _LARGEST_THRESHOLD:
            threshold = 2 * tried[-1].threshold
            tried.append(Probe(threshold, count(threshold)))
        if tried[-1].computed != K:
            low = tried[-2].threshold if len(tried) > 1 else 0.0
            tried += nearest_threshold(count, K, low, tried[-1].threshold, probes=7)
        best = min(tried, key=lambda probe: (abs(probe.computed - K), -probe.computed, probe.threshold))
        return best.threshold, self.policy(replace(method, threshold=best.threshold))
