"""`ertacache zoo`: the commands that come with ertacache-zoo, or where to get them."""

from importlib import import_module

import typer

from ertacache.extras import present, require

_ANYTHING = {"allow_extra_args": True, "ignore_unknown_options": True}


def add_zoo(app: typer.Typer) -> None:
    """Add the zoo's own commands; without the zoo, one that names the pip command whatever it is asked for."""
    if present("ertacache_zoo"):
        app.add_typer(import_module("ertacache_zoo.cli").zoo, name="zoo")
    else:
        app.command("zoo", context_settings=_ANYTHING)(_missing)


def _missing() -> None:
    """The bundled models (not installed: pip install ertacache-zoo)."""
    require("`ertacache zoo`", "ertacache_zoo")
