"""Progress of pipeline runs on standard error: a bar and the time that is left."""

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


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
    bar = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    console = Console(file=sys.stderr)
    with Progress(TextColumn("{task.description}"), *bar, console=console, transient=True) as progress:
        task = progress.add_task(title, total=expected)

        def advance(name: str) -> None:
            progress.update(task, advance=1, description=f"{title}: {name}")
            done = int(progress.tasks[0].completed)
            progress.update(task, total=max(expected, done + 1))

        yield advance
