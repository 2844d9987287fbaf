"""Latents between the recorded ones of a run."""

import torch
from torch import Tensor

# Nodes of the polynomial: a cubic follows a trajectory between steps to well below what a plan deviates by.
_NODES = 4


def between(sigmas: Tensor, latents: Tensor, sigma: float) -> Tensor:
    """The latent [B, *] at a sigma: the polynomial through the four latents recorded nearest to it.

    At a recorded sigma it is the recorded latent itself, in its dtype. The first and the last sigma of the grid bound
    it: a sigma outside is taken as the nearer of them.

    Args:
        sigmas: [T+1] of the recorded run, all different.
        latents: [T+1, B, *].
    """
    grid = sigmas.double()
    wanted = torch.tensor(sigma, dtype=torch.float64).clamp(grid.min(), grid.max())
    distance = (grid - wanted).abs()
    nearest = int(distance.argmin())
    if distance[nearest] <= torch.finfo(torch.float32).eps * grid.abs().max():
        return latents[nearest]
    chosen = [int(i) for i in distance.argsort(stable=True)[:_NODES]]
    return sum(
        (_weight(grid, chosen, j, wanted) * latents[j].double() for j in chosen), torch.zeros((), dtype=torch.float64)
    ).to(latents.dtype)


def _weight(grid: Tensor, chosen: list[int], j: int, wanted: Tensor) -> float:
    """Lagrange's for the j-th node."""
    others = [i for i in chosen if i != j]
    return float(torch.stack([(wanted - grid[i]) / (grid[j] - grid[i]) for i in others]).prod())
