"""Pictures: one answer when all are done, or a stream on the way; a client that goes away cancels them."""

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from ertacache.serving.job import Job
from ertacache.serving.order import Order
from ertacache.serving.service import Service

#: Of jobs, in order: "step" with its number, "partial" with a file, "end" with a state.
Events = asyncio.Queue[tuple[str, Any]]


def add_images(app: FastAPI, service: Service) -> None:
    """The route /v1/images/generations."""

    @app.post("/v1/images/generations")
    async def generate(request: Request) -> Response:
        order = await service.read(request, clip=False)
        events, tell = told_here()
        jobs, expected = service.submit(order, tell)
        if order.stream:
            stream = _stream(service, request, jobs[0], events, expected)
            unheld = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # by proxies, which else gather it
            return Stream(stream, media_type="text/event-stream", headers=unheld)
        async for _ in until_gone(service, request, jobs, events):
            pass
        for job in jobs:
            job.check()
        data = [{"b64_json": _text(job.data), **service.answer(job)} for job in jobs]
        return JSONResponse({"created": int(time.time()), "data": data, **_form(order), "expected_seconds": expected})


class Stream(StreamingResponse):
    """Of content that looks itself whether the client is there.

    Starlette's own look ends it by an error whose traceback holds itself, and with it the job, until a collector comes.
    """

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.stream_response(send)


def told_here() -> tuple[Events, Callable[[str, Any], None]]:
    """A queue of this event loop, and what puts an event into it from any thread."""
    events, loop = Events(), asyncio.get_running_loop()

    def tell(kind: str, value: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is gone, and wants nothing
            loop.call_soon_threadsafe(events.put_nowait, (kind, value))

    return events, tell


async def until_gone(
    service: Service, request: Request, jobs: Sequence[Job], events: Events
) -> AsyncGenerator[tuple[str, Any]]:
    """Events until all jobs have ended or the client closes the connection; what is not done then is cancelled."""

    async def look() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        events.put_nowait(("gone", None))

    looking, left = asyncio.ensure_future(look()), len(jobs)
    try:
        while left and (event := await events.get())[0] != "gone":
            left -= event[0] == "end"
            yield event
    finally:
        looking.cancel()
        for job in jobs:
            service.queue.cancel(job)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _form(order: Order) -> dict[str, Any]:
    """What every form of an answer says of a picture's file."""
    size = f"{order.call['width']}x{order.call['height']}"
    return {"size": size, "quality": order.quality, "output_format": order.output_format, "background": "opaque"}


async def _stream(service: Service, request: Request, job: Job, events: Events, expected: float) -> AsyncGenerator[str]:
    shown, form = 0, {**_form(job.order), "created_at": int(job.created)}
    if job.order.progress:
        yield _event("progress", {**service.place(job), "expected_seconds": expected})
    async with contextlib.aclosing(until_gone(service, request, [job], events)) as told:
        async for kind, value in told:
            if kind == "step" and job.order.progress:
                at = {"status": "in_progress", "step": value, "progress": job.percent(value)}
                yield _event("progress", {**service.place(job), **at})
            elif kind == "partial":
                yield _event("partial_image", {**form, "b64_json": _text(value), "partial_image_index": shown})
                shown += 1
    try:
        job.check()
    except HTTPException as problem:  # the status was sent long ago
        yield f"event: error\ndata: {json.dumps({'error': {'message': problem.detail, 'type': 'server_error'}})}\n\n"
        return
    # No tokens are counted here; clients read the field.
    usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    yield _event("completed", {**form, "b64_json": _text(job.data), "usage": usage, **service.answer(job)})


def _event(name: str, facts: dict[str, Any]) -> str:
    kind = f"image_generation.{name}"
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **facts})}\n\n"
