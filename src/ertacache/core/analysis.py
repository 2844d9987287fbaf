"""The error decomposition (Eq. 7-11) for any schedule.

ε_i here is (output used at step i) − (output of the uncached run at step i), on every step: computed steps
have one too, because they run on a latent that already deviates. With it the paper's sum is exact for Euler
on an unchanged grid:

    δ = x̃_T − x_T = Σ_i Δσ_i ε_i        Δσ_i = sigmas[i+1] − sigmas[i]

Over the predicted steps alone it is not.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ertacache.core.precision import exact
from ertacache.core.schedule import Schedule
from ertacache.errors import InvalidArgument


@dataclass(frozen=True, eq=False)
class ErrorDecomposition:
    """Root mean squares over prompts and elements, float64 on the CPU, in the unit of the latent.

    Attributes:
        feature_shift: [T] of ε_i.
        amplified: [T] of Δσ_i ε_i, the step's own share.
        deviation: [T+1] of the latent's deviation before each step and, last, at the end; as Eq. 11 sums it.
        computed: [T] the schedule.
    """

    feature_shift: Tensor
    amplified: Tensor
    deviation: Tensor
    computed: tuple[bool, ...]


def decompose(sigmas: Tensor, used: Tensor, reference: Tensor, schedule: Schedule) -> ErrorDecomposition:
    """Feature shift, its amplified share and the accumulated deviation, step by step (Eq. 7-11).

    Args:
        sigmas: [T+1], the grid that both runs share.
        used: [T, B, *latent] what the solver received in the cached run.
        reference: [T, B, *latent] what it received in the uncached run.
        schedule: of the cached run.

    Raises:
        InvalidArgument: numbers of steps that differ.
    """
    steps = _intervals(sigmas, used, reference)
    if schedule.T != len(steps):
        raise InvalidArgument(f"the schedule has {schedule.T} steps and the run {len(steps)}; use the run's own")
    delta = torch.zeros(used[0].shape, dtype=torch.float64)
    shift: list[Tensor] = []
    deviation = [_rms(delta)]
    for length, output, true in zip(steps, used, reference, strict=True):
        error = exact(output) - exact(true)
        delta = delta + length * error
        shift.append(_rms(error))
        deviation.append(_rms(delta))
    feature_shift = torch.stack(shift)
    return ErrorDecomposition(feature_shift, steps.abs() * feature_shift, torch.stack(deviation), schedule.computed)


def _rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()


def _intervals(sigmas: Tensor, used: Tensor, reference: Tensor) -> Tensor:
    """Δσ [T] float64, once the lengths are known to agree."""
    if not len(sigmas) - 1 == len(used) == len(reference):
        raise InvalidArgument(
            f"{len(sigmas)} sigmas, {len(used)} used and {len(reference)} reference outputs; give T+1, T, T"
        )
    return exact(sigmas).diff()
