"""Wan and its kin around small random weights: images and clips to video, and SkyReels."""

from typing import Any

import diffusers
import torch
import transformers
from PIL import Image

import small_parts as parts
from small_parts import GUIDED, LENGTH_CALL, THREE_PROMPTS, WIDTH, assembled, seeded
from supported import Small

FRAMES = 5
LATE_START = "calibrated at strength 1; a late start computes until it has a history"

_CALL: dict[str, Any] = {**LENGTH_CALL, **GUIDED, "height": 16, "width": 16}


def picture(side: int = 16, seed: int = 0) -> Image.Image:
    pixels = torch.randint(0, 256, (side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.numpy())


def clip(side: int = 16, frames: int = FRAMES) -> list[Image.Image]:
    return [picture(side, seed) for seed in range(frames)]


def _parts(transformer: type = diffusers.WanTransformer3DModel, shift: float = 3.0, **config: Any) -> dict[str, Any]:
    tokenizer = parts.t5_tokenizer()
    return {
        "tokenizer": tokenizer,
        "text_encoder": parts.umt5(tokenizer, 0),
        "vae": seeded(
            lambda: diffusers.AutoencoderKLWan(
                base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
                latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
            ),
            seed=1,
        ),
        "scheduler": parts.unipc(shift),
        "transformer": seeded(
            lambda: transformer(
                **{
                    "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4,
                    "text_dim": WIDTH, "freq_dim": 32, "ffn_dim": 32, "num_layers": 1, "rope_max_seq_len": 32,
                    **config,
                }
            ),
            seed=2,
        ),
    }  # fmt: skip


def image_to_video() -> Small:
    """Wan2.1: a mask of 4 channels and the image's latent beside the noise, and the image's tokens as well."""
    encoder = transformers.CLIPVisionConfig(
        hidden_size=8, projection_dim=8, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8,
        intermediate_size=8,
    )  # fmt: skip
    pipe = assembled(
        diffusers.WanImageToVideoPipeline,
        image_encoder=seeded(lambda: transformers.CLIPVisionModelWithProjection(encoder).eval(), seed=3),
        image_processor=transformers.CLIPImageProcessorPil(crop_size=16, size=16),
        **_parts(in_channels=12, image_dim=8, added_kv_proj_dim=24),
    )
    # It takes one image, or several in one tensor, but no list.
    return Small(pipe, {**_CALL, "num_frames": FRAMES}, THREE_PROMPTS, {"image": picture()}, batch_size=1)


def image_to_video_5b() -> Small:
    """Wan2.2 TI2V: the image takes the place of the first latent frame, with a time of its own."""
    pipe = assembled(diffusers.WanImageToVideoPipeline, expand_timesteps=True, **_parts())
    return Small(pipe, {**_CALL, "num_frames": FRAMES}, THREE_PROMPTS, {"image": picture()}, batch_size=1)


def vace() -> Small:
    # Inactive and active latent, and a mask of 8 × 8 channels.
    config: dict[str, Any] = {"vace_layers": [0], "vace_in_channels": 2 * 4 + 64}
    pipe = assembled(diffusers.WanVACEPipeline, **_parts(diffusers.WanVACETransformer3DModel, **config))
    inputs = {"video": clip(), "mask": [Image.new("L", (16, 16), 255)] * FRAMES}
    return Small(pipe, {**_CALL, "num_frames": FRAMES}, THREE_PROMPTS, inputs, batch_size=1)


def video_to_video() -> Small:
    pipe = assembled(diffusers.WanVideoToVideoPipeline, **_parts())
    return Small(pipe, {**_CALL, "strength": 1.0}, THREE_PROMPTS, {"video": clip()}, notes=(LATE_START,))


def _skyreels(pipeline: Any) -> Any:
    return assembled(pipeline, **_parts(diffusers.SkyReelsV2Transformer3DModel, shift=8.0))


def skyreels() -> Small:
    pipe = _skyreels(diffusers.SkyReelsV2Pipeline)
    return Small(pipe, {**_CALL, "num_frames": FRAMES}, THREE_PROMPTS)


def skyreels_diffusion_forcing() -> Small:
    pipe = _skyreels(diffusers.SkyReelsV2DiffusionForcingPipeline)
    reason = "several copies of UniPCMultistepScheduler step on what one denoiser call returned"
    refused = {"output": reason, "guided": reason}
    return Small(pipe, {**_CALL, "num_frames": FRAMES}, THREE_PROMPTS, refused=refused)
