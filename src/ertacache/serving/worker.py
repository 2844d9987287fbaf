"""The thread that owns a pipeline: it takes jobs from the queue and makes them, one call at a time."""

import json
import logging
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ertacache.calibration.followed import Followed
from ertacache.calibration.pipeline_run import run_pipeline
from ertacache.calibration.prompts import Prompts
from ertacache.errors import ErtacacheError, InvalidArgument
from ertacache.pipelines import preview
from ertacache.pipelines.adapters import switched_on
from ertacache.runtime.identity import check_pipeline, warn_of_weights
from ertacache.runtime.plain_run import PlainRun
from ertacache.runtime.player import Player
from ertacache.runtime.run import Controller, Run
from ertacache.runtime.run_stats import RunStats, of_one_run
from ertacache.serving import encoded
from ertacache.serving.job import Job, JobQueue
from ertacache.serving.ladder import Ladder, Rung
from ertacache.serving.meters import Meters
from ertacache.serving.order import Order

logger = logging.getLogger(__name__)


class Cancelled(Exception):
    """Nobody wants the run any more."""


@dataclass
class Following(Followed):
    """Tells the jobs of a call how far it is, shows what they are heading for, and ends it when all are cancelled."""

    jobs: list[Job] = field(default_factory=list[Job])
    pipe: Any = None

    def begin(self, run: Run) -> None:
        super().begin(run)
        self._go_on(0, run.T)

    def solve(self, run: Run, output: Tensor, x: Tensor) -> Tensor:
        used = super().solve(run, output, x)
        for n, job in enumerate(self.jobs):
            parts = job.order.partial_images
            if run.step in [run.T * (part + 1) // (parts + 1) for part in range(parts)] and not job.cancelled:
                self._show(run, job, used[n : n + 1], x[n : n + 1])
        return used

    def end_step(self, run: Run, x_next: Tensor) -> None:
        super().end_step(run, x_next)
        self._go_on(run.step + 1, run.T)

    def _show(self, run: Run, job: Job, output: Tensor, x: Tensor) -> None:
        if (latents := preview.estimate(run.scheduler, run.step, output, x)) is not None:
            call, order = job.order.call, job.order
            image = preview.decode(self.pipe, latents, call["height"], call["width"])[0]
            job.tell("partial", encoded.picture(image, order.output_format, order.output_compression))

    def _go_on(self, step: int, steps: int) -> None:
        if self.jobs and all(job.cancelled for job in self.jobs):
            raise Cancelled
        for job in self.jobs:
            job.advance(step, steps)


class Worker:
    """One pipeline and its thread.

    Args:
        batch: equal requests that may go together; 1 makes every picture bit for bit what it is alone.
        fps: of clips; None for a pipeline of pictures.

    Raises:
        ProfileMismatch: a profile of another model.
    """

    def __init__(
        self, pipe: Any, ladder: Ladder, queue: JobQueue, meters: Meters, batch: int = 1, fps: float | None = None
    ) -> None:
        self.pipe, self.ready, self._fps, self._batch = pipe, threading.Event(), fps, batch
        self._ladder, self._queue, self._meters = ladder, queue, meters
        self._players: dict[str, Player] = {}
        for rung in ladder.rungs:
            if rung.profile is not None:
                check_pipeline(rung.profile, pipe)
                warn_of_weights(rung.profile, pipe)
                self._players[rung.name] = Player(rung.profile, RunStats(), on_mismatch="compute")
        #: Warms up, then works until the queue is closed.
        self.thread = threading.Thread(target=self._work, name="ertacache-worker", daemon=True)

    def _work(self) -> None:
        for rung in (self._ladder.rungs[0], *self._ladder.rungs):  # the first run of all is no measurement
            job = Job(Order("a", self._ladder.defaults), rung, 0)
            self._queue.begin(job)
            self._serve([job])
            if job.error is not None:
                logger.error("warm-up with profile %s failed: %s", rung.name, job.error)
                return
        self.ready.set()
        logger.info(json.dumps({"event": "warm", "device": str(getattr(self.pipe, "device", ""))}))
        while jobs := self._queue.take(self._batch):
            self._serve(jobs)
            self._meters.ran(jobs)

    def _serve(self, jobs: list[Job]) -> None:
        """One call of the pipeline; whatever goes wrong in it is the jobs' and not the worker's end."""
        start = time.time()
        state, error, status = "completed", None, 200
        try:
            files = self._files(jobs)
            for job, data in zip(jobs, files, strict=True):
                job.data, job.seconds, job.waited = data, time.time() - start, start - job.created
        except Cancelled:
            state = "cancelled"
        except ErtacacheError as problem:
            state, error, status = "failed", str(problem), 400 if isinstance(problem, InvalidArgument) else 500
        except Exception as problem:  # a pipeline's own fault, out of memory: the next request may do
            logger.exception("a run failed")
            state, error, status = "failed", f"the run failed with {type(problem).__name__}; see the server's log", 500
        for job in jobs:
            job.end("cancelled" if job.cancelled else state, error, status)  # pyright: ignore[reportArgumentType]
        self._queue.done(jobs)

    def _files(self, jobs: list[Job]) -> list[bytes]:
        first, start = jobs[0], time.time()
        inner, stats = self._controller(first.rung)
        inputs = tuple({"generator": torch.Generator("cpu").manual_seed(job.seed)} for job in jobs)
        prompts = Prompts(tuple(job.order.prompt for job in jobs), 0, inputs)
        hidden = first.rung.profile is not None and first.rung.profile.site == "hidden"
        try:
            following = Following(inner, jobs=jobs, pipe=self.pipe)
            with switched_on(self.pipe, first.order.lora):
                made = run_pipeline(self.pipe, prompts, following, dict(first.order.call), hidden=hidden)
        finally:
            computed, predicted = stats.computed.total(), stats.predicted.total()
            for job in jobs:
                job.computed, job.predicted, job.reason = computed, predicted, stats.reason or job.reason
        self._ladder.took(first.rung, first.order, (time.time() - start) / len(jobs))
        return [self._file(image, job.order) for image, job in zip(made, jobs, strict=True)]

    def _file(self, sample: Tensor, order: Order) -> bytes:
        if self._fps is not None:
            return encoded.clip(sample, self._fps)
        return encoded.picture(sample, order.output_format, order.output_compression)

    def _controller(self, rung: Rung) -> tuple[Controller, RunStats]:
        """What decides in a run, and the counters that will be its own."""
        if (player := self._players.get(rung.name)) is None:
            stats = of_one_run()
            return PlainRun(RunStats(), stats), stats
        player.stats.show(RunStats())  # a run that makes no step leaves what the last one counted
        return player, player.stats
