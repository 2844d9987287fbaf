"""An entrant's way to its cost: it plans by itself, or its knob is turned; both on calibration prompts."""

from collections.abc import Callable

import torch
from torch import Tensor

from ertacache.baselines.baseline import Baseline, Bench
from ertacache.calibration.deviation import deviation
from ertacache.calibration.prompts import Prompts
from ertacache.errors import CalibrationError, UnsupportedPipeline
from ertacache.evaluation.comparison.entrant import Entrant, Tuned
from ertacache.evaluation.comparison.measure import Prices
from ertacache.evaluation.execute import execute
from ertacache.evaluation.match_cost import Matched, best_variant, match_cost

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
    method = entrant.method
    reasons = [variant.refusal(bench.pipe, bench.call) for variant in method.variants()]
    if None not in reasons:
        return Tuned(entrant, method, refusal=reasons[0])
    method = method.calibrated(bench)

    def cost(candidate: Baseline) -> float:
        progress(f"tuning {entrant.id}")
        return prices.total(candidate, probed(candidate, bench.prompts))

    if entrant.target is None:
        planned = method.planned(bench, None) or method
        return Tuned(entrant, planned, cost(planned))
    able = [variant for variant in method.variants() if variant.refusal(bench.pipe, bench.call) is None]
    matched = [_matched(variant, bench, entrant.target, cost) for variant in able]
    best = best_variant(matched, entrant.target, _deviations(bench, progress))
    return Tuned(entrant, best.method, best.cost)


def _matched(method: Baseline, bench: Bench, target: float, cost: Callable[[Baseline], float]) -> Matched:
    """One variant at the wanted cost."""
    planned = method.planned(bench, target)
    return match_cost(method, target, cost) if planned is None else Matched(planned, cost(planned), ())


def _deviations(bench: Bench, progress: Callable[[str], None]) -> Callable[[Baseline], float]:
    """Mean over prompts of log10 of the relative squared deviation of a method's final latents from the uncached."""
    prompts = bench.prompts.first(PROBED).batches(1)
    uncached: list[Tensor] = []

    def of(method: Baseline) -> float:
        if not uncached:
            uncached.extend(execute(bench.pipe, None, one, bench.call)[1].latents for one in prompts)
        found = [execute(bench.pipe, method, one, bench.call)[1].latents for one in prompts]
        progress(f"tuning {method.key}")
        return deviation(torch.cat(found), torch.cat(uncached))

    return of
