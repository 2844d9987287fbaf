"""An entrant's way to its cost: it plans by itself, or its knob is turned; both on calibration prompts."""

from collections.abc import Callable

from ertacache.baselines.baseline import Baseline, Bench
from ertacache.calibration.prompts import Prompts
from ertacache.errors import CalibrationError, UnsupportedPipeline
from ertacache.evaluation.comparison.entrant import Entrant, Tuned
from ertacache.evaluation.comparison.measure import Prices
from ertacache.evaluation.match_cost import match_cost

#: Calibration prompts that the cost of a method which decides at run time is counted on while its knob is turned.
PROBED = 8


def tune(entrant: Entrant, bench: Bench, prices: Prices, progress: Callable[[str], None]) -> Tuned:
    """The entrant at its cost, or with the reason why it cannot run.

    Args:
        prices: of the bench's pipeline and call.
        progress: told of every count while a knob is turned.
    """
    try:
        return _tuned(entrant, bench, prices, progress)
    except (CalibrationError, UnsupportedPipeline) as error:
        return Tuned(entrant, entrant.method, refusal=str(error))


def probed(method: Baseline, prompts: Prompts) -> Prompts:
    """The prompts that a method's cost is counted on: one says it all where nothing is decided at run time."""
    return prompts.first(PROBED if method.batch else 1)


def _tuned(entrant: Entrant, bench: Bench, prices: Prices, progress: Callable[[str], None]) -> Tuned:
    method, prompts = entrant.method, probed(entrant.method, bench.prompts)
    if reason := method.refusal(bench.pipe, bench.call):
        return Tuned(entrant, method, refusal=reason)
    planned = method.planned(bench, entrant.target)
    if planned is not None:
        return Tuned(entrant, planned, prices.total(planned, prompts))
    method = method.calibrated(bench)
    if entrant.target is None:
        return Tuned(entrant, method, prices.total(method, prompts))

    def cost(candidate: Baseline) -> float:
        progress(f"tuning {entrant.id}")
        return prices.total(candidate, prompts)

    matched = match_cost(method, entrant.target, cost)
    return Tuned(entrant, matched.method, matched.cost)
