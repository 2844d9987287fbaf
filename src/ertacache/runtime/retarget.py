"""A profile for another time grid than it was calibrated for: another number of steps, another size."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ertacache.core.compensation import Compensation
from ertacache.core.predictor import Predictor
from ertacache.core.schedule import Schedule
from ertacache.errors import InvalidArgument, ProfileMismatch
from ertacache.profile.checks import MAX_STEPS, check_grids
from ertacache.profile.profile import Profile, Rectifier


def nothing_to_predict(profile: Profile, steps: int) -> str | None:
    """Why a profile has nothing to predict in that many steps; None where it has, or corrects what is computed.

    So it is in warm-ups of one or two steps, and wherever the share of computed steps leaves no other.
    """
    if profile.compensation is not None or _computed(profile.schedule, steps) < steps:
        return None
    old = profile.schedule
    return (
        f"num_inference_steps: {steps} leaves nothing to predict where {old.K} of {old.T} steps are computed as in the "
        "profile, and the first and the last always; every step is computed"
    )


def retargeted(profile: Profile, sigmas: Tensor) -> Profile:
    """The profile for another grid; a profile for its own grid is the same but for its provenance.

    K' is the same share of the steps. Computed are the first step, the last, and between them those where the
    calibrated schedule has the same share of its computed steps behind it; a uniform schedule stays uniform. A
    predicted step takes the coefficients of the calibrated step that is nearest in sigma among those as many steps
    after a computed one; where its history is shorter, the oldest output that is held takes the weight of those that
    are not. Where the schedule stays as it was (a uniform one at another size), each step keeps its own coefficients:
    they were fitted as a whole. An adjusted grid is interpolated.

    Args:
        sigmas: [T'+1] the solver's own grid, in the variable of the profile's.

    Raises:
        ProfileMismatch: `nothing_to_predict`; a grid that does not fall, or rise, at every step as the profile's; a
            profile of several denoisers, whose boundary between two steps depends on the step count.
    """
    if (reason := nothing_to_predict(profile, len(sigmas) - 1)) is not None:
        raise ProfileMismatch(reason)
    _check(profile, sigmas)
    base, grid = profile.base_sigmas.double().numpy(), sigmas.detach().cpu().double().numpy()
    toward_end = np.sign(base[-1] - base[0])  # np.interp wants rising grids, and nearly all fall
    # Where each new step lies among the old ones, as a fraction of a step.
    places = np.interp(toward_end * grid[:-1], toward_end * base, np.arange(len(base)))
    schedule = _schedule(profile.schedule, places)
    rows = _rows(profile.schedule, schedule, base, grid)
    T = len(grid) - 1
    facts = profile.provenance
    return Profile(
        schedule=schedule,
        site=profile.site,
        predictor=_predictor(profile.predictor, schedule, rows),
        base_sigmas=sigmas.detach().cpu().float(),
        sigmas=_adjusted(profile.sigmas.double().numpy(), base, grid, toward_end),
        compensation=_compensation(profile, schedule, places),
        rectifier=None if profile.rectifier is None else _rectifier(profile.rectifier, schedule.T, rows),
        provenance=replace(
            facts,
            num_inference_steps=T,
            call={**facts.call, **({"num_inference_steps": T} if "num_inference_steps" in facts.call else {})},
            method={**facts.method, "schedule": str(schedule), "retargeted_from": profile.schedule.T},
            # What changes within a run does so at another step now, and is not checked.
            calls=facts.calls[:1] if len(facts.calls) == 1 else (),
            step_weights=facts.step_weights[:1] * T if _steady(facts.step_weights) else (),
            heldout={},  # what was measured was the calibrated one
            measured={},
        ),
    )


def _steady(weights: tuple[float | None, ...]) -> bool:
    known = [weight for weight in weights if weight is not None]
    return len(known) == len(weights) > 0 and max(known) - min(known) < 0.001 * max(1.0, abs(known[0]))


def _check(profile: Profile, sigmas: Tensor) -> None:
    """Refuse grids that a profile cannot be made for."""
    grid, T = sigmas.detach().cpu().float(), len(sigmas) - 1
    if profile.provenance.boundaries:
        raise ProfileMismatch(
            "denoisers: a profile of several belongs to the step where one takes over from the other; calibrate at "
            f"num_inference_steps={T} and this size"
        )
    if T > MAX_STEPS:
        raise ProfileMismatch(f"num_inference_steps: this call has {T}; use at most {MAX_STEPS} with a profile")
    if profile.small_steps:
        raise ProfileMismatch(
            "predictor: a profile that predicts from a small model is not retargeted, as nobody has measured what that "
            f"costs; calibrate at num_inference_steps={T} and this size"
        )
    base = profile.base_sigmas
    falls = bool(base[0] > base[-1])
    wrong = ~(grid.diff() < 0 if falls else grid.diff() > 0)  # also where it is NaN
    if wrong.any():
        i = int(wrong.nonzero()[0])
        raise ProfileMismatch(
            f"time grid: at step {i} this call goes from sigma {grid[i]:.4f} to {grid[i + 1]:.4f}, where the profile "
            f"can follow only a grid that {'falls' if falls else 'rises'} at every step; use such sigmas"
        )
    try:
        check_grids(grid, grid, T)
    except InvalidArgument as error:
        raise ProfileMismatch(f"time grid: {error}") from error


def _schedule(old: Schedule, places: np.ndarray) -> Schedule:
    """K' steps where the calibrated schedule has the same share of its computed steps behind it.

    A uniform schedule stays uniform: what rounding made uneven in it lies elsewhere in another number of steps.
    """
    T = len(places)
    K = _computed(old, T)
    if old.K > 1 and old == Schedule.uniform(old.T, old.K):
        return Schedule.uniform(T, K)
    marks = sorted({*old.computed_steps, old.T - 1})
    wanted = np.interp(np.linspace(0, len(marks) - 1, K), np.arange(len(marks)), marks)
    chosen = [0]
    for n in range(1, K):
        nearest = int(np.abs(places - wanted[n]).argmin()) if n < K - 1 else T - 1
        chosen.append(min(max(nearest, chosen[-1] + 1), T - K + n))
    return Schedule.from_steps(T, chosen)


def _computed(old: Schedule, T: int) -> int:
    """K': the same share of T steps, the first and the last among them."""
    return min(T, max(2, round(old.K / old.T * T)))


def _rows(old: Schedule, new: Schedule, base: np.ndarray, grid: np.ndarray) -> dict[int, int]:
    """The calibrated step whose coefficients each predicted step takes."""
    if new == old:
        return {i: i for i in new.predicted_steps}
    return {i: _row(old, i - new.last_computed(i), np.abs(base - grid[i])) for i in new.predicted_steps}


def _row(old: Schedule, age: int, distance: np.ndarray) -> int:
    same = [j for j in old.predicted_steps if j - old.last_computed(j) == age]
    return min(same or old.predicted_steps, key=lambda j: distance[j])


def _predictor(old: Predictor, schedule: Schedule, rows: dict[int, int]) -> Predictor:
    a, d, b = (table.new_zeros(schedule.T, *table.shape[1:]) for table in (old.a, old.d, old.b))
    for i, j in rows.items():
        a[i], d[i], b[i] = old.a[j], old.d[j], old.b[j]
        held = schedule.depth(i)
        if held < old.levels:
            a[i, :, :, held - 1] = a[i, :, :, held - 1 :].sum(2)
            a[i, :, :, held:] = 0
    return Predictor(old.targets, old.sources, a, d, b)


def _compensation(profile: Profile, schedule: Schedule, places: np.ndarray) -> Compensation | None:
    """Each computed step takes the correction of the calibrated one that is nearest; what a step owes to the one before
    it depends on the length of both, and is left out where the steps are others."""
    old = profile.compensation
    if old is None or schedule == profile.schedule:
        return old
    alone = old.without_previous()
    known = np.array(profile.schedule.computed_steps)
    gain, bias = (table.new_zeros(schedule.T, old.channels) for table in (alone.gain, alone.bias))
    gain += 1
    for i in schedule.computed_steps:
        j = int(known[np.abs(known - places[i]).argmin()])
        gain[i], bias[i] = alone.gain[j], alone.bias[j]
    found = Compensation(gain, gain.new_zeros(gain.shape), bias)
    return None if all(map(found.is_identity, range(found.T))) else found


def _rectifier(old: Rectifier, T: int, rows: dict[int, int]) -> Rectifier:
    kappa, beta = (table.new_zeros(T, *table.shape[1:]) for table in (old.kappa, old.beta))
    for i, j in rows.items():
        kappa[i], beta[i] = old.kappa[j], old.beta[j]
    return Rectifier(kappa, beta, old.activation)


def _adjusted(used: np.ndarray, base: np.ndarray, grid: np.ndarray, toward_end: float) -> Tensor:
    """The new grid moved by as much as the calibrated one is there, nothing beyond it, and stretched between its ends.

    It is stretched where an end of the new grid lies within the calibrated one: it would fall behind its neighbours.
    """
    moved = grid + np.interp(toward_end * grid, toward_end * base, used - base)
    stretch = (grid[-1] - grid[0]) / (moved[-1] - moved[0])
    if stretch != 1:
        moved = grid[0] + stretch * (moved - moved[0])
    moved[[0, -1]] = grid[[0, -1]]
    return torch.from_numpy(moved).float()
