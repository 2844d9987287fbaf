"""A run, or the rest of one, that is computed though a profile is on."""

import logging
from collections.abc import Callable
from typing import Literal, get_args

from torch import Tensor

from ertacache.errors import ErtacacheError, InvalidArgument
from ertacache.runtime.run import Controller, Run
from ertacache.runtime.run_stats import RunStats

logger = logging.getLogger(__name__)

#: What becomes of a call that does not suit the profile: an error, or a run without it.
OnMismatch = Literal["refuse", "compute"]


def check_on_mismatch(value: str) -> None:
    """Refuse any other word: `InvalidArgument`."""
    if value not in get_args(OnMismatch):
        raise InvalidArgument(f"on_mismatch is {value!r}; choose 'refuse' or 'compute'")


class PlainRun(Controller):
    """Computes every call and counts it.

    Args:
        stats: of the pipeline. own: of the run, which names the reason.
    """

    replays = True

    def __init__(self, stats: RunStats, own: RunStats) -> None:
        self._stats, self._own = stats, own

    def call(self, run: Run, context: str, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        output = compute()
        self._own.computed[context] += 1
        return output

    def end_step(self, run: Run, x_next: Tensor) -> None:
        self._stats.show(self._own)


class Otherwise:
    """What goes on in a run that cannot be predicted, or not any longer.

    Args:
        stats: of the pipeline.
        on_mismatch: "refuse" raises the error, "compute" goes on without a prediction.

    Raises:
        InvalidArgument: another `on_mismatch`.
    """

    def __init__(self, stats: RunStats, on_mismatch: OnMismatch) -> None:
        check_on_mismatch(on_mismatch)
        self._stats, self._on_mismatch = stats, on_mismatch
        self._warned: set[str] = set()

    def __call__(self, own: RunStats, error: ErtacacheError, *, by_need: bool = False) -> PlainRun:
        """The error, or a run that computes and names it as its reason; each cause is logged once.

        Args:
            own: counters of that run.
            by_need: it goes on in any case.
        """
        if self._on_mismatch == "refuse" and not by_need:
            raise error
        own.reason = str(error)
        cause = own.reason.partition(":")[0]
        if cause not in self._warned:
            self._warned.add(cause)
            logger.warning("computed without a prediction: %s", error)
        return PlainRun(self._stats, own)
