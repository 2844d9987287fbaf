"""Levenberg-Marquardt on the mean log error of many prompts, from sums that do not grow with the size of a latent.

Each prompt p leaves a residual r_p + J_p δ where all coefficients change by δ. Of it only |r_p|², J_pᵀ r_p and J_pᵀ J_p
are kept, which is all that its squared error needs.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ertacache.core.run_gram import inner_products
from ertacache.errors import InvalidArgument

# Reweighted least squares settles in a few rounds; each lowers the objective.
_ROUNDS = 30
# Below this share of the largest singular value of the normal equations there is rounding.
_ROUNDING = 1e-13
# What of a prompt's error counts as none: without it one prompt that is met exactly would rule the fit.
_LEAST = 1e-3


@dataclass(frozen=True, eq=False)
class Linearised:
    """Squared errors of N prompts as functions of a change of n coefficients, to first order in the residual.

    Attributes:
        energy: [N] float64 |r_p|².
        moment: [N, n] float64 J_pᵀ r_p.
        gram: [N, n, n] float64 J_pᵀ J_p.
    """

    energy: Tensor
    moment: Tensor
    gram: Tensor

    @classmethod
    def of(cls, residual: Tensor, jacobian: list[Tensor], prompts: int | None = None) -> Self:
        """From residuals [B, *] and one derivative [B, *] for each coefficient.

        Args:
            prompts: how many there are, if not B: then row p, p + prompts, ... belong to prompt p.

        Raises:
            InvalidArgument: a derivative of another shape, or NaN or infinity in one of them.
        """
        if any(x.shape != residual.shape for x in jacobian):
            raise InvalidArgument(f"residuals are {list(residual.shape)}; give each derivative the same shape")
        prompts = len(residual) if prompts is None else prompts
        rows = [_by_prompt(x, prompts) for x in (*jacobian, residual)]
        count = len(jacobian)
        whole = torch.stack([inner_products([x[p : p + 1] for x in rows]) for p in range(prompts)])
        if not bool(whole.isfinite().all()):
            raise InvalidArgument("a residual or a derivative holds NaN or infinity; take smaller differences")
        return cls(whole[:, count, count], whole[:, :count, count], whole[:, :count, :count])

    @classmethod
    def joined(cls, parts: list["Linearised"]) -> Self:
        """The prompts of all of them."""
        named = [torch.cat([getattr(part, name) for part in parts]) for name in ("energy", "moment", "gram")]
        return cls(*named)

    def part(self, prompts: Tensor) -> "Linearised":
        """Of some prompts: a mask [N] or indices."""
        return Linearised(self.energy[prompts], self.moment[prompts], self.gram[prompts])

    def errors(self, change: Tensor) -> Tensor:
        """[N] |r_p + J_p δ|² for a change δ [n]."""
        found = self.energy + 2 * self.moment @ change + (self.gram @ change) @ change
        return found.clamp(min=0)  # rounding may leave less than nothing

    def gain(self, change: Tensor) -> Tensor:
        """[N] by how much the natural logarithm of each error changes: below 0 is better."""
        floor = _LEAST * self.energy
        return torch.log((self.errors(change) + floor) / (self.energy + floor).clamp(min=_tiny()))

    @property
    def scale(self) -> Tensor:
        """[n] mean over prompts of |J_pc|² / |r_p|² for each coefficient c: how much of an error its unit makes."""
        return (self._weights(self.energy)[:, None] * self.gram.diagonal(dim1=1, dim2=2)).mean(0)

    def step(self, damping: float, offset: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
        """The change δ [n] with the least mean of log |r_p + J_p δ|² + damping · Σ_c scale_c (δ_c + offset_c)².

        By iteratively reweighted least squares from weights 1/|r_p|², which lowers the objective in every round.

        Args:
            offset: [n], how far the coefficients already are from where they shrink to; zeros if None.
            scale: [n] of the penalty, this `scale` if None.

        Raises:
            InvalidArgument: a damping that is not a positive number.
        """
        if not (damping > 0 and damping < float("inf")):
            raise InvalidArgument(f"damping is {damping}; use a positive number, such as 0.01")
        scale = self.scale if scale is None else scale
        penalty = damping * torch.diag(torch.where(scale > 0, scale, 1.0))
        pull = penalty @ offset if offset is not None else torch.zeros_like(self.moment[0])
        change = torch.zeros_like(pull)
        for _ in range(_ROUNDS):
            weights = self._weights(self.errors(change)) / len(self.energy)
            gram = torch.einsum("p,pab->ab", weights, self.gram) + penalty
            before, change = change, -(torch.pinverse(gram, rcond=_ROUNDING) @ (weights @ self.moment + pull))
            if torch.allclose(before, change, rtol=1e-6, atol=0.0):
                break
        return change

    def _weights(self, errors: Tensor) -> Tensor:
        return 1 / (errors + _LEAST * self.energy).clamp(min=_tiny())


def cross_validated(
    model: Linearised, dampings: list[float], folds: int, offset: Tensor | None = None
) -> tuple[float, float]:
    """The damping whose step serves prompts best that it was not fitted to, and the mean log gain there.

    Prompt p belongs to fold p modulo `folds`; each fold is told by a step fitted to the others.

    Raises:
        InvalidArgument: fewer than two folds, more than prompts, or no damping.
    """
    prompts = len(model.energy)
    if not 2 <= folds <= prompts or not dampings:
        raise InvalidArgument(f"{folds} folds of {prompts} prompts and {len(dampings)} dampings; use 2 folds or more")
    fold, scale = torch.arange(prompts) % folds, model.scale
    best, least = dampings[0], float("inf")
    for damping in dampings:
        told = [model.part(fold == k).gain(model.part(fold != k).step(damping, offset, scale)) for k in range(folds)]
        if (mean := float(torch.cat(told).mean())) < least:
            best, least = damping, mean
    return best, least


def _by_prompt(x: Tensor, prompts: int) -> Tensor:
    """[B, *] -> [prompts, *], all rows of a prompt side by side."""
    return x.reshape(-1, prompts, x[0].numel()).transpose(0, 1).reshape(prompts, -1)


def _tiny() -> float:
    return torch.finfo(torch.float64).tiny
