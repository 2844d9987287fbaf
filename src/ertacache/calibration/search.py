"""The search for the best plan at a number of computed steps: price, fit the promising, compare what came of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.candidates import Candidate, compared, fitted_candidates
from ertacache.calibration.method import Method
from ertacache.calibration.perturbed import growth_of_runs
from ertacache.calibration.proposals import Effort, schedules
from ertacache.calibration.tie import simpler_on_a_tie
from ertacache.core.run_gram import RunGrams, gram_of
from ertacache.core.segment_costs import segment_costs
from ertacache.errors import CalibrationError

#: History of the recommended plan: outputs the solver received, and guidance directions where there are two branches.
LEVELS, DIRECTIONS = 3, 2
#: Plans of each effort that are compared on prompts they were not fitted to.
MEASURED: dict[Effort, int] = {"fast": 1, "balanced": 4, "thorough": 6}


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        best: the chosen one. measured: all that were compared, in the order of simplicity.
    """

    best: Candidate
    measured: tuple[Candidate, ...]


def search(calibrator: Calibrator, base: Method, K: int, effort: Effort) -> Found:
    """The best plan of K computed steps, as far as the effort goes.

    Args:
        base: the method whose schedule is open.
    """
    methods = proposals(calibrator, base, K, effort)
    return choose(calibrator, fitted_candidates(calibrator, methods), MEASURED[effort])


def proposals(calibrator: Calibrator, base: Method, K: int, effort: Effort) -> dict[str, Method]:
    """Methods that are worth a closed loop, the simplest first."""
    reference = calibrator.reference
    grams = costs = None
    if effort != "fast":
        grams = _grams(calibrator)
        growth = growth_of_runs(calibrator)
        costs = segment_costs(
            grams, base.levels, base.directions, growth=growth, ridge=base.ridge, boundaries=reference.boundaries
        )
    found = schedules(effort, calibrator.T, K, reference.boundaries, costs, grams)
    methods = {name: replace(base, schedule=schedule) for name, schedule in found.items()}
    if base.directions and effort != "fast":
        own = replace(base, directions=0, schedule=found["uniform"])
        methods = {"uniform, own history": own, **methods}
    return methods


def _grams(calibrator: Calibrator) -> RunGrams:
    """Of every fitted prompt."""
    found = [
        gram_of(run.latents[:, n], run.outputs[:, n], None if run.directions is None else run.directions[:, n])
        for run in calibrator.reference.recordings
        for n in range(run.latents.shape[1])
    ]
    return RunGrams.of(found, calibrator.T)


def recommended(calibrator: Calibrator, ridge: float, aim: Any) -> Method:
    """The method that measured best, its schedule open."""
    directions = DIRECTIONS if calibrator.reference.directions else 0
    return Method("fitted", "guided", levels=LEVELS, directions=directions, ridge=ridge, aim=aim)


def choose(calibrator: Calibrator, fitted: Sequence[Candidate], count: int) -> Found:
    """The best of fitted plans by the prompts that choose; of those equal within one standard error the simplest.

    Args:
        fitted: in the order of simplicity. The first always takes part.
        count: how many take part.

    Raises:
        CalibrationError: the runs of all of them end in NaN or infinity.
    """
    ranked = sorted(fitted[1:], key=lambda candidate: candidate.deviation)[: count - 1]
    taking = [candidate for candidate in fitted if candidate is fitted[0] or candidate in ranked]
    measured = [compared(calibrator, candidate) for candidate in taking]
    best = measured[simpler_on_a_tie([candidate.evidence for candidate in measured])]
    if best.deviation == math.inf:
        raise CalibrationError(
            f"runs of prompts that were not fitted end in NaN or infinity with schedule {best.profile.schedule}; "
            "compute more steps, or run the pipeline in a wider dtype"
        )
    return Found(best, tuple(measured))
