"""`ertacache serve`: one model behind HTTP."""

from dataclasses import replace
from typing import Annotated, Any

import typer

from ertacache.cli import options as given


def serve(
    model: given.Model,
    profile: Annotated[
        list[str] | None,
        typer.Option(
            help="Profile file or Hub id; give it again for each further budget. Without one all is computed."
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 for every network, then with a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(callback=given.whole(1, 65535), help="Port to listen at.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="ERTACACHE_API_KEY", help="Key that clients send as Bearer; none by default.")
    ] = None,
    batch_size: Annotated[
        int, typer.Option(callback=given.whole(1), help="Equal requests in one call; above 1 they round otherwise.")
    ] = 1,
    queue: Annotated[int, typer.Option(callback=given.whole(1), help="Pictures or clips that may wait.")] = 32,
    max_pixels: Annotated[
        int, typer.Option(callback=given.whole(256), help="Height times width, times frames of a clip.")
    ] = 2048 * 2048,
    max_steps: Annotated[int, typer.Option(callback=given.whole(1), help="Solver steps of a request.")] = 100,
    max_prompt: Annotated[int, typer.Option(callback=given.whole(1), help="Characters of a prompt.")] = 4000,
    grace: Annotated[
        int, typer.Option(callback=given.whole(0), help="Seconds that requests have to end at a stop.")
    ] = 30,
    *,
    placement: given.Placement,
) -> dict[str, Any]:
    """Serve a model over HTTP, in the words of OpenAI's images and videos; several devices separated by commas."""
    limits = {"pixels": max_pixels, "steps": max_steps, "characters": max_prompt, "queue": queue}
    service = _service(model, tuple(profile or ()), limits, placement, batch_size, api_key)
    return _run(service, host, port, grace)


def _service(
    model: str,
    profiles: tuple[str, ...],
    limits: dict[str, int],
    placement: given.Placement,
    batch: int,
    key: str | None,
) -> Any:
    """The service; everything that can be wrong without the model is refused before it is loaded."""
    from ertacache.cli.model import check, load
    from ertacache.extras import require

    require("a server", "fastapi", "uvicorn", "prometheus_client")
    places = [placement._replace(device=name) for name in (placement.device or "").split(",")]
    places = [place._replace(device=place.device or None) for place in places]
    for place in places:
        check(model, place)
    from ertacache.serving.ladder import read_rungs
    from ertacache.serving.order import Limits
    from ertacache.serving.service import Service

    rungs = read_rungs(profiles)
    return Service(model, [load(model, place) for place in places], rungs, replace(Limits(), **limits), batch, key)


def _run(service: Any, host: str, port: int, grace: int) -> dict[str, Any]:
    import logging

    import uvicorn

    from ertacache.serving.app import make_app

    lines = logging.StreamHandler()
    log = logging.getLogger("ertacache.serving")
    log.addHandler(lines)
    log.propagate = False
    try:
        uvicorn.run(
            make_app(service), host=host, port=port, log_level="warning", access_log=False,
            timeout_graceful_shutdown=grace,
        )  # fmt: skip
    finally:
        log.removeHandler(lines)
        log.propagate = True
    return {"host": host, "port": port, "text": f"served {service.model} at http://{host}:{port}"}
