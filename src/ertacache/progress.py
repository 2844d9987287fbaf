"""Progress of pipeline runs on standard error, with the time that one run takes."""

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


@contextmanager
def run_progress(show: bool = True, title: str = "calibrate") -> Generator[Callable[[str], None]]:
    """A line that counts finished runs; yields what to call after each, with its name.

    How many runs a threshold search takes is known only at its end, so that the estimate is per run.
    """
    if not show:
        yield lambda name: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(f"{title}: first run", total=None)
        count, start = 0, time.monotonic()

        def advance(name: str) -> None:
            nonlocal count
            count += 1
            each = (time.monotonic() - start) / count
            progress.update(task, description=f"{title}: {count} runs, {each:.1f} s each, last: {name}")

        yield advance
