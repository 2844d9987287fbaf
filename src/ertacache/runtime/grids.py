"""Which time grids are the same, and the profile that serves a run on one."""

import math

import numpy as np
import torch
from torch import Tensor

from ertacache.errors import ProfileMismatch
from ertacache.profile.profile import Profile
from ertacache.runtime.retarget import nothing_to_predict, retargeted


def same_grid(base: Tensor, sigmas: Tensor) -> bool:
    """Whether a run on `sigmas` is on the grid `base`: as long, and no node further off than half of an interval.

    Of the two intervals of `base` beside a node the shorter counts. Pipelines with dynamic shifting make slightly
    different grids for slightly different image sizes; further off than that, a step would have another's noise.

    Args:
        base: [T+1] strictly falling or rising, in any unit (sigmas, angles).
        sigmas: [T'+1] in the same unit.
    """
    return len(base) == len(sigmas) and bool((apart(base, sigmas) <= 1).all())


def pick(profile: Profile, sigmas: Tensor, *, retarget: bool = False) -> tuple[Profile, ...] | str:
    """The profiles that serve a run, one for each guidance scale, or why there is nothing for one to predict in it.

    Args:
        sigmas: [T'+1] the solver's own grid, before any change.
        retarget: whether a profile for another grid may be made of this one, see `retarget.retargeted`.

    Returns:
        Those of the profile and its `others` that are on the grid; on another one those which were made of the nearest,
        or, where each of its steps would be computed (warm-ups of one or two steps), a text that says so.

    Raises:
        ProfileMismatch: another grid, which was not allowed or cannot be served.
    """
    own = nearest(profile, sigmas)
    scales = tuple(other for other in (profile, *profile.others) if torch.equal(other.base_sigmas, own.base_sigmas))
    if same_grid(own.base_sigmas, sigmas):
        return scales
    if not retarget:
        check_grid(own, sigmas)
    return nothing_to_predict(own, len(sigmas) - 1) or tuple(retargeted(other, sigmas) for other in scales)


def nearest(profile: Profile, sigmas: Tensor) -> Profile:
    """Of a profile and its `others` the first that is on a grid [T'+1], else the first whose grid is nearest.

    That is by `distance` and by the ratio of the step counts, each of which costs about as much where it was measured.
    """

    def far(own: Profile) -> tuple[bool, float]:
        steps = abs(math.log(max(1, len(sigmas) - 1) / own.schedule.T))
        return not same_grid(own.base_sigmas, sigmas), distance(own.base_sigmas, sigmas) + steps

    return min((profile, *profile.others), key=far)


def distance(base: Tensor, sigmas: Tensor) -> float:
    """How far two grids are apart: the widest of the nodes, as a share of what `base` [T+1] spans.

    Args:
        sigmas: [T'+1]; of another length it is compared with `base` read off at the same shares of the steps.
    """
    at = np.linspace(0, len(base) - 1, len(sigmas))
    same = np.interp(at, np.arange(len(base)), base.double().numpy())
    apart = np.abs(sigmas.detach().cpu().double().numpy() - same)
    return float(apart.max(initial=0.0) / abs(float(base[0] - base[-1])))


def check_grid(profile: Profile, sigmas: Tensor) -> None:
    """Step count and time grid of a run.

    Args:
        sigmas: [T'+1] the solver's own grid, before any change.

    Raises:
        ProfileMismatch: another number of steps, or a grid that is not the `same_grid`.
    """
    T, steps, base = profile.schedule.T, len(sigmas) - 1, profile.base_sigmas
    if steps != T:
        raise ProfileMismatch(
            f"num_inference_steps: the profile has {T}, this pipeline {steps}; call the pipeline with "
            f"num_inference_steps={T}, or apply the profile with retarget=True, which fits it to other step counts "
            "at some loss"
        )
    if not same_grid(base, sigmas):
        i = int(apart(base, sigmas).nan_to_num(torch.inf).argmax())
        raise ProfileMismatch(
            f"time grid: at step {i} the profile has sigma {base[i]:.4f}, this call {sigmas[i]:.4f} (limit "
            f"{_limits(base)[i]:.4f} apart, half of the shorter interval there); use the size and sigmas of the "
            "calibration, apply the profile with retarget=True, which fits it to other grids at some loss, or "
            "calibrate with these"
        )


def apart(base: Tensor, sigmas: Tensor) -> Tensor:
    """[T+1] how far off each node is, as a multiple of what is allowed there."""
    return (sigmas.detach().cpu().double() - base.double()).abs() / _limits(base)


def _limits(base: Tensor) -> Tensor:
    """[T+1] half of the shorter interval beside each node."""
    intervals = base.double().diff().abs()
    return torch.minimum(torch.cat([intervals[:1], intervals]), torch.cat([intervals, intervals[-1:]])) / 2
