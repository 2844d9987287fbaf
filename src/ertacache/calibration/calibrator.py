"""The stages of a calibration: record, choose a schedule, fit along the closed loop, verify. Each run is done once."""

import importlib.metadata
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from ertacache.calibration.checkpoint import Cost, RunStore
from ertacache.calibration.closed_loop import ClosedLoop
from ertacache.calibration.followed import Followed
from ertacache.calibration.pipeline_run import check_call, run_pipeline
from ertacache.calibration.plan import Plan, Solved, from_state, schedule_of, to_state
from ertacache.calibration.prompts import Prompts, split_prompts
from ertacache.calibration.reference_log import Reference, ReferenceLog
from ertacache.core.policy import Probe, nearest_threshold
from ertacache.core.schedule import Schedule
from ertacache.errors import CalibrationError, UnsupportedPipeline
from ertacache.pipelines.inputs import Inputs, digest
from ertacache.pipelines.models import boundary_of, denoisers_of, family_for, family_of
from ertacache.pipelines.weights import weights_hash
from ertacache.profile.fingerprint import config_hash
from ertacache.runtime.identity import identity_of
from ertacache.runtime.run import Controller
from ertacache.runtime.watch import now

#: Name of a run without a controller that changes anything.
UNCACHED = "uncached run"
#: Called after every pipeline run with its name.
Progress = Callable[[str], None]

#: λ beyond which no published model reuses less; Eq. 12 is about 2 for outputs that have nothing in common.
_LARGEST_THRESHOLD = 4.0
_SMALLEST_BRACKET = 0.05
#: Between two passes, what is too little for the float32 tables of a profile to hold.
_CONVERGED = 1e-8
#: What an uncached run notes besides tensors.
_FACTS = (
    "contexts", "branches", "boundaries", "weights", "step_weights", "calls", "step_arguments", "embedded", "dtype",
)  # fmt: skip


class Calibrator:
    """One pipeline, one set of prompts, one set of call arguments; shared by all plans that are compared on them.

    Args:
        pipe: the user's pipeline.
        prompts: calibration prompts; the last `holdout` share of them is never fitted. None where `inputs` say it all.
        seed: prompt n starts from the noise of seed + n.
        batch_size: prompts per pipeline call; None for all at once (exact in one pass), less where memory is short.
        passes: how many times a fit is repeated at most when the prompts need several batches. One pass for every
            predicted step is exact, two where a fitted predictor also has a rectifier or an adjusted grid (which
            follow it by one pass); a few come close.
        checkpoint: file to keep finished runs in.
        inputs: for each prompt what it brings along beside its text, by argument of the pipeline; None for nothing.
        call: arguments of the pipeline call.
        progress: called after every pipeline run.
        trajectory: keep the latents of the uncached run, T times what else it leaves, for plans that aim at them;
            without, the first of those runs it again.

    Attributes:
        store: finished runs by name, with what they cost.
        heldout_batches: the held-out prompts, as they go through the pipeline.
    """

    def __init__(
        self,
        pipe: Any,
        prompts: Sequence[str] | None,
        *,
        holdout: float,
        seed: int,
        batch_size: int | None = None,
        passes: int = 4,
        checkpoint: str | os.PathLike[str] | None = None,
        inputs: Sequence[Inputs] | None = None,
        call: dict[str, Any],
        progress: Progress = lambda name: None,
        trajectory: bool = False,
    ) -> None:
        denoiser = denoisers_of(pipe)[0]
        self.family = family_of(denoiser)
        check_call(pipe, call, inputs or (), texts=prompts is not None)
        self.pipe, self.call, self.seed, self.progress = pipe, call, seed, progress
        self.prompts, self.heldout = split_prompts(prompts, holdout, seed, inputs)
        self.batch_size, self.passes, self._keeps_trajectory = batch_size, passes, trajectory
        self.store = RunStore(checkpoint, self._identity() if checkpoint is not None else "")
        self._batches, self.heldout_batches = self.prompts.batches(batch_size), self.heldout.batches(batch_size)
        self._trajectories: list[Tensor] = []
        self._norms: list[dict[str, Tensor]] = []
        self.reference = self._reference()
        self.family = family_for(denoiser, self.reference.latents.ndim)

    @property
    def lockstep(self) -> bool:
        """Whether all calibration prompts go through the pipeline together."""
        return len(self._batches) == 1

    @property
    def T(self) -> int:
        """Number of steps."""
        return len(self.reference.sigmas) - 1

    def _identity(self) -> str:
        return config_hash(
            {
                "version": importlib.metadata.version("ertacache"),
                "pipeline": [identity_of(self.pipe), weights_hash(self.pipe), boundary_of(self.pipe)],
                "prompts": [self.prompts.texts, self.heldout.texts, self.seed, self.batch_size, self.passes],
                "call": self.call,
                "inputs": digest((*self.prompts.inputs, *self.heldout.inputs)),
            }
        )

    def run(
        self,
        prompts: Prompts,
        controller: Controller,
        name: str,
        *,
        hidden: bool = False,
        decode: bool = False,
        share: float = 1.0,
        call: dict[str, Any] | None = None,
    ) -> Tensor:
        """One pipeline call for a result of the store, see `run_pipeline`.

        Args:
            share: of the uncached run's denoiser steps that it computes.
            call: arguments, where they are not the calibration's.

        Raises:
            UnsupportedPipeline: the run ends before its last step.
        """
        start = now()
        followed = Followed(controller)
        result = run_pipeline(self.pipe, prompts, followed, call or self.call, hidden=hidden, decode=decode)
        if followed.left or not followed.steps:
            raise UnsupportedPipeline(
                f"the {name} ended after {followed.steps - followed.left} of {followed.steps} steps; calibrate on "
                "whole runs, which nobody interrupts and no argument (such as denoising_end) ends early"
            )
        self.store.charge(Cost(len(prompts.texts) * share, now() - start))
        self.progress(name)
        return result

    def _reference(self) -> Reference:
        hidden = bool(self.family.block_lists)

        def record(prompts: Prompts) -> dict[str, Any]:
            log = ReferenceLog(keep_trajectory=self._keeps_trajectory)
            self.run(prompts, log, UNCACHED, hidden=hidden)
            if not log.latents.isfinite().all():
                raise CalibrationError("the uncached run ends in NaN or infinity; run the pipeline in a wider dtype")
            return {
                "guided": torch.stack(log.guided),
                "hidden": torch.stack(log.hidden) if log.hidden else torch.zeros(0, 0),
                "facts": {name: getattr(log, name) for name in _FACTS},
                "sigmas": log.sigmas,
                "latents": log.latents,
                "trajectory": torch.stack(log.trajectory) if self._keeps_trajectory else None,
            }

        parts = [self.store.get(f"reference {n}", lambda b=b: record(b)) for n, b in enumerate(self._batches)]
        # By batch: where both branches are samples of one call, a batch has more norms than prompts.
        self._norms = [{kind: part[kind] for kind in ("guided", "hidden")} for part in parts]
        if all(part["trajectory"] is not None for part in parts):
            self._trajectories = [part["trajectory"] for part in parts]
        return Reference(
            sigmas=parts[0]["sigmas"],
            guided_l1=torch.cat([part["guided"] for part in parts], 1),
            hidden_l1=torch.cat([part["hidden"] for part in parts], 1),
            latents=torch.cat([part["latents"] for part in parts]),
            **parts[0]["facts"],
        )

    def solve(self, plan: Plan, grid: Tensor | None = None) -> Solved:
        """Run a plan along the closed loop on the calibration prompts; the same plan is run once only."""
        if plan.aim == "trajectory" and not self._trajectories:
            self._trajectories = [self._trajectory(n) for n in range(len(self._batches))]
        name = f"{asdict(replace(plan, schedule=None))} {plan.schedule} {None if grid is None else grid.tolist()}"
        return from_state(self.store.get(name, lambda: to_state(self._solve(name, plan, grid))))

    def _solve(self, name: str, plan: Plan, grid: Tensor | None) -> Solved:
        if self.lockstep:
            loop = ClosedLoop(plan, self.reference.contexts, self.reference.branches, grid=grid)
            self._run_batch(loop, 0)
            return loop.finish(self.reference.sigmas)
        before = Solved()
        for n in range(self._passes(plan)):
            before = self._pass(f"{name} pass {n}", plan, before, grid)
            if before.change < _CONVERGED if plan.schedule is not None else len(before.computed) == self.T:
                break
        self.store.drop(f"{name} pass ")
        return before

    def _passes(self, plan: Plan) -> int:
        """How often a plan is repeated over several batches: each pass settles one more decision or predicted step."""
        if plan.schedule is None:
            return self.T
        # Weights that undo a deviation are wrong for another one: short of the exact number they do not come close.
        exact = len(plan.schedule.predicted_steps) if plan.aim == "trajectory" else 0
        return max(self.passes, exact)

    def _pass(self, name: str, plan: Plan, before: Solved, grid: Tensor | None) -> Solved:
        """One pass over all batches. Its sums are kept after each, so that it continues where it stopped."""
        loop = ClosedLoop(plan, self.reference.contexts, self.reference.branches, before=before, grid=grid)

        def run(n: int) -> dict[str, Any]:
            self._run_batch(loop, n)
            return loop.sums.state()

        def all_batches() -> dict[str, Any]:
            kept = [n for n in range(len(self._batches)) if f"{name} batch {n}" in self.store]
            for n in range(min(kept, default=0), len(self._batches)):
                loop.sums = loop.sums.restore(self.store.get(f"{name} batch {n}", lambda n=n: run(n)))
                self.store.drop(f"{name} batch {n - 1}", heir=f"{name} batch {n}")
            return to_state(loop.finish(self.reference.sigmas))

        solved = from_state(self.store.get(name, all_batches))
        self.store.drop(f"{name} batch ")
        return solved

    def _run_batch(self, loop: ClosedLoop, n: int) -> None:
        loop.reference_l1 = self._norms[n]["hidden" if loop.plan.level == "hidden" else "guided"]
        if loop.plan.aim == "trajectory":
            loop.trajectory = self._trajectories[n]
        self.run(self._batches[n], loop, "closed loop", hidden=loop.plan.level == "hidden")

    def _trajectory(self, n: int) -> Tensor:
        """[T+1, B, *] latents of the uncached run of a batch, where the first one did not keep them."""

        def record() -> Tensor:
            log = ReferenceLog(keep_trajectory=True)
            self.run(self._batches[n], log, UNCACHED)
            return torch.stack(log.trajectory)

        return self.store.get(f"trajectory {n}", record)

    def policy(self, plan: Plan) -> Schedule:
        """Algorithm 2 at the plan's threshold."""
        schedule = schedule_of(self.solve(replace(plan, schedule=None)), self.T)
        if schedule is None:
            raise CalibrationError("the threshold search did not decide every step; use a larger batch_size")
        return schedule

    def nearest_policy(self, plan: Plan, K: int) -> tuple[float, Schedule]:
        """The λ whose schedule computes most nearly K steps, and that schedule. K(λ) skips values."""

        def count(threshold: float) -> int:
            return self.policy(replace(plan, threshold=threshold)).K

        tried = [Probe(_SMALLEST_BRACKET, count(_SMALLEST_BRACKET))]
        while tried[-1].computed > K and tried[-1].threshold < _LARGEST_THRESHOLD:
            threshold = 2 * tried[-1].threshold
            tried.append(Probe(threshold, count(threshold)))
        if tried[-1].computed != K:
            low = tried[-2].threshold if len(tried) > 1 else 0.0
            tried += nearest_threshold(count, K, low, tried[-1].threshold, probes=7)
        best = min(tried, key=lambda probe: (abs(probe.computed - K), -probe.computed, probe.threshold))
        return best.threshold, self.policy(replace(plan, threshold=best.threshold))
