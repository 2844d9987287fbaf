"""Clips as jobs that are asked after: created, listed, fetched and deleted."""

import reprlib
import time
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response

from ertacache.calibration.checks import check_whole
from ertacache.errors import InvalidArgument
from ertacache.serving.job import Job
from ertacache.serving.service import Service

#: Seconds that a finished clip is kept, and how many are.
KEPT_SECONDS, KEPT = 3600, 64


def add_videos(app: FastAPI, service: Service) -> None:
    """The routes under /v1/videos."""
    jobs: dict[str, Job] = {}

    def known(video: str) -> Job:
        _forget(jobs)
        if video not in jobs:
            raise HTTPException(404, f"no video {video!r}; it was deleted, has expired, or never was")
        return jobs[video]

    @app.post("/v1/videos")
    async def create(request: Request) -> Response:
        (job,), _ = service.submit(await service.read(request, clip=True))
        jobs[f"video_{job.id}"] = job
        return JSONResponse(_facts(service, job))

    @app.get("/v1/videos")
    async def listed(after: str | None = None, limit: int = 20, order: str = "desc") -> Response:
        _forget(jobs)
        check_whole("limit", limit, 1, "clips of a page", 100)
        if order not in ("asc", "desc"):
            raise InvalidArgument(f"order is {reprlib.repr(order)}; choose one of asc, desc")
        names = list(jobs) if order == "asc" else list(reversed(jobs))
        if after is not None:
            known(after)
            names = names[names.index(after) + 1 :]
        page = names[:limit]
        ends = {"first_id": next(iter(page), None), "last_id": next(reversed(page), None)}
        data = [_facts(service, jobs[name]) for name in page]
        return JSONResponse({"object": "list", "data": data, "has_more": len(names) > len(page), **ends})

    @app.get("/v1/videos/{video}")
    async def retrieve(video: str) -> Response:
        return JSONResponse(_facts(service, known(video)))

    @app.delete("/v1/videos/{video}")
    async def delete(video: str) -> Response:
        service.queue.cancel(known(video))
        del jobs[video]
        return JSONResponse({"id": video, "object": "video.deleted", "deleted": True})

    @app.get("/v1/videos/{video}/content")
    async def content(video: str, variant: str = "video") -> Response:
        job = known(video)
        if variant != "video":
            raise HTTPException(400, f"variant is {variant!r}; this server keeps the video only")
        if job.state != "completed":
            raise HTTPException(409, f"the video is {_state(job)}; ask for it again when it is completed")
        return Response(job.data, media_type="video/mp4")


def _facts(service: Service, job: Job) -> dict[str, Any]:
    """A job as OpenAI's Video, with what the profile did."""
    call, ended = job.order.call, int(job.ended) if job.ended and job.state == "completed" else None
    return {
        "id": f"video_{job.id}", "object": "video", "model": service.model, "status": _state(job),
        "progress": job.progress, "created_at": int(job.created), "completed_at": ended,
        "expires_at": None if ended is None else ended + KEPT_SECONDS, "prompt": job.order.prompt,
        "seconds": f"{call['num_frames'] / (service.fps or 1):g}", "size": f"{call['width']}x{call['height']}",
        "error": {"code": "failed", "message": job.error or "cancelled"} if _state(job) == "failed" else None,
        "expected_seconds": service.ladder.expected(job.rung, job.order), **service.answer(job),
    }  # fmt: skip


def _state(job: Job) -> str:
    return "failed" if job.state == "cancelled" else job.state


def _forget(jobs: dict[str, Job]) -> None:
    """Old ones, and the oldest where too many are done: files are large."""
    ended = [name for name, job in jobs.items() if job.ended is not None]
    old = [name for name in ended if time.time() - (jobs[name].ended or 0) > KEPT_SECONDS]
    for name in {*old, *ended[: max(0, len(ended) - KEPT)]}:
        del jobs[name]
