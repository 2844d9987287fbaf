"""The uncached runs of a calibration, each done once: recorded for the fits, which know them by their files."""

import importlib.metadata
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from ertacache.calibration.checkpoint import Cost, RunStore
from ertacache.calibration.first_steps import FirstSteps, first_steps, share_of
from ertacache.calibration.followed import Followed
from ertacache.calibration.lockstep import uneven
from ertacache.calibration.pipeline_run import check_call, run_pipeline
from ertacache.calibration.prompts import Prompts, split_prompts
from ertacache.calibration.recording import Recording
from ertacache.calibration.reference_log import Reference, ReferenceLog, check_alike
from ertacache.calibration.small_share import share_of_small
from ertacache.calibration.spread import Elsewhere, Made, Map, pipeline_hash, wait_for
from ertacache.calibration.taught import Teacher
from ertacache.errors import UnsupportedPipeline
from ertacache.pipelines.inputs import Inputs, digest
from ertacache.pipelines.models import Family, denoisers_of, family_for
from ertacache.profile.fingerprint import config_hash
from ertacache.runtime.run import Controller
from ertacache.runtime.small_model import SmallModel
from ertacache.runtime.watch import now

#: Name of a run without a controller that changes anything.
UNCACHED = "uncached run"
#: Called after every pipeline run with its name.
Progress = Callable[[str], None]

#: What an uncached run notes besides tensors.
_FACTS = (
    "contexts", "branches", "boundaries", "weights", "step_weights", "calls", "step_arguments", "embedded", "dtype",
    "directed", "sigmas",
)  # fmt: skip


class Recorder:
    """One pipeline, one set of prompts, one set of call arguments; shared by all plans that are compared on them.

    Args:
        pipe: the user's pipeline.
        prompts: calibration prompts, in three parts (see `prompts.split_prompts`). None where `inputs` say it all.
        choose, judge: shares of them that candidates are compared and judged on.
        seed: prompt n starts from the noise of seed + n.
        batch_size: prompts per pipeline call, None for all at once. The calls go in lockstep: results are the same to
            rounding, and memory is that of one call.
        checkpoint: folder to keep finished runs in.
        inputs: for each prompt what it brings along beside its text, by argument of the pipeline; None for nothing.
        call: arguments of the pipeline call.
        progress: called after every pipeline run.
        hidden: measure the hidden residuals of the uncached run, which Algorithm 2 needs at site `hidden`.
        teacher: of other runs, whose latents are aimed at in place of the uncached ones; None for those.
        spread: makes runs in other processes, to which the teacher is sent; None for this one.
        small: a model that plans may call at predicted steps, where there is one.

    Attributes:
        store: finished runs by name, with what they cost.
        parts: the prompts by their use.
    """

    def __init__(
        self,
        pipe: Any,
        prompts: Sequence[str] | None,
        *,
        choose: float,
        judge: float = 0.0,
        seed: int,
        batch_size: int | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        inputs: Sequence[Inputs] | None = None,
        call: dict[str, Any],
        progress: Progress = lambda name: None,
        hidden: bool = False,
        teacher: Teacher | None = None,
        spread: Map | None = None,
        small: SmallModel | None = None,
    ) -> None:
        check_call(pipe, call, inputs or (), texts=prompts is not None)
        self.pipe, self.call, self.seed, self.progress = pipe, call, seed, progress
        self.parts = split_prompts(prompts, choose, judge, seed, inputs)
        self.batch_size, self.teacher, self.small = batch_size, teacher, small
        self.batches = self.parts.fitted.batches(batch_size)
        self._hidden, self._spread = hidden, spread
        self._arguments = {
            "prompts": prompts, "choose": choose, "judge": judge, "seed": seed, "batch_size": batch_size,
            "inputs": inputs, "hidden": hidden, "teacher": teacher,
        }  # fmt: skip
        self.store = self._store(checkpoint)

    @cached_property
    def family(self) -> Family:
        """What is known of the denoiser, for latents of these dimensions."""
        return family_for(denoisers_of(self.pipe)[0], self.reference.recordings[0].latents.ndim - 1)

    @cached_property
    def first_steps(self) -> FirstSteps:
        """What all of a run will take."""

        def run() -> dict[str, Any]:
            start = now()
            found = first_steps(self.pipe, self.parts.fitted, self.call)
            self.store.charge(Cost(share_of(found.steps), now() - start))
            return asdict(found)

        return FirstSteps(**self.store.get("first steps", run))

    @cached_property
    def small_share(self) -> float:
        """The operations of the small model as a share of the denoiser's; 0 without one."""
        if (small := self.small) is None:
            return 0.0
        return self.store.get("small share", lambda: share_of_small(self.pipe, self.parts.fitted, self.call, small))

    @cached_property
    def aimed(self) -> tuple[Recording, ...]:
        """Of each pipeline call, the uncached run's outputs with the latents that a fit aims at: those of that run, or
        of a teacher."""
        own = self.reference.recordings
        if self.teacher is None:
            return own
        return tuple(replace(ran, latents=run.latents) for ran, run in zip(own, self.taught, strict=True))

    @cached_property
    def taught(self) -> tuple[Recording, ...]:
        """Of each pipeline call, the run of the teacher; empty where there is none."""
        if (teacher := self.teacher) is None:
            return ()
        count = range(len(self.reference.recordings))
        self.ahead({f"{teacher.name} {n}": partial(Recorder.taught_by, teacher=teacher, n=n) for n in count})
        return tuple(self.taught_by(teacher, n) for n in count)

    @property
    def T(self) -> int:
        """Number of steps."""
        return len(self.reference.sigmas) - 1

    def ahead(self, results: Mapping[str, Callable[[Any], object]]) -> None:
        """Where runs are spread, make these results of the store now, side by side; elsewhere each is made when it is
        asked for.

        Args:
            results: by name what leaves it in the store of a calibrator; it can be pickled and needs no other of them.
        """
        if self._spread is None:
            return
        missing = {name: leave for name, leave in results.items() if name not in self.store}
        if not missing:
            return
        elsewhere = Elsewhere(type(self), {**self._arguments, "call": self.call}, self.store.identity.absolute())
        units = [Made(leave) for leave in missing.values()]
        for name, runs in zip(missing, self._spread(self.pipe, elsewhere, units), strict=True):
            wait_for(partial(self.store.__contains__, name), f"{self.store.file(name, 'pt')}")
            for run in runs:
                self.progress(run)

    def _store(self, checkpoint: str | os.PathLike[str] | None) -> RunStore:
        shared = self._spread is not None
        return RunStore(checkpoint, self._identity() if shared or checkpoint is not None else "", shared=shared)

    def _identity(self) -> str:
        return config_hash(
            {
                "version": importlib.metadata.version("ertacache"),
                "pipeline": pipeline_hash(self.pipe),
                "prompts": [*(part.texts for part in self.parts), self.seed, self.batch_size],
                "call": self.call,
                "inputs": digest([given for part in self.parts for given in part.inputs]),
                **({} if self.teacher is None else self.teacher.identity()),
                **({} if self.small is None else {"small": self.small.identity}),
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
        pipe: Any = None,
    ) -> Tensor:
        """One pipeline call for a result of the store, see `run_pipeline`.

        Args:
            share: of the uncached run's denoiser steps that it computes.
            call: arguments, where they are not the calibration's. pipe: likewise the pipeline.

        Raises:
            UnsupportedPipeline: the run ends before its last step.
        """
        start = now()
        followed = Followed(controller)
        result = run_pipeline(pipe or self.pipe, prompts, followed, call or self.call, hidden=hidden, decode=decode)
        if followed.left or not followed.steps:
            raise ended_early(name, followed.steps - followed.left, followed.steps)
        self.store.charge(Cost(len(prompts.texts) * share, now() - start))
        self.progress(name)
        return result

    def record(self, prompts: Prompts, name: str) -> tuple[Recording, dict[str, Any]]:
        """An uncached run of a batch: its recording and what it noted, see `ReferenceLog`."""
        path = self.store.file(name)

        def run() -> dict[str, Any]:
            log = ReferenceLog(path, watch_hidden=self._hidden)
            try:
                self.run(prompts, log, UNCACHED, hidden=self._hidden)
                layout = log.finish()
            finally:
                log.discard()
            hidden = torch.stack(log.hidden) if log.hidden else torch.zeros(0, 0)
            return {"facts": {fact: getattr(log, fact) for fact in _FACTS}, "hidden": hidden, "layout": layout}

        found = self.store.get(name, run)
        recording = self.store.opened(name, found["layout"])
        return recording if found["facts"]["directed"] else replace(recording, directions=None), found

    def recorded(self, n: int) -> tuple[Recording, dict[str, Any]]:
        """The uncached run of the n-th batch of fitted prompts, see `record`."""
        return self.record(self.batches[n], f"reference {n}")

    def hidden_l1(self, n: int) -> Tensor:
        """[T, B] of the hidden residuals, from a run of their own where the recorded one did not measure them."""
        if len(found := self.reference.hidden_l1[n]):
            return found

        def run() -> Tensor:
            log = ReferenceLog(self.store.file(f"hidden {n}"), watch_hidden=True)
            self.run(self.batches[n], log, UNCACHED, hidden=True)
            log.discard()
            return torch.stack(log.hidden)

        return self.store.get(f"hidden {n}", run)

    @cached_property
    def reference(self) -> Reference:
        """The uncached run of the fitted prompts, made where it is first asked for.

        Raises:
            UnsupportedPipeline: its calls make different numbers of steps.
        """
        count = range(len(self.batches))
        self.ahead({f"reference {n}": partial(Recorder.recorded, n=n) for n in count})
        parts = [self.recorded(n) for n in count]
        if len({recording.T for recording, _ in parts}) > 1:
            raise uneven()
        for _, found in parts[1:]:
            check_alike(parts[0][1]["facts"], found["facts"])
        facts = {name: value for name, value in parts[0][1]["facts"].items() if name != "directed"}
        return Reference(
            recordings=tuple(recording for recording, _ in parts),
            # By call: where both branches are samples of one call, a batch has more norms than prompts.
            hidden_l1=tuple(found["hidden"] for _, found in parts),
            **facts,
        )

    def taught_by(self, teacher: Teacher, n: int) -> Recording:
        """The run of the teacher on the n-th batch of fitted prompts."""
        own, name = self.reference, f"{teacher.name} {n}"
        layout = self.store.get(name, lambda: teacher.record(self, self.batches[n], self.store.file(name), own))
        found = self.store.opened(name, layout)
        teacher.check(own.recordings[n], found)
        return found


def ended_early(name: str, made: int, steps: int) -> UnsupportedPipeline:
    """The error for a run of this name that made fewer steps than its grid has."""
    return UnsupportedPipeline(
        f"the {name} ended after {made} of {steps} steps; calibrate on whole runs, which nobody interrupts and no "
        "argument (such as denoising_end) ends early"
    )
