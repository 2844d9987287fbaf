"""The application: its routes, its key, and its errors in OpenAI's form."""

import asyncio
import contextlib
import hmac
import json
import logging
import time
from collections.abc import AsyncGenerator
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response

from ertacache.errors import InvalidArgument
from ertacache.profile.profile_html import draw_html
from ertacache.serving.images import add_images
from ertacache.serving.order import NAMES
from ertacache.serving.service import Service
from ertacache.serving.videos import add_videos

logger = logging.getLogger(__name__)

#: Seconds that the body of a refused request may take to arrive.
_DRAIN_SECONDS = 5
_CODES = {401: "invalid_api_key", 404: "not_found", 429: "queue_full", 503: "not_ready"}


def make_app(service: Service) -> FastAPI:
    """The application around a service of pictures or clips, which starts and stops with it."""
    app = bare_app(service)
    _add_pages(app, service)
    add_images(app, service)
    add_videos(app, service)
    return app


def bare_app(service: Service) -> FastAPI:
    """What all of our servers have: key, errors, health, metrics and the model's facts."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        service.start()
        yield
        await asyncio.to_thread(service.stop)

    app = FastAPI(title="ertacache", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.add_middleware(Guard, service=service)
    _add_errors(app)
    _add_status(app, service)
    return app


def error_answer(status: int, message: str, headers: Any = None) -> JSONResponse:
    """An error in OpenAI's form; its field is the first word of our messages about one."""
    first = message.partition(" ")[0].rstrip(":")
    kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
    field = first if first in NAMES else None
    body = {"message": message, "type": kind, "param": field, "code": _CODES.get(status)}
    return JSONResponse({"error": body}, status, headers)


def _add_errors(app: FastAPI) -> None:
    async def refused(request: Request, error: Exception) -> Response:
        match error:
            case InvalidArgument():
                return error_answer(400, str(error))
            case RequestValidationError():
                return error_answer(400, f"{request.url.query!r} is no query of {request.url.path}")
            case _ if getattr(error, "detail", None) in ("Not Found", "Method Not Allowed"):
                what = f"{request.method} {request.url.path} is no route of this server; its page is /"
                return error_answer(getattr(error, "status_code", 404), what)
            case HTTPException():
                return error_answer(error.status_code, str(error.detail), error.headers)
            case _:
                return error_answer(500, "this is a fault of the server; its log says more")

    for kind in (InvalidArgument, RequestValidationError, HTTPException, 404, 405, Exception):
        app.add_exception_handler(kind, refused)


class Guard:
    """The key, readiness, and a line of log for each request under /v1."""

    def __init__(self, app: Any, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        start, line = time.time(), {"event": "request", "method": scope["method"], "path": scope["path"]}

        async def noted(message: Any) -> None:
            line.setdefault("status", message.get("status"))
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is not None:
                await self._drain(receive)
            await (refusal or self._app)(scope, receive, noted)
        finally:
            logger.info(json.dumps({**line, "seconds": round(time.time() - start, 4)}))

    async def _drain(self, receive: Any) -> None:
        """Let a client finish its body: one whose connection ends in the middle of it never reads why."""
        left, more = self._service.limits.body, True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                while more and left > 0:
                    message = await receive()
                    more = message.get("more_body", False)
                    left -= len(message.get("body", b""))

    def _refusal(self, scope: Any) -> Response | None:
        key, given = self._service.api_key, dict(scope["headers"]).get(b"authorization", b"")
        bearer = given[:7].lower() == b"bearer "  # a scheme has no case, and a key has
        if key is not None and not (hmac.compare_digest(given[7:], key.encode()) and bearer):
            return error_answer(401, "the key is missing or wrong; send Authorization: Bearer KEY")
        if self._service.broken and scope["method"] == "POST":
            return error_answer(500, "a worker has ended; the server's log says why")
        if not self._service.ready and scope["method"] == "POST":
            return error_answer(503, "the model is not warm yet; ask /health", {"Retry-After": "5"})
        return None


def _add_status(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health() -> Response:
        if service.broken:
            return error_answer(500, "a worker has ended; the server's log says why")
        return JSONResponse({"status": "ok"}) if service.ready else error_answer(503, "the model is not warm yet")

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.meters.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [service.facts()]})


def _add_pages(app: FastAPI, service: Service) -> None:
    page = files("ertacache.serving").joinpath("page.html").read_text(encoding="utf-8")

    @app.get("/")
    async def index() -> Response:
        return HTMLResponse(page)

    @app.get("/v1/profiles/{name}")
    async def card(name: str) -> Response:
        found = [rung.profile for rung in service.ladder.rungs if rung.name == name and rung.profile is not None]
        if not found:
            raise HTTPException(404, f"profile {name!r} is not served here; /v1/models lists those that are")
        return HTMLResponse(draw_html(found[0]))
