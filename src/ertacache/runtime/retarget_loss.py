"""What a retargeted profile lost where that was measured, for the warning of those who retarget another."""

import warnings
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ertacache.profile.profile import Profile
from ertacache.runtime.grids import distance, nearest


@dataclass(frozen=True, slots=True)
class Loss:
    """Mean PSNR in dB on held-out prompts on one grid, all at the same number of computed steps.

    Attributes:
        place: the grid that a profile was retargeted to, in words.
        measure: how far it is from the calibrated one: T', or `grids.distance`.
        retargeted: PSNR with the profile that was calibrated at `CALIBRATED_AT` steps and `CALIBRATED_SIZE`.
        calibrated: with one that was calibrated there.
        reuse: with residual reuse there, on the schedule of the retargeted one.
    """

    place: str
    measure: float
    retargeted: float
    calibrated: float
    reuse: float


CALIBRATED_AT, CALIBRATED_SIZE = 30, "64×64"
#: Measured by benchmarks/retarget.py on tiny-flux at half of the steps; written to benchmarks/results/retarget.json.
STEPS: tuple[Loss, ...] = (
    Loss("20 steps", 20, 37.756, 40.076, 33.151),
    Loss("24 steps", 24, 40.765, 43.709, 34.514),
    Loss("40 steps", 40, 49.595, 53.27, 39.914),
    Loss("50 steps", 50, 51.817, 56.141, 42.166),
)
#: The same by benchmarks/sizes.py, to benchmarks/results/sizes.json.
SIZES: tuple[Loss, ...] = (
    Loss("64×48", 0.0433, 44.297, 46.302, 37.014),
    Loss("48×48", 0.0757, 44.14, 44.485, 36.404),
    Loss("96×64", 0.0864, 42.618, 43.051, 37.469),
)


def warn_of_loss(profile: Profile, sigmas: Tensor) -> None:
    """Say what it costs to retarget a profile, or the nearest of its others, to a grid [T'+1], by what was measured."""
    own = nearest(profile, sigmas)
    T, steps = own.schedule.T, len(sigmas) - 1
    if steps != T:
        known = min(STEPS, key=lambda row: abs(np.log(row.measure / CALIBRATED_AT) - np.log(steps / T)))
        found, measured = f"was calibrated at {T} steps and is retargeted to {steps}", f"{CALIBRATED_AT} steps"
        remedy = f"at num_inference_steps={steps}"
    else:
        apart = distance(own.base_sigmas, sigmas)
        known = min(SIZES, key=lambda row: abs(row.measure - apart))
        found = f"is retargeted to a time grid that differs by up to {apart:.1%} (another size, or other sigmas)"
        measured, remedy = f"{CALIBRATED_SIZE} pixels", "at this size"
    warnings.warn(
        f"the profile {found}. Measured on tiny-flux, half of the steps computed, from {measured} to {known.place}: "
        f"{known.retargeted:.1f} dB PSNR, where a profile calibrated there has {known.calibrated:.1f} dB and "
        f"residual reuse {known.reuse:.1f} dB. Calibrate {remedy} to have no such loss",
        stacklevel=2,
    )
