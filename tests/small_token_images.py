"""Image pipelines whose latents are packed to tokens: the FLUX kin and Qwen-Image, around small random weights."""

import dataclasses
import warnings
from typing import Any

import diffusers
import torch
import transformers
from PIL import Image

import small_parts as parts
from small_parts import GUIDED, LENGTH_CALL, SIZE, THREE_PROMPTS, WIDTH, assembled, euler, seeded
from supported import Small


def picture(side: int = 32) -> Image.Image:
    pixels = torch.randint(0, 256, (side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Image.fromarray(pixels.numpy())


def _flux_parts(in_channels: int = 16, **more: Any) -> dict[str, Any]:
    clip, t5 = parts.clip_tokenizer(), parts.t5_tokenizer()
    return {
        "scheduler": euler(use_dynamic_shifting=True),
        "vae": parts.autoencoder(0),
        "text_encoder": parts.clip(clip, 1),
        "tokenizer": clip,
        "text_encoder_2": parts.t5(t5, 2),
        "tokenizer_2": t5,
        "transformer": seeded(
            lambda: diffusers.FluxTransformer2DModel(
                patch_size=1, in_channels=in_channels, num_layers=1, num_single_layers=1, attention_head_dim=16,
                num_attention_heads=2, joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH, guidance_embeds=True,
                axes_dims_rope=(4, 6, 6), **more,
            ),
            seed=3,
        ),
    }  # fmt: skip


def flux() -> Small:
    pipe = assembled(diffusers.FluxPipeline, **_flux_parts())
    return Small(pipe, {**LENGTH_CALL, **SIZE, "guidance_scale": 3.5}, THREE_PROMPTS)


def flux_kontext() -> Small:
    pipe = assembled(diffusers.FluxKontextPipeline, **_flux_parts())
    call = {**LENGTH_CALL, **SIZE, "guidance_scale": 2.5, "max_area": 32 * 32, "_auto_resize": False}
    return Small(pipe, call, THREE_PROMPTS, {"image": picture()})


def flux_fill() -> Small:
    # Latents, masked image and mask: 16 + 16 + 4·(2·2) channels where the autoencoder halves the sides.
    pipe = assembled(diffusers.FluxFillPipeline, **_flux_parts(in_channels=48, out_channels=16))
    mask = Image.new("L", (32, 32), 255)
    call = {**LENGTH_CALL, **SIZE, "guidance_scale": 30.0}
    return Small(pipe, call, THREE_PROMPTS, {"image": picture(), "mask_image": mask})


def flux_img2img() -> Small:
    pipe = assembled(diffusers.FluxImg2ImgPipeline, **_flux_parts())
    call = {**LENGTH_CALL, **SIZE, "guidance_scale": 3.5, "strength": 1.0}
    notes = ("calibrated at strength 1; a late start computes until it has a history",)
    return Small(pipe, call, THREE_PROMPTS, {"image": picture()}, notes=notes)


def _chroma_transformer() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`FluxPosEmbed` is deprecated", FutureWarning)  # diffusers' own use of it
        return diffusers.ChromaTransformer2DModel(
            in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=WIDTH, axes_dims_rope=(4, 6, 6), approximator_num_channels=16,
            approximator_hidden_dim=16, approximator_layers=1,
        )  # fmt: skip


def chroma() -> Small:
    tokenizer = parts.t5_tokenizer()
    pipe = assembled(
        diffusers.ChromaPipeline,
        scheduler=euler(),
        vae=parts.autoencoder(0),
        text_encoder=parts.t5(tokenizer, 1),
        tokenizer=tokenizer,
        transformer=seeded(_chroma_transformer, seed=2),
    )
    return Small(pipe, {**LENGTH_CALL, **SIZE, **GUIDED}, THREE_PROMPTS)


def _flux2_transformer(guidance_embeds: bool, layers: int) -> Any:
    return seeded(
        lambda: diffusers.Flux2Transformer2DModel(
            in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=layers * WIDTH, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=guidance_embeds,
        ),
        seed=2,
    )  # fmt: skip


def _flux2_autoencoder() -> Any:
    blocks: dict[str, Any] = {
        "block_out_channels": (8, 8), "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 2,
        "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
        "mid_block_add_attention": False,
    }  # fmt: skip
    return seeded(lambda: diffusers.AutoencoderKLFlux2(**blocks).eval(), seed=0)


def flux2() -> Small:
    tokenizer = parts.words_tokenizer()
    pipe = assembled(
        diffusers.Flux2Pipeline,
        scheduler=euler(use_dynamic_shifting=True),
        vae=_flux2_autoencoder(),
        text_encoder=parts.decoder(transformers.MistralForCausalLM, transformers.MistralConfig, tokenizer, 1),
        tokenizer=tokenizer,
        transformer=_flux2_transformer(guidance_embeds=True, layers=2),
    )
    call = {**LENGTH_CALL, **SIZE, "guidance_scale": 4.0, "text_encoder_out_layers": [1, 2], "max_sequence_length": 64}
    return Small(pipe, call, THREE_PROMPTS, notes=("text encoder: Mistral without its image half",))


def flux2_edit() -> Small:
    # A list of images would be taken for several to one prompt, so that prompts come one at a time.
    return dataclasses.replace(flux2(), inputs={"image": picture(64)}, batch_size=1)


def flux2_klein() -> Small:
    tokenizer = parts.words_tokenizer()
    pipe = assembled(
        diffusers.Flux2KleinPipeline,
        scheduler=euler(use_dynamic_shifting=True),
        vae=_flux2_autoencoder(),
        text_encoder=parts.decoder(transformers.Qwen3ForCausalLM, transformers.Qwen3Config, tokenizer, 1),
        tokenizer=tokenizer,
        transformer=_flux2_transformer(guidance_embeds=False, layers=2),
    )
    call = {**LENGTH_CALL, **SIZE, "guidance_scale": 4.0, "text_encoder_out_layers": [1, 2]}
    return Small(pipe, call, THREE_PROMPTS)


def qwen_image() -> Small:
    tokenizer = parts.words_tokenizer()
    text = {"rope_parameters": {"type": "mrope", "rope_type": "default", "mrope_section": [2, 3, 3]}}
    config = transformers.Qwen2_5_VLConfig(
        text_config={**parts.DECODER, "vocab_size": len(tokenizer), **text},
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [0],
        },
    )  # fmt: skip
    pipe = assembled(
        diffusers.QwenImagePipeline,
        scheduler=euler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
        ),
        vae=seeded(
            lambda: diffusers.AutoencoderKLQwenImage(
                base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False],
                latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
            ),
            seed=0,
        ),
        text_encoder=seeded(lambda: transformers.Qwen2_5_VLForConditionalGeneration(config).eval(), seed=1),
        tokenizer=tokenizer,
        transformer=seeded(
            lambda: diffusers.QwenImageTransformer2DModel(
                in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
                joint_attention_dim=WIDTH, axes_dims_rope=(4, 6, 6),
            ),
            seed=2,
        ),
    )  # fmt: skip
    call = {**LENGTH_CALL, **SIZE, "true_cfg_scale": 4.0, "negative_prompt": " "}
    return Small(pipe, call, THREE_PROMPTS)
