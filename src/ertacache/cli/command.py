"""What every command does alike: its words of the log, its result as text or JSON, and its end when interrupted."""

import functools
import inspect
import json
import logging
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from ertacache.cli.options import GROUPS

Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more about what is done.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress; warnings and the result only.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]

_SHARED = {"verbose": Verbose, "quiet": Quiet, "as_json": Json}
_LOG = logging.getLogger("ertacache")


def command(function: Callable[..., dict[str, Any]]) -> Callable[..., None]:
    """The command of a function that returns its result, with the text for people under "text".

    It has the function's options, with the parameters of `GROUPS` spelled out, and --verbose, --quiet and --json.
    """
    parameters = inspect.signature(function).parameters.values()
    groups = {parameter.name: GROUPS[parameter.name] for parameter in parameters if parameter.name in GROUPS}

    @functools.wraps(function)
    def run(*, verbose: bool, quiet: bool, as_json: bool, **options: Any) -> None:
        set_level(verbose, quiet)
        packed = {name: make(**{key: options.pop(key) for key in members}) for name, (make, members) in groups.items()}
        try:
            show(function(**options, **packed), as_json)
        except KeyboardInterrupt as error:
            say("interrupted")
            raise typer.Exit(130) from error

    # What typer reads the options from.
    spelled = list[inspect.Parameter]()
    for parameter in parameters:
        members = groups[parameter.name][1] if parameter.name in groups else None
        own = {parameter.name: (parameter.annotation, parameter.default)} if members is None else members
        spelled += [_keyword(name, *option) for name, option in own.items()]
    spelled += [_keyword(name, annotation, False) for name, annotation in _SHARED.items()]
    run.__signature__ = inspect.Signature(spelled)  # pyright: ignore[reportAttributeAccessIssue]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in spelled}
    return run


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def set_level(verbose: bool, quiet: bool) -> None:
    """How much the log says; the latest command decides."""
    _LOG.setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)


def shows_progress() -> bool:
    """Whether progress is drawn: not with --quiet."""
    return _LOG.isEnabledFor(logging.INFO)


def show(result: dict[str, Any], as_json: bool) -> None:
    """One JSON object, or the text for people."""
    if as_json:
        facts = {name: value for name, value in result.items() if name != "text"}
        sys.stdout.write(json.dumps(facts) + "\n")
    else:
        sys.stdout.write(result["text"] + "\n")


def say(message: str) -> None:
    """One line on standard error, under the program's name."""
    sys.stderr.write(f"ertacache: {message}\n")
