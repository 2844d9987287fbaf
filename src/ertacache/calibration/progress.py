"""Progress of pipeline runs on standard error: a bar and the time that is left; a line a minute in a log file."""

import logging
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)

#: Seconds between two lines where there is no terminal to draw a bar on.
LINE_EVERY = 60.0


@contextmanager
def run_progress(show: bool = True, title: str = "calibrate", expected: int = 1) -> Generator[Callable[[str], None]]:
    """A bar over pipeline runs; yields what to call after each, with its name.

    Args:
        expected: about how many runs there will be. How many a threshold search takes is known only at its end: the
            bar ends early where it takes fewer, and grows where it takes more.
    """
    if not show:
        yield lambda name: None
        return
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield _lines(title, expected)
        return
    bar = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *bar, console=console, transient=True) as progress:
        task = progress.add_task(title, total=expected)

        def advance(name: str) -> None:
            progress.update(task, advance=1, description=f"{title}: {name}")
            done = int(progress.tasks[0].completed)
            progress.update(task, total=max(expected, done + 1))

        yield advance


def say(text: str, *, title: str, show: bool = True) -> None:
    """A line in the log and, where it shall be shown, on standard error (above the bar, while there is one)."""
    # Marked, so that a handler that writes to standard error too need not say it twice.
    logger.info("%s: %s", title, text, extra={"shown": show})
    if show:
        Console(file=sys.stderr).print(f"{title}: {text}", markup=False, highlight=False, soft_wrap=True)


def _lines(title: str, expected: int) -> Callable[[str], None]:
    begun = said = time.monotonic()
    done = 0

    def advance(name: str) -> None:
        nonlocal said, done
        done, now = done + 1, time.monotonic()
        if now - said >= LINE_EVERY:
            said, total = now, max(expected, done + 1)
            left = (now - begun) / done * (total - done) / 60
            print(f"{title}: {name}, {done} of about {total}, {left:.0f} min left", file=sys.stderr, flush=True)

    return advance
