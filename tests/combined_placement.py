"""Rows of the table of combinations: where the weights lie, and by which kernels the same function is computed."""

import shutil
import tempfile
import weakref
from typing import Any

import accelerate
import torch
from diffusers import attention_backend

import small_images as images
import small_token_images as tokens
from combinations import Row

_CPU = torch.device("cpu")


def model_offload(pipe: Any) -> None:
    pipe.enable_model_cpu_offload(device="cpu")


def sequential_offload(pipe: Any) -> None:
    """What `enable_sequential_cpu_offload` does to each model, of which it refuses to do it for a CPU."""
    accelerate.cpu_offload(pipe.transformer, _CPU)


def group_offload(level: str, **more: Any) -> Any:
    def on(pipe: Any) -> None:
        pipe.enable_group_offload(onload_device=_CPU, offload_device=_CPU, offload_type=level, **more)

    return on


def group_offload_to_disk(pipe: Any) -> None:
    folder = tempfile.mkdtemp()
    weakref.finalize(pipe, shutil.rmtree, folder)
    pipe.transformer.enable_group_offload(
        onload_device=_CPU, offload_type="block_level", num_blocks_per_group=1,
        offload_to_disk_path=folder,
    )  # fmt: skip


def backend(name: str) -> Any:
    return lambda pipe: pipe.transformer.set_attention_backend(name)


def usual_backend(pipe: Any) -> None:
    pipe.transformer.set_attention_backend("native")  # which is what all others run from then on, too
    pipe.transformer.reset_attention_backend()


def tiling(pipe: Any) -> None:
    """Tiles small enough that the small pictures have several."""
    pipe.vae.enable_tiling()
    pipe.vae.tile_sample_min_size, pipe.vae.tile_latent_min_size = 16, 8


def slicing(pipe: Any) -> None:
    pipe.vae.enable_slicing()


_OFFLOADED = "on a CPU the weights move from it to itself: the hooks are the same"

ROWS = {
    "model offload": Row("`pipe.enable_model_cpu_offload()`", tokens.flux, model_offload, notes=_OFFLOADED),
    "sequential offload": Row(
        "`pipe.enable_sequential_cpu_offload()`", tokens.flux, sequential_offload, notes="weights wait on `meta`"
    ),
    "group offload by layer": Row(
        '`pipe.enable_group_offload(..., offload_type="leaf_level")`', tokens.flux, group_offload("leaf_level"),
        notes=_OFFLOADED,
    ),
    "group offload by block": Row(
        '`pipe.enable_group_offload(..., offload_type="block_level")`', tokens.flux,
        group_offload("block_level", num_blocks_per_group=1), notes=_OFFLOADED,
    ),
    "group offload to a disk": Row(
        "`pipe.transformer.enable_group_offload(..., offload_to_disk_path=...)`", tokens.flux, group_offload_to_disk,
        # Mapped from a file they lie elsewhere in memory, on which the last bit of a product depends on some CPUs.
        rounding=1e-5,
    ),
    "attention backend": Row(
        '`pipe.transformer.set_attention_backend("native")`', tokens.flux, backend("native"),
        usual_backend,
    ),
    "another attention kernel": Row(
        '`pipe.transformer.set_attention_backend("_native_math")`', tokens.flux, backend("_native_math"),
        usual_backend, rounding=1e-5,
    ),
    "attention backend for a while": Row(
        '`with attention_backend("native"):` around the call', tokens.flux, around=lambda: attention_backend("native")
    ),
    "attention slicing": Row(
        "`pipe.enable_attention_slicing()`", images.stable_diffusion_xl, lambda pipe: pipe.enable_attention_slicing(1),
        lambda pipe: pipe.disable_attention_slicing(), rounding=1e-5, slow=True,
    ),
    "channels last": Row(
        "`pipe.unet.to(memory_format=torch.channels_last)`", images.stable_diffusion_xl,
        lambda pipe: pipe.unet.to(memory_format=torch.channels_last), rounding=1e-5, slow=True,
    ),
    "inference mode": Row("`with torch.inference_mode():` around the call", tokens.flux, around=torch.inference_mode),
    "VAE tiling": Row(
        "`pipe.vae.enable_tiling()`", tokens.flux, tiling, lambda pipe: pipe.vae.disable_tiling(), same=False,
        decode=True,
    ),
    "VAE slicing": Row(
        "`pipe.vae.enable_slicing()`", tokens.flux, slicing, lambda pipe: pipe.vae.disable_slicing(), rounding=1e-5,
        decode=True, call={"num_images_per_prompt": 2},
    ),
}  # fmt: skip
