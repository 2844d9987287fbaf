"""A pipeline that makes the first steps of other people's runs, and hands them over."""

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from fastapi import HTTPException

from ertacache.errors import InvalidArgument
from ertacache.evaluation.sample_files import makes_clips
from ertacache.pipelines.inputs import is_text
from ertacache.pipelines.pipeline_call import progress_bars
from ertacache.serving.job import Job
from ertacache.serving.ladder import Rung
from ertacache.serving.order import Order
from ertacache.serving.service import Service
from ertacache.serving.worker import Cancelled, Worker
from ertacache.split.arguments import check_interruptible
from ertacache.split.parts import first_part
from ertacache.split.request import SplitRequest
from ertacache.split.solver_state import check_solver

#: Finished handovers that nobody has fetched: how many are kept, and of how many bytes together.
KEPT, KEPT_BYTES = 64, 2**30
#: Solver steps of a run to warm up.
_WARM = 4


@dataclass(eq=False)
class SplitJob(Job):
    """A part of a run, from the request to its bytes.

    Attributes:
        work: makes them. key, digest: what the client calls it, and of which request that is the name.
        seen: when somebody last asked after it, of `time.monotonic`. patience: seconds until nobody is waiting.
        fields: of the answer's header.
    """

    work: Callable[[Any, "SplitJob"], bytes] = lambda pipe, job: b""
    key: str | None = None
    digest: str = ""
    seen: float = field(default_factory=time.monotonic)
    patience: float = math.inf
    fields: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def abandoned(self) -> bool:
        """Whether nobody asks after it any more."""
        return time.monotonic() - self.seen > self.patience

    def go_on(self, step: int, steps: int) -> None:
        """So many of the steps are made.

        Raises:
            Cancelled: nobody wants the others.
        """
        if self.cancelled or self.abandoned:
            raise Cancelled
        self.advance(step, steps)


class SplitWorker(Worker):
    """Makes whatever a job is, and warms up with short runs that nobody gets."""

    def _files(self, jobs: list[Job]) -> list[bytes]:
        job, start = jobs[0], time.time()
        if isinstance(job, SplitJob):
            job.go_on(0, job.steps)
            data = job.work(self.pipe, job)
            self._ladder.took(job.rung, job.order, time.time() - start)
            return [data]
        call, generator = dict(job.order.call), torch.Generator().manual_seed(0)
        steps = call["num_inference_steps"]
        call["num_inference_steps"] = few = min(_WARM, steps)
        self.pipe(prompt="a", **call, output_type="latent", generator=generator)
        self._ladder.took(job.rung, job.order, (time.time() - start) * steps / few)
        return [b""]


@dataclass
class SplitService(Service):
    """`Service` for first parts, without profiles to choose from.

    Args:
        patience: seconds after which a run that nobody asks after is stopped at its next step, and a finished one
            forgotten.

    Raises:
        UnsupportedPipeline: one that cannot be cut, or whose solver's state cannot be handed over.
    """

    rungs: tuple[Rung, ...] = (Rung("none"),)
    patience: float = 60.0

    def __post_init__(self) -> None:
        self.jobs: dict[str, SplitJob] = {}
        for pipe in self.pipes:
            check_interruptible(pipe)
            check_solver(pipe.scheduler)
            for bar in progress_bars(pipe):
                bar.set_progress_bar_config(disable=True)
        super().__post_init__()

    def _rate(self) -> float | None:
        return None

    def _worker(self, pipe: Any) -> Worker:
        return SplitWorker(pipe, self.ladder, self.queue, self.meters)

    def facts(self) -> dict[str, Any]:
        """The model for /v1/models."""
        found, pipe = super().facts(), self.pipes[0]
        own = {
            "kind": "videos" if makes_clips(pipe, dict(self.ladder.defaults)) else "images",
            "pipeline": type(pipe).__name__, "solver": type(pipe.scheduler).__name__,
        }  # fmt: skip
        return {**found, "ertacache": {**found["ertacache"], **own}}

    def order(self, data: bytes, key: str | None) -> SplitJob:
        """The job of a request: a new one, in the queue, or the one that has its key.

        Raises:
            InvalidArgument: no sound request, or one over the limits.
            HTTPException: 422 for the key of another request; 429 or 503, with Retry-After.
        """
        self.forget()
        digest = hashlib.sha256(data).hexdigest()
        known = next((job for job in self.jobs.values() if key is not None and job.key == key), None)
        if known is not None:
            if known.digest != digest:
                raise HTTPException(422, "this Idempotency-Key was sent with another request; make a new one")
            known.seen = time.monotonic()
            return known
        request = SplitRequest.from_bytes(data, cap=self.limits.body)
        request.check(self.pipes[0])
        self._check_limits(request)
        size = {name: request.call[name] for name in ("height", "width", "num_frames") if name in request.call}
        order = Order("", {**self.ladder.defaults, **size, "num_inference_steps": request.until})
        job = self.started(order, lambda pipe, job: _first(pipe, job, request), request.until)
        job.key, job.digest = key, digest
        self.jobs[job.id] = job
        return job

    def started(self, order: Order, work: Callable[[Any, SplitJob], bytes], steps: int) -> SplitJob:
        """A job in the queue.

        Raises:
            HTTPException: 429 or 503, with Retry-After.
        """
        job = SplitJob(
            order, self.ladder.rungs[-1], 0, noted=self.meters.ended, work=work, patience=self.patience, steps=steps
        )
        self.enqueue([job])
        return job

    def known(self, name: str) -> SplitJob:
        """The job of that id, which somebody has now asked after.

        Raises:
            HTTPException: there is none.
        """
        self.forget()
        if name not in self.jobs:
            raise HTTPException(404, "no such run; it was cancelled, has expired, or never was")
        self.jobs[name].seen = time.monotonic()
        return self.jobs[name]

    def cancel(self, name: str) -> None:
        """Stop a run at its next step, and forget it."""
        self.queue.cancel(self.known(name))
        del self.jobs[name]

    def forget(self) -> None:
        """What nobody asks after, and the oldest where too much is kept; what waits is taken from the queue."""
        for job in [job for job in self.jobs.values() if job.abandoned and job.ended is None]:
            self.queue.cancel(job)
        ended = [job for job in self.jobs.values() if job.ended is not None]
        gone = [job for job in ended if job.abandoned or (job.state == "cancelled" and not self.queue.closed)]
        kept = [job for job in ended if job not in gone]
        while len(kept) > KEPT or sum(len(job.data) for job in kept[:-1]) > KEPT_BYTES:
            gone.append(kept.pop(0))
        for job in gone:
            del self.jobs[job.id]

    def _check_limits(self, request: SplitRequest) -> None:
        """Before anything is run.

        Raises:
            InvalidArgument: beginning with the name of the argument.
        """
        call, limits = {**self.ladder.defaults, **request.call}, self.limits
        steps = max(call["num_inference_steps"], len(request.tensors.get("sigmas", ())))
        pixels = math.prod(call.get(name, 1) for name in ("height", "width", "num_frames"))
        tokens = max((math.prod(one.shape[1:-1]) for one in request.embeddings.values()), default=0)
        longest = max(map(len, _texts(call)), default=0)
        for name, value, most, what in (
            ("num_inference_steps", steps, limits.steps, "steps"),
            ("until", request.until, 2 * limits.steps, "calls of the solver"),
            ("height", pixels, limits.pixels, "pixels, times width and frames,"),
            ("prompt", request.samples, limits.images, "samples"),
            ("prompt", longest, limits.characters, "characters"),
            ("prompt_embeds", tokens, limits.characters, "tokens"),
        ):
            if value > most:
                raise InvalidArgument(f"{name} makes {value} {what} and this server takes at most {most}; ask for less")


def _texts(call: Mapping[str, Any]) -> list[str]:
    """Every single text of a call."""
    listed: list[list[Any]] = [
        value if isinstance(value, list) else [value] for name, value in call.items() if is_text(name)
    ]
    return [text for texts in listed for text in texts if isinstance(text, str)]


def _first(pipe: Any, job: SplitJob, request: SplitRequest) -> bytes:
    """The bytes of the first part."""
    begun = False

    def follow(pipe: Any, i: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        nonlocal begun
        begun = True
        job.go_on(min(i + 1, request.until), request.until)
        return given

    call = {**request.arguments(pipe), "callback_on_step_end": follow}
    try:
        made = first_part(pipe, call, until=request.until, texts=request.texts)
    except InvalidArgument:
        raise
    except (ValueError, TypeError) as error:
        if begun:
            raise
        raise InvalidArgument(f"the pipeline refuses the call ({str(error)[:300]}); change that") from error
    job.computed = made.calls
    return (made.to(torch.bfloat16) if request.compressed else made).to_bytes()
