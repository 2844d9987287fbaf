"""Whether a denoiser's input is a latent of the solver's."""

import torch
from torch import Tensor


def same_memory(x: Tensor, latent: Tensor) -> bool:
    """Whether a denoiser's input is the very latent, if in another shape."""
    return x.numel() == latent.numel() and x.data_ptr() == latent.data_ptr() and x.device == latent.device


def derives(x: Tensor, latent: Tensor) -> bool:
    """Whether a denoiser's input is a latent: itself, cast, several times in a batch, or with conditions after it.

    Args:
        x: [n B, *], at least as long as the latent on every axis.
        latent: [B, *].
    """
    if same_memory(x, latent):
        return True
    if x.numel() == latent.numel():
        part = x.reshape(latent.shape)  # pipelines put axes of length 1 in and take them out
    elif x.ndim == latent.ndim and all(n >= m for n, m in zip(x.shape, latent.shape, strict=True)):
        part = x[tuple(slice(m) for m in latent.shape)]
    elif latent.ndim and len(x) > len(latent) and x.numel() * len(latent) == latent.numel() * len(x):
        part = x[: len(latent)].reshape(latent.shape)
    else:
        return False
    return torch.equal(part, latent.to(part.device, part.dtype))
