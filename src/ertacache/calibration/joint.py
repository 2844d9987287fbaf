"""All weights of a plan together: Levenberg-Marquardt with the final latent as the target, from forward passes alone.

The greedy fit, step after step, aims at the recorded trajectory; what counts is where it ends. A coefficient's
derivative is that of a run with the coefficient nudged, of which only the steps after it are computed.
"""

import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ertacache.calibration.assemble import fit
from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.candidates import Candidate, as_candidate, compared
from ertacache.calibration.coefficients import Coefficient, coefficients_of
from ertacache.calibration.kept import loop_name
from ertacache.calibration.method import Method
from ertacache.calibration.solved import Solved, from_state, to_state
from ertacache.calibration.solving import Seat
from ertacache.core.levenberg_marquardt import Linearised, cross_validated
from ertacache.errors import PredictorInvalid

logger = logging.getLogger(__name__)

#: Fitted prompts below which it gains in the sample only.
LEAST_PROMPTS = 32
#: Jacobians at most.
ROUNDS = 2
#: Shrinkage toward the greedy fit, of which the prompts choose one, each told by others.
_DAMPINGS = [1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001]
_FOLDS = 4
#: Gain in the natural logarithm of the error, on prompts left out, from which on a round is made: .1 dB.
_WORTHWHILE = 0.023


def refined(calibrator: Calibrator, best: Candidate, rounds: int = ROUNDS) -> list[Candidate]:
    """What a joint refinement of a plan comes to, the last being the best; none where nothing is gained.

    A round is taken where it lowers the mean log error of prompts that no coefficient was fitted to.

    Args:
        best: compared on the prompts that choose.
    """
    count = len(calibrator.parts.fitted.texts)
    if count < LEAST_PROMPTS or not calibrator.parts.chosen.texts:
        logger.info(
            "no joint refinement: it takes %d prompts to fit, 64 or better, and there are %d", LEAST_PROMPTS, count
        )
        return []
    method, found = best.method, list[Candidate]()
    solved, name = played(calibrator, method, fit(calibrator, method))
    coefficients = coefficients_of(method, best.profile.schedule, calibrator.reference.boundaries)
    offset = torch.zeros(len(coefficients), dtype=torch.float64)
    for number in range(1, rounds + 1):
        model = derivatives(calibrator, method, solved, name, coefficients)
        damping, promised = cross_validated(model, _DAMPINGS, _FOLDS, offset)
        if not promised < -_WORTHWHILE:
            logger.info("joint refinement %d promises nothing", number)
            break
        change = model.step(damping, offset)
        solved = changed(solved, coefficients, change)
        solved, after = played(calibrator, method, solved)
        calibrator.kept.discard(name)
        name, offset = after, offset + change
        try:
            candidate = as_candidate(calibrator, method, solved, f"{best.name}, refined {number} ×")
        except PredictorInvalid as error:
            logger.info("joint refinement %d is left out: %s", number, error)
            break
        candidate = compared(calibrator, candidate)
        before = (found or [best])[-1].deviation
        logger.info(
            "joint refinement %d: shrinkage %g, log10 error %.3f promised and %.3f kept on prompts that choose",
            number, damping, promised / math.log(10), candidate.deviation - before,
        )  # fmt: skip
        if not candidate.deviation < before:
            break
        found.append(candidate)
    calibrator.kept.discard(name)
    return found


def derivatives(
    calibrator: Calibrator, method: Method, solved: Solved, name: str, coefficients: Sequence[Coefficient]
) -> Linearised:
    """How the squared error of each fitted prompt's final latent depends on the coefficients, to first order.

    Args:
        name: of the loop in which `solved` was played, which is kept.
    """

    part = partial(_derivatives, method=method, solved=solved, name=name, coefficients=tuple(coefficients))
    count = range(len(calibrator.batches))
    calibrator.ahead({_derivatives_name(n, name): partial(part, n=n) for n in count})
    return Linearised.joined([Linearised(**part(calibrator, n=n)) for n in count])


def _derivatives_name(n: int, name: str) -> str:
    return f"derivatives {n} of {name}"


def _derivatives(
    calibrator: Calibrator, *, n: int, method: Method, solved: Solved, name: str, coefficients: Sequence[Coefficient]
) -> dict[str, Tensor]:
    """Those of the n-th pipeline call, as `Linearised` holds them."""
    recorded = calibrator.aimed[n]

    def run() -> dict[str, Tensor]:
        kept = calibrator.kept.of(name, n)
        end, columns = kept.latents[-1].float(), list[Tensor]()
        for coefficient in coefficients:
            columns.append(torch.zeros_like(end))
            if nudge := coefficient.nudge(kept, recorded):
                seat = Seat(known=kept)
                calibrator.play(method, solved.changed(coefficient.changes(nudge)), coefficient.steps[0], {n: seat})
                columns[-1] = end if seat.final is None else (seat.final - end) / nudge
        return vars(Linearised.of(end - recorded.latents[-1].float(), columns, len(calibrator.batches[n].texts)))

    return calibrator.store.get(_derivatives_name(n, name), run)


def played(calibrator: Calibrator, method: Method, solved: Solved) -> tuple[Solved, str]:
    """A pass over the fitted prompts with all weights given: with the errors, and the name under which it is kept."""
    weights = b"".join(solved.weights[key].numpy().tobytes() for key in sorted(solved.weights))
    name = f"{loop_name(method)} with {hashlib.sha256(weights).hexdigest()}"
    _ = calibrator.aimed  # recordings are results of their own
    calibrator.ahead({name: partial(played, method=method, solved=solved)})

    def run() -> dict[str, Any]:
        seats = {n: Seat() for n in range(len(calibrator.batches))}
        calibrator.play(method, solved, 0, seats, name)
        return to_state(replace(solved, errors=calibrator.errors(seats)))

    return from_state(calibrator.store.get(name, run)), name


def changed(solved: Solved, coefficients: Sequence[Coefficient], change: Tensor) -> Solved:
    pairs = zip(coefficients, change.tolist(), strict=True)
    return solved.changed(one for coefficient, value in pairs for one in coefficient.changes(value))
