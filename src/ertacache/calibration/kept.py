"""Outputs of computed steps that a closed loop leaves: others that begin like it take them without a call."""

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from ertacache.calibration.checkpoint import RunStore
from ertacache.calibration.method import Method
from ertacache.calibration.recording import Recording
from ertacache.calibration.solving import Seat


class Kept:
    """The outputs, one file for each pipeline call of a loop; a file has holes where nothing was computed.

    Args:
        store: whose folder they lie in.
        recordings: of the uncached runs, which tell shapes and dtypes.
    """

    def __init__(self, store: RunStore, recordings: Sequence[Recording]) -> None:
        self._store, self._recordings = store, recordings

    @contextmanager
    def keeping(self, name: str, seats: Iterable[tuple[int, Seat]]) -> Generator[None]:
        """While the calls of a loop run, keep what they compute.

        Args:
            seats: each with the number of its call.
        """
        begun = [(seat, self._recordings[n].like(self._path(name, n))) for n, seat in seats]
        try:
            for seat, writing in begun:
                seat.kept = writing.recording
            yield
            for _, writing in begun:
                writing.finish()
        finally:
            for seat, writing in begun:
                seat.kept = None
                writing.discard()

    def of(self, name: str, n: int) -> Recording:
        """What the n-th call of a loop has left.

        Raises:
            CalibrationError: it is gone or damaged.
        """
        return self._store.opened(_outputs(name, n), self._recordings[n].layout)

    def __contains__(self, name: str) -> bool:
        return all(self._path(name, n).exists() for n in range(len(self._recordings)))

    def discard(self, name: str) -> None:
        """Remove what a loop has left."""
        for n in range(len(self._recordings)):
            self._path(name, n).unlink(missing_ok=True)

    def _path(self, name: str, n: int) -> Path:
        return self._store.file(_outputs(name, n))


def loop_name(method: Method) -> str:
    """What tells the closed loop of a method from all others."""
    return f"{asdict(replace(method, schedule=None))} {method.schedule}"


def _outputs(name: str, n: int) -> str:
    return f"outputs {n} of {name}"


def shared_steps(method: Method, other: Method) -> int:
    """The first step at which two methods differ; 0 where they do in more than the schedule."""
    a, b = method.schedule, other.schedule
    if a is None or b is None or replace(other, schedule=a) != method or method.needs_truth or method.small:
        return 0
    pairs = zip(a.computed, b.computed, strict=True)
    return next((i for i, (here, there) in enumerate(pairs) if here != there), a.T)
