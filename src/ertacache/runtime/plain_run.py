"""A run that is computed though a profile is on."""

from collections.abc import Callable

from torch import Tensor

from ertacache.runtime.run import Controller, Run
from ertacache.runtime.run_stats import RunStats


class PlainRun(Controller):
    """Computes every call and counts it.

    Args:
        stats: of the pipeline. own: of the run, which names the reason.
    """

    def __init__(self, stats: RunStats, own: RunStats) -> None:
        self._stats, self._own = stats, own

    def call(self, run: Run, context: str, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        output = compute()
        self._own.computed[context] += 1
        return output

    def end_step(self, run: Run, x_next: Tensor) -> None:
        self._stats.show(self._own)
