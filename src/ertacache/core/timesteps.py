"""The trajectory-aware timestep adjustment (Eq. 13-14), on any grid and at any strength.

Two corrections to the print. Eq. 14 gives about 1, not 1/T: the working form is remaining budget over
remaining steps. And real grids are not uniform, so a step is scaled from its own length: Δσ_i ← φ_i Δσ_i.
"""

from collections.abc import Mapping

from torch import Tensor

from ertacache.core.schedule import Schedule
from ertacache.errors import InvalidArgument

# UniPC and DPM-Solver divide by differences of log σ: an interval of length 0 would turn into NaN.
_SHORTEST = 1e-3


def phi(error_l1: float, change_l1: float) -> float:
    """Eq. 13: clip(1 − ‖ṽ_i − v_i‖₁ / ‖v_i − v_{i−1}‖₁, 0, 1), i counted in inference order.

    Args:
        error_l1: how far the prediction is from the output, summed over prompts.
        change_l1: how far the output has moved since the step before, likewise. At 0 the result is 1 if the
            error is 0 too, else 0.
    """
    if change_l1 == 0:
        return 1.0 if error_l1 == 0 else 0.0
    return min(max(1 - error_l1 / change_l1, 0.0), 1.0)


def soften(phi: float, strength: float) -> float:
    """1 − strength · (1 − φ): strength 0 leaves the grid alone, 1 is the paper.

    Raises:
        InvalidArgument: a strength outside [0, 1].
    """
    if not 0 <= strength <= 1:
        raise InvalidArgument(f"strength is {strength}; choose from 0 (no adjustment) to 1 (the paper)")
    return 1 - strength * (1 - phi)


def stretch(sigmas: Tensor, i: int, factor: float) -> Tensor:
    """Scale interval i and spread what it gives up over the later ones in proportion, so that the end stays.

    Args:
        sigmas: [T+1], the time grid, monotone.
        i: the interval from sigmas[i] to sigmas[i+1]. The last has no later one and stays as it is.
        factor: in [0, 1]; at least a thousandth of the interval is kept.

    Returns:
        [T+1] float64.

    Raises:
        InvalidArgument: an interval that the grid lacks, or a factor outside [0, 1].
    """
    T = len(sigmas) - 1
    if not 0 <= i < T or not 0 <= factor <= 1:
        raise InvalidArgument(f"interval {i} of {T} by factor {factor}: need 0 <= i < {T} and a factor in [0, 1]")
    grid = sigmas.double().clone()
    start, end = float(grid[i + 1]), float(grid[-1])
    if start != end:
        freed = (1 - max(factor, _SHORTEST)) * (start - float(grid[i]))
        grid[i + 1 :] += (grid[i + 1 :] - end) * (freed / (end - start))
    return grid


def adjust(sigmas: Tensor, schedule: Schedule, phis: Mapping[int, float], strength: float) -> Tensor:
    """The whole grid of Algorithm 1, lines 3-12: predicted steps scaled by their softened φ, in order.

    Args:
        sigmas: [T+1], the base grid.
        phis: φ of every predicted step.
        strength: see `soften`.

    Returns:
        [T+1] float64, from the same first to the same last sigma.

    Raises:
        InvalidArgument: another length of grid, a predicted step without φ, a strength outside [0, 1].
    """
    if sigmas.shape != (schedule.T + 1,):
        raise InvalidArgument(f"sigmas has shape {tuple(sigmas.shape)}; give [T+1] = [{schedule.T + 1}]")
    if missing := [i for i in schedule.predicted_steps if i not in phis]:
        raise InvalidArgument(f"predicted steps {missing} have no φ; measure it on the cached trajectory")
    grid = sigmas.double().clone()
    for i in schedule.predicted_steps:
        grid = stretch(grid, i, soften(phis[i], strength))
    return grid
