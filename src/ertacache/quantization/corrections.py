"""The corrections that are compared: what is open, how each is fitted, and what the prompts that choose say of it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch

from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.candidates import Candidate, as_candidate, compared, fitted_candidate, heldout_figures
from ertacache.calibration.held_out import measure
from ertacache.calibration.method import Correcting, Method
from ertacache.calibration.solved import Solved
from ertacache.core.compensation import Compensation
from ertacache.core.compensation_fit import CompensationSums, Estimator, Sharing, compensation
from ertacache.core.schedule import Schedule
from ertacache.errors import CalibrationError, InvalidArgument, PredictorInvalid
from ertacache.quantization.forced import forced_sums

logger = logging.getLogger(__name__)

Fit = Literal["teacher-forced", "closed-loop", "trajectory"]
#: What "auto" compares, the simplest first; PTQD without an intercept takes part where it is asked for.
ESTIMATORS: tuple[Estimator, ...] = ("bias", "gain", "ptqd", "affine")
#: Of teacher-forced fits, which share one run, the best so many are fitted along the closed loop too.
_LOOPED = 2
#: Weights of the previous-step term that are tried on the best teacher-forced fit.
WEIGHTS = (0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Options:
    """What is open, the simplest first.

    Attributes:
        pairs: estimators with what shares their coefficients. fits: how they are fitted.
        weights: of the previous-step term.
    """

    pairs: tuple[tuple[Estimator, Sharing], ...]
    fits: tuple[Fit, ...]
    weights: tuple[float, ...]

    @property
    def forced(self) -> bool:
        """Whether there is a teacher-forced run."""
        return "teacher-forced" in self.fits

    @property
    def looped(self) -> int:
        """How many pairs are fitted along closed loops."""
        return min(_LOOPED, len(self.pairs)) if self.forced else len(self.pairs)

    @property
    def loops(self) -> int:
        """The closed loops of all."""
        return self.looped * (len(self.fits) - self.forced)

    @property
    def measured(self) -> int:
        """Corrections that are played on the prompts that choose."""
        return len(self.pairs) * self.forced + self.loops + len(self.weights)


def options_of(estimator: str, granularity: str, fit: str, *, affine: bool) -> Options:
    """What the arguments of `calibrate_quantized` leave open.

    Args:
        affine: whether the solver can be inverted, which an aim at the trajectory and a previous-step term need.

    Raises:
        InvalidArgument: another word, or an aim that the solver does not allow.
    """
    words = {"estimator": (estimator, Estimator), "granularity": (granularity, Sharing), "fit": (fit, Fit)}
    for name, (value, kind) in words.items():
        if value not in (known := ("auto", *get_args(kind))):
            raise InvalidArgument(f"{name} is {value!r}; choose one of {', '.join(known)}")
    if fit == "trajectory" and not affine:
        raise InvalidArgument("fit='trajectory' needs a solver that can be inverted; use 'closed-loop'")
    estimators: Any = ESTIMATORS if estimator == "auto" else (estimator,)
    sharings: Any = get_args(Sharing) if granularity == "auto" else (granularity,)
    fits: Any = get_args(Fit)[: 3 if affine else 2] if fit == "auto" else (fit,)
    pairs = tuple((one, sharing) for sharing in sharings for one in estimators)
    return Options(pairs, fits, WEIGHTS if affine and "teacher-forced" in fits else ())


def uncorrected(calibrator: Calibrator) -> Candidate:
    """The quantised run as it is, which has been made already."""
    method = Method("residual", "guided", Schedule.all_computed(calibrator.T), levels=0)
    candidate = as_candidate(calibrator, method, Solved(), "none")
    return _told(candidate, measure(calibrator, None, "chosen"))


def _told(candidate: Candidate, measured: dict[str, list[float]]) -> Candidate:
    facts = replace(candidate.profile.provenance, heldout=heldout_figures(candidate.profile, measured))
    return replace(candidate, measured=measured, profile=replace(candidate.profile, provenance=facts))


def candidates(calibrator: Calibrator, options: Options) -> list[Candidate]:
    """All that are compared, each measured on the prompts that choose; no correction comes first."""
    _ = calibrator.taught  # what cannot be aimed at is refused before the other runs
    found = [uncorrected(calibrator)]
    forced, pairs = list[tuple[Candidate, Compensation]](), options.pairs
    factors = list[tuple[float, float]]()
    if options.forced:
        sums, factors = forced_sums(calibrator)
        forced = [made for pair in pairs if (made := _forced(calibrator, sums, pair)) is not None]
        found += [candidate for candidate, _ in forced]
        ranked = sorted(forced, key=lambda made: made[0].deviation)[: options.looped]
        pairs = tuple(_pair(candidate.method) for candidate, _ in ranked)
    for fit in options.fits:
        if fit != "teacher-forced":
            found += [made for pair in pairs if (made := _looped(calibrator, pair, fit)) is not None]
    if forced and factors:
        best = min(forced, key=lambda made: made[0].deviation)
        found += [made for w in options.weights if (made := _windowed(calibrator, *best, factors, w)) is not None]
    return found


def _pair(method: Method) -> tuple[Estimator, Sharing]:
    how = method.correcting or Correcting()
    return how.estimator, how.sharing


def _method(calibrator: Calibrator, how: Correcting) -> Method:
    return Method("residual", "guided", Schedule.all_computed(calibrator.T), levels=0, correcting=how)


def _name(how: Correcting) -> str:
    window = f", previous step × {how.previous_weight:g}" * (how.previous_weight > 0)
    return f"{how.estimator} per {how.sharing}, {how.fit}{window}".replace("per scalar", "of all")


def _forced(
    calibrator: Calibrator, sums: Sequence[CompensationSums], pair: tuple[Estimator, Sharing]
) -> tuple[Candidate, Compensation] | None:
    how = Correcting(*pair, fit="teacher-forced")
    try:
        table = compensation(sums, *pair)
    except PredictorInvalid as error:
        logger.info("%s is left out: %s", _name(how), error)
        return None
    return _measured(calibrator, how, table), table


def _measured(calibrator: Calibrator, how: Correcting, table: Compensation) -> Candidate:
    rows = {i: tuple(t[i].double() for t in (table.gain, table.previous, table.bias)) for i in range(table.T)}
    solved = Solved(corrections=rows)  # pyright: ignore[reportArgumentType]  # three of each
    return compared(calibrator, as_candidate(calibrator, _method(calibrator, how), solved, _name(how)))


def _looped(calibrator: Calibrator, pair: tuple[Estimator, Sharing], fit: Fit) -> Candidate | None:
    how = Correcting(*pair, fit=fit)
    try:
        return compared(calibrator, fitted_candidate(calibrator, _method(calibrator, how), _name(how)))
    except (PredictorInvalid, CalibrationError) as error:
        logger.info("%s is left out: %s", _name(how), error)
        return None


def _windowed(
    calibrator: Calibrator, best: Candidate, table: Compensation, factors: list[tuple[float, float]], weight: float
) -> Candidate | None:
    """With the term for the step before; not where another denoiser has made that step."""
    how = Correcting(*_pair(best.method), fit="teacher-forced", previous_weight=weight)
    scales, slopes = zip(*factors, strict=True)
    try:
        full = table.with_previous(scales, slopes, weight)
    except PredictorInvalid as error:
        logger.info("%s is left out: %s", _name(how), error)
        return None
    previous, bias = full.previous.clone(), full.bias.clone()
    for i in calibrator.reference.boundaries:
        previous[i], bias[i] = torch.zeros_like(previous[i]), table.bias[i]
    return _measured(calibrator, how, Compensation(table.gain, previous, bias))
