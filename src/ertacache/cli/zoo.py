"""`ertacache zoo`: the commands that come with ertacache-zoo, or where to get them."""

from importlib import import_module
from importlib.util import find_spec

import typer

from ertacache.errors import MissingExtra


def zoo() -> typer.Typer:
    """The zoo's own commands; without the zoo, one that names the pip command whatever it is asked for."""
    if find_spec("ertacache_zoo") is not None:
        return import_module("ertacache_zoo.cli").zoo
    app = typer.Typer(help="The bundled models (not installed: pip install ertacache-zoo).")
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(_missing)
    return app


def _missing() -> None:
    """Say how to install the bundled models."""
    raise MissingExtra("the bundled models are not installed; install them with: pip install ertacache-zoo")
