"""A profile for another number of steps than it was calibrated for, read off along its time grid."""

import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ertacache.core.predictor import Predictor
from ertacache.core.schedule import Schedule
from ertacache.errors import InvalidArgument
from ertacache.profile.profile import Profile, Rectifier


@dataclass(frozen=True, slots=True)
class Loss:
    """Mean PSNR in dB on held-out prompts at one number of steps, all at the same number of computed steps.

    Attributes:
        steps: T' that a profile was retargeted to.
        retargeted: PSNR with the profile of `CALIBRATED_AT` steps.
        calibrated: with one that was calibrated at T'.
        reuse: with residual reuse at T' on the schedule of the retargeted one.
    """

    steps: int
    retargeted: float
    calibrated: float
    reuse: float


#: Measured by benchmarks/retarget.py on tiny-flux at half of the steps; written to benchmarks/results/retarget.json.
CALIBRATED_AT = 30
LOSSES: tuple[Loss, ...] = (
    Loss(20, 37.756, 40.076, 33.151),
    Loss(24, 40.765, 43.709, 34.514),
    Loss(40, 49.595, 53.27, 39.914),
    Loss(50, 51.817, 56.141, 42.166),
)


def retargeted(profile: Profile, sigmas: Tensor) -> Profile:
    """The profile for another step count; a profile for the same grid is the same but for its provenance.

    K' is the same share of the steps. Computed are the first step, the last, and between them those where the
    calibrated schedule has the same share of its computed steps behind it; a uniform schedule stays uniform. A
    predicted step takes the coefficients of the calibrated step that is nearest in sigma among those as many steps
    after a computed one; where its history is shorter, the oldest output that is held takes the weight of those that
    are not. An adjusted grid is interpolated.

    Args:
        sigmas: [T'+1] the solver's own grid of the new step count, in the variable of the profile's.

    Raises:
        InvalidArgument: a grid of under 2 steps or one that does not fall, or a profile of several denoisers, whose
            boundary between two steps depends on the step count.
    """
    base, grid = profile.base_sigmas.double().numpy(), sigmas.detach().cpu().double().numpy()
    toward_end = np.sign(base[-1] - base[0])  # np.interp wants rising grids, and nearly all fall
    if len(grid) < 3:
        raise InvalidArgument(f"a grid of {len(grid) - 1} steps leaves nothing to predict; give 2 steps or more")
    if profile.provenance.boundaries:
        raise InvalidArgument(
            "a profile of several denoisers belongs to the step where one takes over from the other; calibrate at "
            f"num_inference_steps={len(grid) - 1}"
        )
    # Where each new step lies among the old ones, as a fraction of a step.
    places = np.interp(toward_end * grid[:-1], toward_end * base, np.arange(len(base)))
    schedule = _schedule(profile.schedule, places)
    rows = {i: _row(profile.schedule, schedule, i, base, grid) for i in schedule.predicted_steps}
    T = len(grid) - 1
    facts = profile.provenance
    return Profile(
        schedule=schedule,
        site=profile.site,
        predictor=_predictor(profile.predictor, schedule, rows),
        base_sigmas=sigmas.detach().cpu().float(),
        sigmas=_adjusted(profile.sigmas.double().numpy(), base, grid, toward_end),
        rectifier=None if profile.rectifier is None else _rectifier(profile.rectifier, schedule.T, rows),
        provenance=replace(
            facts,
            num_inference_steps=T,
            call={**facts.call, **({"num_inference_steps": T} if "num_inference_steps" in facts.call else {})},
            method={**facts.method, "schedule": str(schedule), "retargeted_from": profile.schedule.T},
            heldout={},  # what was measured was the calibrated one
            measured={},
        ),
    )


def warn_of_loss(T: int, steps: int) -> None:
    """Say what retargeting from T to another number of steps costs, by the measured ratio that is nearest."""
    nearest = min(LOSSES, key=lambda row: abs(np.log(row.steps / CALIBRATED_AT) - np.log(steps / T)))
    warnings.warn(
        f"the profile was calibrated at {T} steps and is retargeted to {steps}. Measured on tiny-flux, half of the "
        f"steps computed, from {CALIBRATED_AT} to {nearest.steps} steps: {nearest.retargeted:.1f} dB PSNR, where a "
        f"profile calibrated at {nearest.steps} has {nearest.calibrated:.1f} dB and residual reuse "
        f"{nearest.reuse:.1f} dB. Calibrate at num_inference_steps={steps} to have no such loss",
        stacklevel=2,
    )


def _schedule(old: Schedule, places: np.ndarray) -> Schedule:
    """K' steps where the calibrated schedule has the same share of its computed steps behind it.

    A uniform schedule stays uniform: what rounding made uneven in it lies elsewhere in another number of steps.
    """
    T = len(places)
    K = min(T, max(2, round(old.K / old.T * T)))
    if old.K > 1 and old == Schedule.uniform(old.T, old.K):
        return Schedule.uniform(T, K)
    marks = sorted({*old.computed_steps, old.T - 1})
    wanted = np.interp(np.linspace(0, len(marks) - 1, K), np.arange(len(marks)), marks)
    chosen = [0]
    for n in range(1, K):
        nearest = int(np.abs(places - wanted[n]).argmin()) if n < K - 1 else T - 1
        chosen.append(min(max(nearest, chosen[-1] + 1), T - K + n))
    return Schedule.from_steps(T, chosen)


def _row(old: Schedule, new: Schedule, i: int, base: np.ndarray, grid: np.ndarray) -> int:
    """The calibrated step whose coefficients step i takes."""
    age = i - new.last_computed(i)
    same = [j for j in old.predicted_steps if j - old.last_computed(j) == age]
    return min(same or old.predicted_steps, key=lambda j: abs(base[j] - grid[i]))


def _predictor(old: Predictor, schedule: Schedule, rows: dict[int, int]) -> Predictor:
    a, d, b = (table.new_zeros(schedule.T, *table.shape[1:]) for table in (old.a, old.d, old.b))
    for i, j in rows.items():
        a[i], d[i], b[i] = old.a[j], old.d[j], old.b[j]
        held = schedule.depth(i)
        if held < old.levels:
            a[i, :, :, held - 1] = a[i, :, :, held - 1 :].sum(2)
            a[i, :, :, held:] = 0
    return Predictor(old.targets, old.sources, a, d, b)


def _rectifier(old: Rectifier, T: int, rows: dict[int, int]) -> Rectifier:
    kappa, beta = (table.new_zeros(T, *table.shape[1:]) for table in (old.kappa, old.beta))
    for i, j in rows.items():
        kappa[i], beta[i] = old.kappa[j], old.beta[j]
    return Rectifier(kappa, beta, old.activation)


def _adjusted(used: np.ndarray, base: np.ndarray, grid: np.ndarray, toward_end: float) -> Tensor:
    """The new grid moved by as much as the calibrated one is there; nothing at the ends and beyond."""
    moved = np.interp(toward_end * grid, toward_end * base, used - base)
    moved[[0, -1]] = 0
    return torch.from_numpy(grid + moved).float()
