"""A small Open-Sora text-to-video model: its autoencoder, the real class only narrower, and how that is trained."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ertacache.opensora.autoencoder import AutoencoderKLOpenSora
from ertacache.opensora.causal_convolution import CausalConv3d
from ertacache_zoo import clips, components, motion, video
from ertacache_zoo.training import Recipe, train
from ertacache_zoo.video import LATENT_CHANNELS

STILLS = Recipe(iterations=2000, batch_size=64, learning_rate=2e-3, seed=91)
AUTOENCODER = Recipe(iterations=2000, batch_size=8, learning_rate=1e-3, seed=92)
MOTION = Recipe(iterations=1000, batch_size=8, learning_rate=1e-3, warmup=50, seed=93)
#: Frames of the pool that the scale of the spatial latents is taken from.
_SCALED = 1000


def autoencoder() -> AutoencoderKLOpenSora:
    """9×48×48 pixels to 3×12×12 latents of eight channels, in one chunk.

    Each convolution over time starts with weights for the present frame alone, and each one that doubles the number of
    frames by repeating them: so a frame is first treated as a still, but for the norms, which see all frames.
    """
    vae = AutoencoderKLOpenSora(
        latent_channels=LATENT_CHANNELS,
        block_out_channels=(16, 32, 48),
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=clips.CLIP_SIZE,
        temporal_filters=20,
        temporal_multipliers=(1, 2, 2),
        temporal_res_blocks=1,
        temporal_norm_num_groups=4,
        time_downsample=(True, True),
        micro_batch_size=clips.FRAMES,
        latents_mean=(0.0,) * LATENT_CHANNELS,
        latents_std=(1.0,) * LATENT_CHANNELS,
    )
    decoder = vae.temporal_vae.decoder
    with torch.no_grad():
        for module in vae.temporal_vae.modules():
            if isinstance(module, CausalConv3d):
                module.conv.weight[:, :, :-1] = 0
        for module in decoder.conv_blocks.children():
            if isinstance(module, CausalConv3d):
                for parameter in module.conv.parameters():  # neighbouring channels are neighbouring frames
                    parameter[1::2] = parameter[::2]
    return vae


def train_spatial(vae: Any, pixels: Tensor, folder: Path, recipe: Recipe) -> None:
    """Train the spatial half of `vae` in place on crops of single frames, and scale its latents to a deviation of 1.

    As the published one was trained on images, before there was a temporal half.

    Args:
        pixels: uint8 [N, 9, 3, 48, 48].
    """
    spatial = vae.spatial_vae.module

    def loss(generator: torch.Generator) -> Tensor:
        return video.reconstruction_loss(
            spatial, video.stills(pixels, recipe.batch_size, generator).squeeze(2), generator
        )

    train("stills", spatial, loss, recipe, folder)
    with torch.no_grad():
        frames = video.stills(pixels, _SCALED, torch.Generator().manual_seed(recipe.seed)).squeeze(2)
        deviation = spatial.encode(frames).latent_dist.mean.std().item()
    vae.register_to_config(spatial_scaling_factor=1 / deviation)


def normalise(vae: Any, latents: Tensor) -> Tensor:
    """Latents [N, 8, 3, 12, 12] with mean 0 and standard deviation 1 per channel, as `vae` gives them from now on."""
    scaled, mean, std = video.normalised(latents)
    vae.register_to_config(latents_mean=mean, latents_std=std)
    with torch.no_grad():
        vae.shift.copy_(torch.tensor(mean).view_as(vae.shift))
        vae.scale.copy_(torch.tensor(std).view_as(vae.scale))
    return scaled


def trained_autoencoder(drawn: list[clips.Clip], work: Path) -> tuple[Any, Tensor, float]:
    """Train what is not trained yet under `work`: the autoencoder, normalised latents of the pool, and PSNR in dB."""
    run, pixels = work / "run", video.autoencoder_pixels(drawn)
    vae: Any = components.seeded(autoencoder, seed=STILLS.seed)
    train_spatial(vae, pixels, run, STILLS)
    video.train_autoencoder(vae, pixels, run, AUTOENCODER)
    motion.train_on_motion(vae, pixels, run, MOTION)
    psnr = video.reconstruction(vae)
    return vae, normalise(vae, video.pool_latents(vae, drawn, work)), psnr
