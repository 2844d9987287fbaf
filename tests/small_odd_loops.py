"""Pipelines whose loop is not one run of one call a step: sections of a clip, calls before the loop, second steps."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

import small_parts as parts
import small_videos as videos
from small_parts import GUIDED, LENGTH_CALL, THREE_PROMPTS, WIDTH, assembled, euler, seeded
from small_wan_videos import picture
from supported import Small, T


def framepack(frames: int = 9) -> Small:
    """One section of 9 frames, or of 26 three, each a run of the solver."""
    small = videos.hunyuan_video()
    known = {name: part for name, part in small.pipe.components.items() if name != "transformer"}
    pipe = assembled(
        diffusers.HunyuanVideoFramepackPipeline,
        **known,
        transformer=seeded(
            lambda: diffusers.HunyuanVideoFramepackTransformer3DModel(
                in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1,
                num_single_layers=1, num_refiner_layers=1, patch_size=2, patch_size_t=1, guidance_embeds=True,
                text_embed_dim=WIDTH, pooled_projection_dim=WIDTH, rope_axes_dim=(2, 4, 4),
                image_condition_type=None, has_image_proj=True, image_proj_dim=32, has_clean_x_embedder=True,
            ),
            seed=3,
        ),
        feature_extractor=transformers.SiglipImageProcessorPil(size={"height": 30, "width": 30}),
        image_encoder=seeded(
            lambda: transformers.SiglipVisionModel(
                transformers.SiglipVisionConfig(
                    hidden_size=32, intermediate_size=37, num_hidden_layers=1, num_attention_heads=2, image_size=30,
                    patch_size=15,
                )
            ).eval(),
            seed=4,
        ),
    )  # fmt: skip
    call = {**small.call, "height": 32, "width": 32, "num_frames": frames, "latent_window_size": 3}
    call["sampling_type"] = "inverted_anti_drifting"
    return Small(pipe, call, THREE_PROMPTS, {"image": picture(32)}, batch_size=1)


def framepack_sections() -> Small:
    """A profile of one section serves it; calibration does not."""
    reason = r"runs its solver again within one call .*apply the profile to calls with several"
    refused = {"output": reason, "guided": reason}
    return replace(framepack(26), refused=refused, notes=("three runs of the solver in one call",))


def glm_image(edit: bool = False) -> Small:
    """GLM-Image with the tokens of its language model given."""
    tokenizer, side = transformers.ByT5Tokenizer(), 4
    pipe = assembled(
        diffusers.GlmImagePipeline,
        tokenizer=tokenizer,
        processor=None,
        text_encoder=parts.t5(tokenizer, 1),
        vision_language_encoder=None,
        vae=parts.autoencoder(0, scales=3, latents_mean=[0.0] * 4, latents_std=[1.0] * 4),
        transformer=seeded(
            lambda: diffusers.GlmImageTransformer2DModel(
                patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
                num_attention_heads=2, text_embed_dim=WIDTH, time_embed_dim=16, condition_dim=8,
                prior_vq_quantizer_codebook_size=32,
            ),
            seed=2,
        ),
        scheduler=euler(
            use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75, base_image_seq_len=256, time_shift_type="linear"
        ),
    )  # fmt: skip
    prior = torch.randint(0, 32, (1, side * side), generator=torch.Generator().manual_seed(0))
    inputs: dict[str, Any] = {"prior_token_ids": prior}
    notes = ("tokens of the language model given",)
    if edit:
        grid = torch.tensor([[1, side, side]])
        inputs |= {"image": [picture(64)], "prior_token_image_ids": [prior[0]], "source_image_grid_thw": [grid]}
        notes = (*notes, "a call before the loop, which fills the denoiser's memory of the image")
    call = {"num_inference_steps": T, "height": 64, "width": 64, "guidance_scale": 1.5}
    return Small(pipe, call, THREE_PROMPTS, inputs, batch_size=1, notes=notes)


def glm_image_edit() -> Small:
    return glm_image(edit=True)


class _Unchecked(nn.Module):
    """In place of the model that looks for what should not be shown."""

    device, dtype = torch.device("cpu"), torch.float32

    def check_text_safety(self, _: str) -> bool:
        return True

    def check_video_safety(self, frames: Any) -> Any:
        return frames


def _cosmos_transformer() -> Any:
    return seeded(
        lambda: diffusers.CosmosTransformer3DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=1, mlp_ratio=2,
            text_embed_dim=WIDTH, adaln_lora_dim=4, max_size=(4, 32, 32), patch_size=(1, 2, 2),
            rope_scale=(2.0, 1.0, 1.0), concat_padding_mask=False, extra_pos_embed_type="learnable",
        ),
        seed=2,
    )  # fmt: skip


def cosmos_2() -> Small:
    tokenizer = parts.t5_tokenizer()
    pipe = assembled(
        diffusers.Cosmos2TextToImagePipeline,
        tokenizer=tokenizer,
        text_encoder=parts.t5(tokenizer, 1),
        transformer=_cosmos_transformer(),
        vae=seeded(
            lambda: diffusers.AutoencoderKLWan(
                base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
                latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
            ),
            seed=0,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        safety_checker=_Unchecked(),
    )  # fmt: skip
    return Small(pipe, {**LENGTH_CALL, **GUIDED, "height": 32, "width": 32}, THREE_PROMPTS)


def cosmos() -> Small:
    tokenizer = parts.t5_tokenizer()
    pipe = assembled(
        diffusers.CosmosTextToWorldPipeline,
        tokenizer=tokenizer,
        text_encoder=parts.t5(tokenizer, 1),
        transformer=_cosmos_transformer(),
        vae=seeded(
            lambda: diffusers.AutoencoderKLCosmos(
                latent_channels=4, encoder_block_out_channels=(8, 8, 8, 8), decode_block_out_channels=(8, 8, 8, 8),
                attention_resolutions=(8,), resolution=64, num_layers=1, latents_mean=None, latents_std=None,
            ),
            seed=0,
        ),
        scheduler=diffusers.EDMEulerScheduler(
            sigma_min=0.002, sigma_max=80, sigma_data=0.5, sigma_schedule="karras", prediction_type="epsilon",
            final_sigmas_type="sigma_min",
        ),
        safety_checker=_Unchecked(),
    )  # fmt: skip
    twice = "the solver steps twice on each output"
    call = {**LENGTH_CALL, **GUIDED, "height": 32, "width": 32, "num_frames": 9}
    reason = r"EDMEulerScheduler\.step was called again without a denoiser call in between"
    return Small(pipe, call, THREE_PROMPTS, refused={"output": reason, "guided": reason}, notes=(twice,))


IMAGES: dict[str, Callable[[], Small]] = {
    "GLM-Image": glm_image,
    "GLM-Image with an image": glm_image_edit,
    "Cosmos 2": cosmos_2,
}
VIDEOS: dict[str, Callable[[], Small]] = {
    "FramePack": framepack,
    "FramePack, three sections": framepack_sections,
    "Cosmos": cosmos,
}
