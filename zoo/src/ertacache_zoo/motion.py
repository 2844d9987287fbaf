"""The last stage of an autoencoder's training: things that move.

Movers cover a small part of a clip, and what is smeared along their way costs little on average. So crops are chosen
where much moves, and a pixel counts the more the more it changes.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ertacache_zoo import clips
from ertacache_zoo.training import Recipe, train
from ertacache_zoo.video import CROP, reconstruction_loss, signed

#: Share of batches of whole frames, a quarter of the size each, and crops among which the one that moves most is taken.
WHOLE, CHOICES = 0.25, 3
#: Weight of a pixel with a standard deviation of 1 over time, in pixels that never change.
EMPHASIS = 8.0


def train_on_motion(vae: Any, pixels: Tensor, folder: Path, recipe: Recipe, *, decoder_only: bool = False) -> None:
    """Train `vae` in place on uint8 `pixels` [N, 9, 3, 48, 48], and freeze it.

    With `decoder_only` its latents stay as they are, and so does all that was trained on them.
    """
    vae.train().requires_grad_(True)
    if decoder_only:
        for name, module in vae.named_modules():  # of Open-Sora's autoencoder, in both halves
            if name.rpartition(".")[2] in ("encoder", "quant_conv"):
                module.requires_grad_(False)

    def loss(generator: torch.Generator) -> Tensor:
        batch = _batch(pixels, recipe.batch_size, generator)
        return reconstruction_loss(vae, batch, generator, motion_weight(batch))

    train("motion", vae, loss, recipe, folder)
    vae.eval().requires_grad_(False)


def motion_weight(batch: Tensor) -> Tensor:
    """How much each pixel of clips [B, 3, frames, H, W] counts: [B, 1, 1, H, W], 1 where nothing ever changes."""
    return 1 + EMPHASIS * batch.std(2, keepdim=True, correction=0).mean(1, keepdim=True)


def _batch(pixels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Random clips as the autoencoder takes them, float32 [B, 3, 9, H, W] in [-1, 1]: crops, or whole and fewer."""
    if float(torch.rand((), generator=generator)) < WHOLE:
        index = torch.randint(len(pixels), (max(1, size // 4),), generator=generator)
        return signed(pixels[index])
    index = torch.randint(len(pixels), (size,), generator=generator).tolist()
    corners = torch.randint(0, clips.CLIP_SIZE - CROP + 1, (size, CHOICES, 2), generator=generator).tolist()
    return torch.stack([_moving_most(signed(pixels[n : n + 1]), at) for n, at in zip(index, corners, strict=True)])


def _moving_most(clip: Tensor, corners: list[list[int]]) -> Tensor:
    """Of the crops of `clip` [1, 3, 9, 48, 48] at `corners` (top, left), the one that changes most: [3, 9, 24, 24]."""
    crops = [clip[0, :, :, top : top + CROP, left : left + CROP] for top, left in corners]
    return max(crops, key=lambda crop: float(crop.std(1).mean()))
