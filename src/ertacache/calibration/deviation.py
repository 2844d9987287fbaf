"""How far final latents are apart: what plans are compared by."""

import math

import torch
from torch import Tensor


def log10_error(latents: Tensor, reference: Tensor) -> Tensor:
    """log10 of the relative squared deviation of each prompt's final latent, [B, *] -> [B]; infinite for NaN."""
    error = (latents - reference).double().flatten(1).square().sum(1)
    energy = reference.double().flatten(1).square().sum(1)
    value = torch.log10((error / energy).clamp_min(torch.finfo(torch.float64).tiny))
    return torch.where(value.isnan(), math.inf, value)


def deviation(latents: Tensor, reference: Tensor) -> float:
    """Mean of `log10_error` over the prompts: what plans are compared by; lower is better."""
    return float(log10_error(latents, reference).mean())
