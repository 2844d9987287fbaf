"""The command line: every command parses, calls one function and prints. Bad input exits with code 2.

Nothing here imports torch or diffusers: `--help` is there at once. Each command imports what it uses.
"""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Generator, Iterator
from typing import Annotated, Any

import typer

from ertacache.cli.ablation import ablation
from ertacache.cli.calibrate import calibrate
from ertacache.cli.calibrate_split import calibrate_split
from ertacache.cli.command import Quiet, Verbose, command, say, set_level
from ertacache.cli.compare import compare
from ertacache.cli.convert_open_sora import convert_open_sora
from ertacache.cli.demo import demo
from ertacache.cli.generate import generate
from ertacache.cli.inspect import inspect
from ertacache.cli.messages import in_options
from ertacache.cli.quantize import quantize
from ertacache.cli.reproduce import reproduce
from ertacache.cli.serve import serve
from ertacache.cli.split_server import split_server
from ertacache.cli.vbench import vbench
from ertacache.cli.zoo import add_zoo
from ertacache.errors import ErtacacheError
from ertacache.files import reason

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
_COMMANDS = (
    demo, calibrate, calibrate_split, generate, compare, inspect, ablation, reproduce, serve, split_server, quantize,
    convert_open_sora,
)  # fmt: skip
for function in _COMMANDS:
    app.command()(command(function))
app.add_typer(vbench(), name="vbench")
add_zoo(app)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        sys.stdout.write(f"ertacache {version('ertacache')}\n")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Calibrated step caching for diffusers pipelines."""
    set_level(verbose, quiet)


def main() -> None:
    """Entry point: what goes wrong for a reason becomes one line and exit code 2."""
    # It warns at every start that image processors which nothing here uses would like torchvision.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with _log_to_stderr():
        try:
            app(prog_name="ertacache")
        except ErtacacheError as error:
            say(in_options(str(error), _options(typer.main.get_command(app))))
            sys.exit(2)
        except OSError as error:
            say(f"{error.filename}: {reason(error)}" if error.filename is not None else str(error))
            sys.exit(2)
        except (MemoryError, RuntimeError) as error:
            # torch's own errors for it: a RuntimeError of this name, and on the CPU one that only its words tell.
            named = type(error).__name__ in ("MemoryError", "OutOfMemoryError")
            if not named and "can't allocate memory" not in str(error):
                raise
            say("out of memory; use --offload, a smaller --batch-size, or fewer pixels or frames")
            sys.exit(2)


def _options(group: Any) -> Iterator[str]:
    """Every long option of every command."""
    for part in getattr(group, "commands", {}).values():
        yield from _options(part)
    for parameter in group.params:
        yield from (name for name in parameter.opts if name.startswith("--"))


@contextlib.contextmanager
def _log_to_stderr() -> Generator[None]:
    """The log and Python's warnings as lines of this program."""
    log, handler = logging.getLogger("ertacache"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("ertacache: %(message)s"))
    handler.addFilter(lambda record: not getattr(record, "shown", False))
    log.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *rest, **more: log.warning("warning: %s", message)
            yield
    finally:
        log.removeHandler(handler)
