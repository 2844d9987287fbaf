"""`ertacache serve`: one model behind HTTP."""

import json
import re
import socket
from dataclasses import replace
from typing import Annotated, Any

import typer

from ertacache.cli import options as given
from ertacache.errors import InvalidArgument

Host = Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for every network, then with a key.")]
Port = Annotated[int, typer.Option(callback=given.whole(1, 65535), help="Port to listen at.")]
Key = Annotated[
    str | None, typer.Option(envvar="ERTACACHE_API_KEY", help="Key that clients send as Bearer; none by default.")
]
Pixels = Annotated[int, typer.Option(callback=given.whole(256), help="Height times width, times frames of a clip.")]
MostSteps = Annotated[int, typer.Option(callback=given.whole(1), help="Solver steps of a request.")]
Characters = Annotated[int, typer.Option(callback=given.whole(1), help="Characters of a prompt.")]
Grace = Annotated[int, typer.Option(callback=given.whole(0), help="Seconds that requests have to end at a stop.")]


def serve(
    model: given.Model,
    profile: Annotated[
        list[str] | None,
        typer.Option(
            help="Profile file or Hub id; give it again for each further budget. Without one all is computed."
        ),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=PATH (or Hub id) of a LoRA adapter that requests may name; again for each further one."
        ),
    ] = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key: Key = None,
    batch_size: Annotated[
        int, typer.Option(callback=given.whole(1), help="Equal requests in one call; above 1 they round otherwise.")
    ] = 1,
    queue: Annotated[int, typer.Option(callback=given.whole(1), help="Pictures or clips that may wait.")] = 32,
    max_pixels: Pixels = 2048 * 2048,
    max_steps: MostSteps = 100,
    max_prompt: Characters = 4000,
    grace: Grace = 30,
    *,
    placement: given.Placement,
) -> dict[str, Any]:
    """Serve a model over HTTP, in the words of OpenAI's images and videos; several devices separated by commas."""
    limits = {"pixels": max_pixels, "steps": max_steps, "characters": max_prompt, "queue": queue}
    with bound(host, port) as place:
        app, service = _app(model, (profile or [], lora or []), limits, placement, batch_size, api_key)
        return run(app, service, place, grace, {})


def _app(
    model: str,
    files: tuple[list[str], list[str]],
    limits: dict[str, int],
    placement: given.Placement,
    batch: int,
    key: str | None,
) -> tuple[Any, Any]:
    """The application and its service; what can be wrong without the model is refused before it is loaded."""
    where = places(model, placement, key)
    from ertacache.serving.adapters import read_adapters
    from ertacache.serving.app import make_app
    from ertacache.serving.ladder import read_rungs
    from ertacache.serving.order import Limits
    from ertacache.serving.service import Service

    rungs, adapters = read_rungs(files[0]), read_adapters(files[1])
    service = Service(model, loaded(model, where), rungs, replace(Limits(), **limits), batch, key, adapters)
    return make_app(service), service


def places(model: str, placement: given.Placement, key: str | None) -> list[given.Placement]:
    """Where a server's pipelines go, one a device; what cannot be is refused."""
    from ertacache.cli.model import check
    from ertacache.extras import require

    require("a server", "fastapi", "uvicorn", "prometheus_client")
    if key is not None and not re.fullmatch("[!-~]+", key):
        raise InvalidArgument("--api-key is empty, or no header carries it; use letters, digits and signs of ASCII")
    names = [None] if placement.device is None else placement.device.split(",")
    found = [placement._replace(device=name) for name in names]
    for place in found:
        check(model, place)
    return found


def loaded(model: str, where: list[given.Placement]) -> list[Any]:
    """The pipeline in each of these places."""
    from ertacache.cli.model import load

    return [load(model, place) for place in where]


def bound(host: str, port: int) -> socket.socket:
    """A socket at that place, which does not listen yet: what cannot be had is refused before a model is loaded."""
    place = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind((host, port))
    except (OSError, UnicodeError) as error:
        place.close()
        raise InvalidArgument(f"--host {host} with --port {port} cannot be had ({error}); name another") from error
    return place


def run(app: Any, service: Any, place: socket.socket, grace: int, tls: dict[str, Any]) -> dict[str, Any]:
    """Serve an application until a signal; `tls` has uvicorn's options for it."""
    import logging

    import uvicorn

    host, port = place.getsockname()[:2]
    scheme = "https" if tls else "http"
    url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
    lines = logging.StreamHandler()
    log = logging.getLogger("ertacache.serving")
    log.addHandler(lines)
    log.propagate = False
    try:
        log.info(json.dumps({"event": "start", "model": service.model, "url": url}))
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, ws="none", timeout_graceful_shutdown=grace, **tls
        )
        uvicorn.Server(config).run([place])
    finally:
        log.removeHandler(lines)
        log.propagate = True
    return {"host": host, "port": port, "text": f"served {service.model} at {url}"}
