"""How far final latents are apart: what plans are compared by."""

import math

import torch
from torch import Tensor


def log10_error(latents: Tensor, reference: Tensor, prompts: int) -> Tensor:
    """log10 of the relative squared deviation of each prompt's final latent; infinite for NaN.

    Args:
        latents, reference: [B, *]. B is a multiple of `prompts` where both branches go through the solver, one after
            the other.

    Returns:
        [prompts] float64.
    """
    error, energy = (_squares(x, prompts) for x in (latents - reference, reference))
    value = torch.log10((error / energy).clamp_min(torch.finfo(torch.float64).tiny))
    return torch.where(value.isnan(), math.inf, value)


def deviation(latents: Tensor, reference: Tensor) -> float:
    """Mean of `log10_error` over the prompts: what plans are compared by; lower is better."""
    return float(log10_error(latents, reference, len(latents)).mean())


def _squares(x: Tensor, prompts: int) -> Tensor:
    return x.double().square().flatten(1).sum(1).unflatten(0, (-1, prompts)).sum(0)
