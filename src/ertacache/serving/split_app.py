"""The routes of a server that makes the first steps of runs, and decodes."""

import asyncio
import contextlib
import time
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response

from ertacache.errors import InvalidArgument
from ertacache.serving.app import bare_app
from ertacache.serving.images import told_here, until_gone
from ertacache.serving.remote_decode import Decoding
from ertacache.serving.split_service import SplitJob, SplitService

#: The most seconds that a question is held back until there is news.
_HELD = 10.0


def make_split_app(service: SplitService) -> FastAPI:
    """The application around a service of first parts, which starts and stops with it."""
    app = bare_app(service)
    _add_split(app, service)
    _add_decode(app, service)
    return app


def _add_split(app: FastAPI, service: SplitService) -> None:
    news: dict[str, asyncio.Event] = {}

    @app.get("/")
    async def index() -> Response:
        return JSONResponse(service.facts())

    @app.post("/v1/split")
    async def create(request: Request) -> Response:
        key = request.headers.get("idempotency-key")
        if key is not None and not (1 <= len(key) <= 200 and key.isprintable()):
            raise HTTPException(400, "Idempotency-Key is empty or over 200 characters; send a random one")
        job = service.order(await service.body(request), key)
        for gone in news.keys() - service.jobs.keys():
            del news[gone]
        if job.id not in news:
            event, loop = news.setdefault(job.id, asyncio.Event()), asyncio.get_running_loop()

            def tell(kind: str, value: Any) -> None:
                with contextlib.suppress(RuntimeError):  # the loop is gone, and wants nothing
                    loop.call_soon_threadsafe(event.set)

            job.tell = tell
        return JSONResponse(_place(service, job), 202, {"Location": f"/v1/split/{job.id}"})

    @app.get("/v1/split/{name}")
    async def content(name: str, step: int = -1, wait: float = 0.0) -> Response:
        job, told = service.known(name), news[name]
        if not 0 <= wait < float("inf"):
            raise InvalidArgument(f"wait is {wait}; give seconds from 0 on")
        end = time.monotonic() + min(wait, _HELD, service.patience / 2)
        while job.ended is None and job.step == step and (left := end - time.monotonic()) > 0:
            told.clear()  # what is told from now on sets it again
            if job.ended is None and job.step == step:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(told.wait(), left)
        if job.ended is None:
            return JSONResponse(_place(service, job), 202)
        service.known(name)  # unless it was cancelled meanwhile
        job.check()
        return Response(job.data, media_type="application/vnd.safetensors")

    @app.delete("/v1/split/{name}")
    async def delete(name: str) -> Response:
        service.cancel(name)
        return JSONResponse({"id": name, "object": "split.deleted", "deleted": True})


def _place(service: SplitService, job: SplitJob) -> dict[str, Any]:
    return {"object": "split", "model": service.model, **service.place(job)}


def _add_decode(app: FastAPI, service: SplitService) -> None:
    @app.post("/v1/decode")
    async def decode(request: Request) -> Response:
        asked = Decoding.read(request, service.pipes[0], service.limits)
        data = await service.body(request)
        latents = asked.latents(data)
        job = service.started(asked.order, lambda pipe, job: asked.decoded(pipe, latents, job.fields), 1)
        events, job.tell = told_here()
        if job.ended is None:
            async with contextlib.aclosing(until_gone(service, request, [job], events)) as told:
                async for kind, _ in told:
                    if kind == "end":
                        break
        job.check()
        return Response(job.data, headers=job.fields)
