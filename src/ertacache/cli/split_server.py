"""`ertacache split-server`: the first steps of other people's runs, over HTTP."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ertacache.cli import options as given
from ertacache.cli import serve
from ertacache.errors import InvalidArgument

_Pem = Annotated[Path | None, typer.Option(help="PEM file; with both of them the server speaks https.")]


def split_server(
    model: given.Model,
    profile: Annotated[
        str | None, typer.Option(help="Profile file or Hub id; calls that it does not suit are computed.")
    ] = None,
    host: serve.Host = "127.0.0.1",
    port: serve.Port = 8000,
    api_key: serve.Key = None,
    ssl_certfile: _Pem = None,
    ssl_keyfile: _Pem = None,
    queue: Annotated[int, typer.Option(callback=given.whole(1), help="Runs that may wait.")] = 32,
    max_pixels: serve.Pixels = 2048 * 2048,
    max_steps: serve.MostSteps = 100,
    max_prompt: serve.Characters = 4000,
    max_body: Annotated[
        int, typer.Option(callback=given.whole(1), help="MiB of a request; it may hold texts encoded.")
    ] = 32,
    patience: Annotated[
        int, typer.Option(callback=given.whole(1), help="Seconds until a run that nobody asks after is stopped.")
    ] = 60,
    grace: serve.Grace = 30,
    *,
    placement: given.Placement,
) -> dict[str, Any]:
    """Make the first steps of runs that devices finish, for SplitClient, and decode for diffusers' remote_decode."""
    files = _pems(ssl_certfile, ssl_keyfile)
    limits = {
        "pixels": max_pixels,
        "steps": max_steps,
        "characters": max_prompt,
        "queue": queue,
        "body": max_body << 20,
    }
    with serve.bound(host, port) as place:
        app, service = _app(model, profile, limits, placement, api_key, patience)
        return serve.run(app, service, place, grace, files)


def _pems(certificate: Path | None, key: Path | None) -> dict[str, str]:
    for name, path in (("--ssl-certfile", certificate), ("--ssl-keyfile", key)):
        if path is not None and not path.is_file():
            raise InvalidArgument(f"{name}: there is no file {path}; check the path")
    if key is not None and certificate is None:
        raise InvalidArgument("--ssl-keyfile is given without --ssl-certfile; give both")
    found = {"ssl_certfile": certificate, "ssl_keyfile": key}
    return {name: str(path) for name, path in found.items() if path is not None}


def _app(
    model: str, profile: str | None, limits: dict[str, int], placement: given.Placement, key: str | None, patience: int
) -> tuple[Any, Any]:
    """The application and its service; what can be wrong without the model is refused before it is loaded."""
    places = serve.places(model, placement, key)
    from ertacache.profile.profile import Profile
    from ertacache.runtime.apply import enable
    from ertacache.serving.order import Limits
    from ertacache.serving.split_app import make_split_app
    from ertacache.serving.split_service import SplitService

    plan = None if profile is None else Profile.load(profile)
    pipes = serve.loaded(model, places)
    if plan is not None:
        for pipe in pipes:
            enable(pipe, plan, on_mismatch="compute")
    service = SplitService(model, pipes, limits=Limits(**limits), api_key=key, patience=patience)
    return make_split_app(service), service
