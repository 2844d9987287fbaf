"""Training of the image autoencoder, and the latents it makes of a pool of scenes."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from ertacache_zoo import components, scenes
from ertacache_zoo.training import Recipe, train

RECIPE = Recipe(iterations=3000, batch_size=32, learning_rate=2e-3, seed=11)
#: Crops are a quarter of the price of whole images and hold everything a convolutional autoencoder can learn here.
CROP = 32


def train_autoencoder(images: Tensor, folder: Path, recipe: Recipe = RECIPE) -> AutoencoderKL:
    """Train on random crops of `images` [N, 3, 64, 64] in [0, 1]; sets the scaling and shift of the latents."""
    vae: Any = components.seeded(components.autoencoder, seed=recipe.seed)

    def loss(generator: torch.Generator) -> Tensor:
        index = torch.randint(len(images), (recipe.batch_size,), generator=generator)
        top, left = torch.randint(0, scenes.IMAGE_SIZE - CROP + 1, (2,), generator=generator).tolist()
        pixels = images[index, :, top : top + CROP, left : left + CROP] * 2 - 1
        posterior = vae.encode(pixels).latent_dist
        decoded = vae.decode(posterior.sample(generator)).sample
        error = (decoded - pixels).abs().mean() + (decoded - pixels).pow(2).mean()
        return error + 1e-4 * posterior.kl().mean() / posterior.mean[0].numel()

    train("autoencoder", vae, loss, recipe, folder)
    vae.eval().requires_grad_(False)
    latents = torch.cat([vae.encode(part * 2 - 1).latent_dist.mean for part in images[:1024].split(128)])
    vae.register_to_config(scaling_factor=1 / latents.std().item(), shift_factor=latents.mean().item())
    return vae


@torch.no_grad()
def encode_pool(vae: Any, images: Tensor) -> Tensor:
    """Normalised mean latents [N, 4, 16, 16] of images [N, 3, 64, 64]."""
    latents = torch.cat([vae.encode(part * 2 - 1).latent_dist.mean for part in images.split(128)])
    return (latents - vae.config["shift_factor"]) * vae.config["scaling_factor"]
