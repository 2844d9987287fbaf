"""The search for the best plan at a number of computed steps: price, fit the promising, compare what came of them."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ertacache.calibration import joint
from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.candidates import Candidate, best_of, compared, fitted_candidates
from ertacache.calibration.coarse_grid import coarse_grid
from ertacache.calibration.held_out import measure_ahead
from ertacache.calibration.kept import loop_name
from ertacache.calibration.local_moves import improved
from ertacache.calibration.method import Method
from ertacache.calibration.perturbed import growth_of_runs
from ertacache.calibration.proposals import Effort, Prices, schedules
from ertacache.calibration.tie import simpler_on_a_tie
from ertacache.core.run_gram import RunGrams, gram_of
from ertacache.core.segment_costs import segment_costs
from ertacache.errors import CalibrationError, UnsupportedPipeline

logger = logging.getLogger(__name__)

#: History of the recommended plan: outputs the solver received, and guidance directions where there are two branches.
LEVELS, DIRECTIONS = 3, 2
#: Plans of each effort that are compared on prompts they were not fitted to.
MEASURED: dict[Effort, int] = {"fast": 1, "balanced": 4, "thorough": 6}
#: Moves of single steps that each effort runs in a round, and its rounds.
MOVES: dict[Effort, int] = {"fast": 0, "balanced": 0, "thorough": 6}
ROUNDS = 2


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
    priced = None if effort == "fast" else prices(calibrator, base)
    tries = MOVES[effort]
    methods = proposals(calibrator, base, K, effort, priced)
    fitted = fitted_candidates(calibrator, methods, keep=tries > 0)
    if tries and priced is not None:
        best = min(fitted, key=lambda candidate: candidate.deviation)
        fitted += improved(calibrator, best, priced.even, tries, ROUNDS)
        calibrator.kept.discard(loop_name(fitted[-1].method))
        calibrator.kept.discard(loop_name(best.method))
    found = choose(calibrator, fitted, MEASURED[effort])
    return refined(calibrator, found) if effort == "thorough" else found


def refined(calibrator: Calibrator, found: Found) -> Found:
    """With a joint refinement of the best, where that is better by more than a standard error.

    Only prompts that no coefficient was fitted to decide: in the sample a joint fit flatters itself.
    """
    together = joint.refined(calibrator, found.best)
    if not together or simpler_on_a_tie([found.best.errors, together[-1].errors]) == 0:
        return Found(found.best, (*found.measured, *together))
    return Found(together[-1], (*found.measured, *together))


def prices(calibrator: Calibrator, base: Method) -> Prices:
    """Of every segment, under the history of a method."""
    grams, boundaries = grams_of(calibrator), calibrator.reference.boundaries
    even = segment_costs(grams, base.levels, base.directions, ridge=base.ridge, boundaries=boundaries)
    return Prices(grams, even, even.weighed(growth_of_runs(calibrator)))


def proposals(calibrator: Calibrator, base: Method, K: int, effort: Effort, priced: Prices | None) -> dict[str, Method]:
    """Methods that are worth a closed loop, the simplest first."""
    reference = calibrator.reference
    found = schedules(effort, calibrator.T, K, reference.boundaries, priced)
    methods = {name: replace(base, schedule=schedule) for name, schedule in found.items()}
    if effort == "thorough" and base.aim == "trajectory":
        try:
            schedule, grid = coarse_grid(calibrator, K)
            methods["grid of fewer steps"] = replace(base, schedule=schedule, grid=grid)
        except UnsupportedPipeline as error:
            logger.info("the grid of %d steps takes no part: %s", K, error)
    if base.directions and effort != "fast":
        own = replace(base, directions=0, schedule=found["uniform"])
        methods = {"uniform, own history": own, **methods}
    return methods


def grams_of(calibrator: Calibrator) -> RunGrams:
    """Of every fitted prompt: what the uncached run's outputs leave of the latents that are aimed at."""
    found = [
        gram_of(run.latents[:, n], run.outputs[:, n], None if run.directions is None else run.directions[:, n])
        for run in calibrator.aimed
        for n in range(run.latents.shape[1])
    ]
    return RunGrams.of(found, calibrator.T)


def recommended(calibrator: Calibrator, ridge: float, aim: Any) -> Method:
    """The method that measured best, its schedule open."""
    directions = DIRECTIONS if calibrator.reference.directions else 0
    return Method("fitted", "guided", levels=LEVELS, directions=directions, ridge=ridge, aim=aim)


def choose(calibrator: Calibrator, fitted: Sequence[Candidate], count: int) -> Found:
    """The best of fitted plans by the prompts that choose, see `candidates.best_of`.

    Args:
        fitted: in the order of simplicity. The first always takes part, and so do those of its schedule that were
            fitted too: evenly spaced steps with less to predict from, and with all of it.
        count: how many take part.

    Raises:
        CalibrationError: the runs of all of them end in NaN or infinity.
    """
    even = [candidate for candidate in fitted if candidate.profile.schedule == fitted[0].profile.schedule][:count]
    others = [candidate for candidate in fitted if candidate not in even]
    ranked = sorted(others, key=lambda candidate: candidate.deviation)[: count - len(even)]
    taking = [candidate for candidate in fitted if candidate in even or candidate in ranked]
    if calibrator.parts.chosen.texts:
        measure_ahead(calibrator, [candidate.profile for candidate in taking], "chosen")
    measured = [compared(calibrator, candidate) for candidate in taking]
    best = best_of(measured)
    if best.deviation == math.inf:
        raise CalibrationError(
            f"runs of prompts that were not fitted end in NaN or infinity with schedule {best.profile.schedule}; "
            "compute more steps, or run the pipeline in a wider dtype"
        )
    return Found(best, tuple(measured))
