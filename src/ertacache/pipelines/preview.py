"""The picture that a run is heading for, at any step: x̂0 from the solver's latent and what it receives."""

import math
from typing import Any, get_args

import torch
from torch import Tensor

from ertacache.core.propagation import Prediction, clean_latent
from ertacache.pipelines.solvers import read_grid

#: Cells of a side of the latent that is decoded: a preview is small.
_CELLS = 64


def estimate(scheduler: Any, step: int, output: Tensor, x: Tensor) -> Tensor | None:
    """x̂0 at a step; None for a solver whose outputs are of a kind that is not known.

    Args:
        output: [B, *] what the solver receives: a flow's velocity, or noise, v or sample by `prediction_type`.
        x: [B, *] the latent before the step.
    """
    if (kind := _kind(scheduler)) is None:
        return None
    at = float(read_grid(scheduler)[step])  # σ of a flow, else the angle
    signal, noise = (1 - at, at) if kind == "flow_prediction" else (math.cos(at), math.sin(at))
    of_x, of_output = clean_latent(signal, noise, kind)
    return of_x * x + of_output * output


def _kind(scheduler: Any) -> Prediction | None:
    """What a solver receives; None where x̂0 cannot be told from it."""
    if "FlowMatch" in type(scheduler).__name__:
        return "flow_prediction"
    kind = scheduler.config.get("prediction_type")
    if kind != "flow_prediction" and isinstance(getattr(scheduler, "sigmas", None), Tensor):
        return None  # k-diffusion's sigmas, scaled as each class likes
    return kind if kind in get_args(Prediction) else None


def can_preview(pipe: Any) -> bool:
    """Whether x̂0 of a pipeline can be told from its solver's input and decoded by the common autoencoder."""
    return type(getattr(pipe, "vae", None)).__name__ == "AutoencoderKL" and _kind(pipe.scheduler) is not None


@torch.no_grad()
def decode(pipe: Any, latents: Tensor, height: int, width: int) -> Tensor:
    """Pictures [B, 3, h, w] in [0, 1] of latents [B, *], packed or not, at most 64 latent cells wide and high."""
    vae = pipe.vae
    if latents.ndim == 3:
        latents = pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor)
    if (side := max(latents.shape[-2:])) > _CELLS:
        shape = [max(1, size * _CELLS // side) for size in latents.shape[-2:]]
        latents = torch.nn.functional.interpolate(latents, size=shape, mode="area")
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    pictures = vae.decode((latents / vae.config.scaling_factor + shift).to(vae.dtype), return_dict=False)[0]
    return (pictures.float() / 2 + 0.5).clamp(0, 1).cpu()
