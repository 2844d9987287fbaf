"""One picture or clip that was asked for, and the queue that they wait in."""

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from fastapi import HTTPException

from ertacache.serving.adapters import Scales
from ertacache.serving.ladder import NONE, Rung
from ertacache.serving.order import Order

State = Literal["queued", "in_progress", "completed", "failed", "cancelled"]


@dataclass(eq=False)
class Job:
    """A picture or clip, from the request to its file.

    Attributes:
        seed: of its noise. rung: what serves it. reason: why it is not cached, where it was to be.
        state, step, steps: how far it is; `steps` is the solver's.
        tell: what follows it, by kind of event. noted: what is told of its end.
        data: the encoded file. error: what went wrong, and `status` its HTTP status.
        computed, predicted: denoiser calls. seconds: of the run, and `waited` before it.
    """

    order: Order
    rung: Rung
    seed: int
    reason: str | None = None
    tell: Callable[[str, Any], object] = lambda kind, value: None
    noted: Callable[["Job"], object] = lambda job: None
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    state: State = "queued"
    step: int = 0
    steps: int = 0
    data: bytes = b""
    error: str | None = None
    status: int = 200
    computed: int = 0
    predicted: int = 0
    created: float = field(default_factory=time.time)
    ended: float | None = None
    seconds: float = 0.0
    waited: float = 0.0
    cancelled: bool = False

    @property
    def progress(self) -> int:
        """Percent of the steps; 100 is the finished file."""
        return 100 if self.state == "completed" else self.percent(self.step)

    def percent(self, step: int) -> int:
        """What so many steps are of all, 99 at most."""
        return min(99, 100 * step // max(1, self.steps))

    @property
    def alike(self) -> tuple[str, Scales, list[tuple[str, Any]]]:
        """Jobs that agree in this can be one call of the pipeline."""
        return self.rung.name, self.order.lora, sorted(self.order.call.items())

    def facts(self) -> dict[str, Any]:
        """What was done for it."""
        return {
            "profile": None if self.rung.name == NONE else self.rung.name, "lora": dict(self.order.lora),
            "judged_psnr_db": None if self.order.lora else self.rung.loss,  # it was judged without them
            "computed": self.computed, "predicted": self.predicted, "uncached_because": self.reason,
            "seconds": round(self.seconds, 4), "queued_seconds": round(self.waited, 4),
        }  # fmt: skip

    def check(self) -> None:
        """Raises HTTPException unless its file is there."""
        if self.state != "completed":
            raise HTTPException(self.status if self.error else 503, self.error or "cancelled, since the server stops")

    def advance(self, step: int, steps: int) -> None:
        """So many of the steps are made."""
        self.state, self.step, self.steps = "in_progress", step, steps
        self.tell("step", step)

    def end(self, state: State, error: str | None = None, status: int = 200) -> None:
        """Once, for good."""
        if self.ended is None:
            self.state, self.error, self.status, self.ended = state, error, status, time.time()
            self.noted(self)
            self.tell("end", state)


@dataclass
class JobQueue:
    """First come, first served; equal requests may go together.

    Args:
        room: how many may wait.
    """

    room: int
    waiting: list[Job] = field(default_factory=list[Job])
    running: list[Job] = field(default_factory=list[Job])
    closed: bool = False
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def put(self, jobs: list[Job]) -> str | None:
        """All of them, or none: then why."""
        with self._changed:
            if self.closed:
                return "this server is about to stop; ask again later"
            if len(self.waiting) + len(jobs) > self.room:
                return f"{len(self.waiting)} wait, and there is room for {self.room}; ask again later"
            self.waiting += jobs
            self._changed.notify_all()
            return None

    def take(self, most: int) -> list[Job]:
        """The next job with up to `most` − 1 like it, waiting for one; nothing once the queue is closed."""
        with self._changed:
            while not self.waiting and not self.closed:
                self._changed.wait()
            first = self.waiting[:1]
            taken = [job for job in self.waiting if job.alike == first[0].alike][:most] if first else []
            self.waiting = [job for job in self.waiting if job not in taken]
            self.running += taken
            return taken

    def begin(self, job: Job) -> None:
        """This one is under way without having waited."""
        with self._changed:
            job.cancelled = self.closed
            self.running.append(job)

    def done(self, jobs: list[Job]) -> None:
        """These are no longer under way."""
        with self._changed:
            self.running = [job for job in self.running if job not in jobs]

    def cancel(self, job: Job) -> None:
        """Out of the queue, or stopped at the end of the step under way; nothing where it has ended."""
        with self._changed:
            job.cancelled = True
            queued = job in self.waiting
            self.waiting = [other for other in self.waiting if other is not job]
        if queued:
            job.end("cancelled")

    def close(self) -> None:
        """Cancel what waits and what runs; nothing is taken any more."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()
            jobs = [*self.waiting, *self.running]
        for job in jobs:
            self.cancel(job)

    def ahead(self, expected: Callable[[Rung, Order], float]) -> float:
        """Seconds until everything that waits or runs is done, on one device."""
        with self._changed:
            jobs = (*self.waiting, *self.running)
            return sum(expected(job.rung, job.order) * (1 - job.progress / 100) for job in jobs)
