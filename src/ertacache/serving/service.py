"""A server's parts: its workers, its queue, its profiles, and what it says of them."""

import asyncio
import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import HTTPException, Request

from ertacache.errors import InvalidArgument, UnsupportedPipeline
from ertacache.evaluation.sample_files import FPS, makes_clips, trained_fps
from ertacache.extras import require
from ertacache.pipelines import bundled
from ertacache.pipelines.adapters import load_adapters
from ertacache.pipelines.loading import call_arguments, with_steps
from ertacache.pipelines.pipeline_call import default_size, defaults_of
from ertacache.pipelines.preview import can_preview
from ertacache.serving.job import Job, JobQueue
from ertacache.serving.ladder import Ladder, Rung
from ertacache.serving.meters import Meters
from ertacache.serving.order import Limits, Order, read_body, read_order
from ertacache.serving.worker import Worker

#: Seconds that a body may take to arrive.
_BODY_SECONDS = 60


@dataclass
class Service:
    """Pipelines, one a device, behind one queue.

    Args:
        model: its name to clients. pipes: the same model on each device. rungs: see `ladder.read_rungs`.
        batch: equal requests that may be one call. api_key: what clients send as Bearer; None for everybody.
        adapters: see `adapters.read_adapters`.

    Raises:
        ProfileMismatch: a profile of another model. UnsupportedPipeline: it takes no size or no prompt.
        MissingExtra: clips without ffmpeg.
    """

    model: str
    pipes: Sequence[Any]
    rungs: tuple[Rung, ...]
    limits: Limits = field(default_factory=Limits)
    batch: int = 1
    api_key: str | None = None
    adapters: Mapping[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        pipe, first = self.pipes[0], self.rungs[0].profile
        calibrated = {} if first is None else dict(first.provenance.call)  # what it leaves out was the pipeline's own
        defaults = calibrated or call_arguments(self.model, {})
        self.ladder = Ladder(self.rungs, _sized(pipe, with_steps(pipe, defaults)))
        self.queue, self.fps, self._takes = JobQueue(self.limits.queue), self._rate(), defaults_of(pipe)
        self.meters, self._started = Meters(self.queue, self.ladder), False
        self.workers = [self._worker(each) for each in self.pipes]
        for each in self.pipes:  # the profiles were compared with the weights without them
            load_adapters(each, self.adapters)

    def _rate(self) -> float | None:
        """Frames a second of what is made; None for pictures."""
        if not makes_clips(self.pipes[0], dict(self.ladder.defaults)):
            return None
        require("a server of clips", "imageio_ffmpeg")
        return FPS if self.model in bundled.NAMES else trained_fps(self.pipes[0])

    def _worker(self, pipe: Any) -> Worker:
        return Worker(pipe, self.ladder, self.queue, self.meters, self.batch, self.fps)

    @property
    def ready(self) -> bool:
        """Whether every device is warm."""
        return all(worker.ready.is_set() for worker in self.workers)

    @property
    def broken(self) -> bool:
        """Whether a worker has ended on its own."""
        return self._started and not self.queue.closed and not all(worker.thread.is_alive() for worker in self.workers)

    def start(self) -> None:
        """Start the workers, which warm up first."""
        self._started = True
        for worker in self.workers:
            worker.thread.start()

    def stop(self) -> None:
        """Cancel what waits and what runs, at its next step, and wait for the workers."""
        self.queue.close()
        for worker in self.workers:
            worker.thread.join()

    async def body(self, request: Request) -> bytes:
        """The body of a request.

        Raises:
            HTTPException: longer than the limit, or too slow.
        """
        data = bytearray()
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                size = 0
                async for part in request.stream():
                    size += len(part)
                    if size <= self.limits.body:
                        data += part
                    elif size > 2 * self.limits.body:  # until there a client may finish, and read why not
                        break
                if size > self.limits.body:
                    raise HTTPException(413, f"the body is over {self.limits.body} bytes; send less")
        except TimeoutError as error:
            raise HTTPException(408, f"the body did not arrive within {_BODY_SECONDS} s; send it again") from error
        return bytes(data)

    async def read(self, request: Request, *, clip: bool) -> Order:
        """The order of a request.

        Raises:
            InvalidArgument: a body that is no order. HTTPException: too long, of another model or of the other kind.
        """
        body = read_body(await self.body(request), request.headers.get("content-type", ""))
        if (model := body.get("model")) not in (None, self.model):
            raise HTTPException(404, f"model is {reprlib.repr(model)}, and this server has {self.model!r}")
        if clip != (self.fps is not None):
            kind = "pictures; use /v1/images/generations" if clip else "clips; use /v1/videos"
            raise HTTPException(404, f"this model makes {kind}")
        order = read_order(body, self.ladder.defaults, self._takes, self.limits, self.fps, [*self.adapters])
        if order.partial_images and not can_preview(self.pipes[0]):
            raise InvalidArgument(f"partial_images is {order.partial_images}, and this model has no previews; use 0")
        return order

    def submit(
        self, order: Order, tell: Callable[[str, Any], None] = lambda kind, value: None
    ) -> tuple[list[Job], float]:
        """A job for each picture of an order, in the queue, and the seconds that all are expected to take.

        Raises:
            InvalidArgument: a profile that is not here. HTTPException: 429 or 503, with Retry-After.
        """
        rung, reason = self.ladder.choose(order)
        jobs = [Job(order, rung, order.seed + n, reason, tell, self.meters.ended) for n in range(order.n)]
        return jobs, self.enqueue(jobs)

    def enqueue(self, jobs: Sequence[Job]) -> float:
        """Put jobs into the queue: the seconds until all are expected to be done.

        Raises:
            HTTPException: 429 or 503, with Retry-After.
        """
        before = self.queue.ahead(self.ladder.expected) / len(self.workers)
        if (refusal := self.queue.put([*jobs])) is not None:
            wait = {"Retry-After": str(max(1, math.ceil(before)))}
            raise HTTPException(503 if self.queue.closed else 429, refusal, wait)
        return before + sum(self.ladder.expected(job.rung, job.order) for job in jobs) / len(self.workers)

    def place(self, job: Job) -> dict[str, Any]:
        """How far a job is, and how many are before it."""
        waiting = list(self.queue.waiting)
        return {
            "id": job.id, "status": job.state, "before": waiting.index(job) if job in waiting else 0,
            "step": job.step, "steps": job.steps, "progress": job.progress,
            "schedule": job.rung.schedule(job.order.call["num_inference_steps"]),
        }  # fmt: skip

    def answer(self, job: Job) -> dict[str, Any]:
        """What was done for a picture or clip, beside its file."""
        return {"seed": job.seed, "ertacache": job.facts()}

    def facts(self) -> dict[str, Any]:
        """The model for /v1/models, with its profiles and what a picture takes by each."""
        call = dict(self.ladder.defaults)
        rungs = [
            {
                "name": rung.name, "computed_share": rung.share, "judged_psnr_db": rung.loss,
                "schedule": rung.schedule(call["num_inference_steps"]),
                "seconds": self.ladder.expected(rung, Order("", call)),
            }
            for rung in self.ladder.rungs
        ]  # fmt: skip
        kind = "images" if self.fps is None else "videos"
        own = {"kind": kind, "call": call, "profiles": rungs, "lora": [*self.adapters]}
        return {"id": self.model, "object": "model", "created": 0, "owned_by": "ertacache", "ertacache": own}


def _sized(pipe: Any, call: dict[str, Any]) -> dict[str, Any]:
    """The call with its height and width: the pipeline's own where nobody said."""
    if not {"prompt", "height", "width"} <= defaults_of(pipe).keys():
        raise UnsupportedPipeline(f"{type(pipe).__name__} takes no prompt, height and width; serve one that does")
    for name in ("height", "width"):
        call[name] = call.get(name) or default_size(pipe, name)
    return call
