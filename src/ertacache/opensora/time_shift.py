"""How far the noise levels of a call are shifted: further for large and long clips."""

import math

import torch

#: Frames of a chunk of the autoencoder, and the latent frames it makes of them.
_CHUNK, _LATENT = 17, 5


def time_shift(height: int, width: int, num_frames: int, *, base: int = 512, rounded: bool = True) -> float:
    """r of u′ = r u / (1 + (r − 1) u), with u the noise level from 0 to 1.

    r = √(height · width / base²) · √F′, where F′ is 1 for an image and 5 for each whole chunk of 17 frames; a remainder
    does not count. A clip of less than a chunk, for which the reference has no r, gets its latent frames.

    Args:
        height, width: pixels.
        base: side in pixels of the square image that is not shifted.
        rounded: compute in bfloat16, width and height included, as the reference does. Else exact.

    Source: Open-Sora 1.2.
    """
    frames = num_frames // _CHUNK * _LATENT or math.ceil(num_frames / 4)
    if not rounded:
        return math.sqrt(height * width / base**2) * math.sqrt(frames)
    h, w, f = (torch.tensor(n, dtype=torch.bfloat16) for n in (height, width, frames))
    return float((h * w / base**2).sqrt() * f.sqrt())


def noise_levels(num_inference_steps: int) -> list[float]:
    """u of every step before the shift: 1, 1 − 1/N, ..., 1/N."""
    return [1 - i / num_inference_steps for i in range(num_inference_steps)]


def as_given(value: float, *, rounded: bool) -> float:
    """A side in pixels or frames per second as the model is told it: the reference rounds to bfloat16 (854 is 856)."""
    return float(torch.tensor(value, dtype=torch.bfloat16)) if rounded else float(value)
