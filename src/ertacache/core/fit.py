"""Weighted ridge least squares toward a prior, from sums that do not grow with the number of prompts.

To shrink toward a prior (residual reuse, say), fit what the prior leaves: pass target − prior as the target
and add the solution to the prior's coefficients.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ertacache.core.precision import exact
from ertacache.errors import InvalidArgument

# Directions with less energy than this are what float32 rounding leaves of a collinear one: not for fitting.
_COLLINEAR = 1e-12
#: Share of the largest feature's energy below which another one is rounding: only a huge coefficient would use it.
NEGLIGIBLE = 1e-9


class RidgeSums:
    """The normal equations of y ≈ Σ_f a_f F_f, accumulated prompt by prompt.

    Attributes:
        gram: [F, F] float64 on the CPU, Σ w F Fᵀ.
        moment: [F] float64 on the CPU, Σ w F y.
    """

    def __init__(self, features: int) -> None:
        self.gram = torch.zeros(features, features, dtype=torch.float64)
        self.moment = torch.zeros(features, dtype=torch.float64)

    def update(self, features: Sequence[Tensor], target: Tensor, weights: Tensor | None = None) -> None:
        """Add B prompts.

        Args:
            features: F tensors [B, *].
            target: [B, *].
            weights: [B], one per prompt; ones if None.

        Raises:
            InvalidArgument: another number of features than these sums were made for.
        """
        if len(features) != len(self.moment):
            raise InvalidArgument(f"{len(features)} features for sums over {len(self.moment)}; pass as many")
        scales = [1.0] * len(target) if weights is None else [float(w) for w in weights]
        for p, weight in enumerate(scales):  # one prompt at a time: the wide copy below is the memory peak
            wide = torch.stack([exact(f[p]).flatten() for f in (*features, target)])
            products = weight * (wide[:-1] @ wide.T)
            self.gram += products[:, :-1]
            self.moment += products[:, -1]

    def merge(self, other: "RidgeSums") -> None:
        """Add the prompts that `other` has seen."""
        self.gram += other.gram
        self.moment += other.moment

    def solve(self, ridge: float = 0.0) -> Tensor:
        """Coefficients [F] float64 that minimise Σ w |y − F a|² + ridge · aᵀ diag(G) a.

        The penalty is relative to each feature's own energy, so `ridge` is dimensionless. Where features
        repeat each other or are zero (or as good as zero beside another), the smallest solution is taken.

        Raises:
            InvalidArgument: a ridge that is negative or NaN.
        """
        return ridge_solution(self.gram, self.moment, ridge)


def ridge_solution(gram: Tensor, moment: Tensor, ridge: float = 0.0) -> Tensor:
    """The coefficients [*, F] float64 of `RidgeSums.solve` for any number of normal equations at once.

    Args:
        gram: [*, F, F] float64.
        moment: [*, F] float64.

    Raises:
        InvalidArgument: a ridge that is negative or NaN.
    """
    if not ridge >= 0:
        raise InvalidArgument(f"ridge is {ridge}; use 0 for plain least squares, more to shrink")
    if math.isinf(ridge):
        return torch.zeros_like(moment)
    energy = gram.diagonal(dim1=-2, dim2=-1)
    scale = torch.where(energy > NEGLIGIBLE * energy.amax(-1, keepdim=True), energy.sqrt(), math.inf)
    correlation = gram / (scale[..., :, None] * scale[..., None, :])
    correlation = correlation + ridge * torch.eye(scale.shape[-1], dtype=torch.float64)
    return (torch.pinverse(correlation, rcond=_COLLINEAR) @ (moment / scale)[..., None])[..., 0] / scale


def prompt_weights(residual: Tensor, target: Tensor) -> Tensor:
    """Weights [B] float64, inversely proportional to each prompt's energy in residual [B, *].

    They keep a few stiff prompts from ruling the fit. Each depends on its own prompt alone, so that no sum
    depends on how the prompts are split in batches. A millionth of the energy of target [B, *] is added, for
    prompts that leave no residual; a prompt without either weighs nothing.
    """
    return energy_weights(exact(residual).flatten(1).square().sum(1), exact(target).flatten(1).square().sum(1))


def energy_weights(residual: Tensor, target: Tensor) -> Tensor:
    """The weights of `prompt_weights` from the energies themselves, [*] float64 each."""
    energy = residual + 1e-6 * target
    return torch.where(energy > 0, 1 / energy, 0.0)
