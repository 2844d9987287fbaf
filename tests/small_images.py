"""Image pipelines of diffusers around small random weights, with the scheduler that their weights are published with.

Each takes the arguments that its published form takes; where a text encoder is large, a narrow one of its class.
"""

from collections.abc import Callable
from typing import Any

import diffusers
import transformers

import small_parts as parts
import small_token_images as tokens
from small_parts import GUIDED, LENGTH_CALL, SIZE, THREE_PROMPTS, WIDTH, assembled, euler, seeded
from supported import Small


def stable_diffusion_3() -> Small:
    clip, t5 = parts.clip_tokenizer(), parts.t5_tokenizer()
    pipe = assembled(
        diffusers.StableDiffusion3Pipeline,
        scheduler=euler(shift=3.0),
        vae=parts.autoencoder(0),
        text_encoder=parts.clip(clip, 1, projection=16, width=16),
        tokenizer=clip,
        text_encoder_2=parts.clip(clip, 2, projection=16, width=16),
        tokenizer_2=clip,
        text_encoder_3=parts.t5(t5, 3),
        tokenizer_3=t5,
        transformer=seeded(
            lambda: diffusers.SD3Transformer2DModel(
                sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8,
                num_attention_heads=2, joint_attention_dim=WIDTH, caption_projection_dim=16,
                pooled_projection_dim=32, pos_embed_max_size=16,
            ),
            seed=4,
        ),
    )  # fmt: skip
    return Small(pipe, {**LENGTH_CALL, **SIZE, **GUIDED}, THREE_PROMPTS)


def z_image() -> Small:
    tokenizer = parts.words_tokenizer()
    pipe = assembled(
        diffusers.ZImagePipeline,
        scheduler=euler(shift=3.0),
        vae=parts.autoencoder(0),
        text_encoder=parts.decoder(transformers.Qwen3Model, transformers.Qwen3Config, tokenizer, 1),
        tokenizer=tokenizer,
        transformer=seeded(
            lambda: diffusers.ZImageTransformer2DModel(
                in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=WIDTH,
                axes_dims=[4, 6, 6], axes_lens=[128, 32, 32],
            ),
            seed=2,
        ),
    )  # fmt: skip
    return Small(pipe, {**LENGTH_CALL, **SIZE, **GUIDED}, THREE_PROMPTS, notes=(parts.NEGATES,))


def cogview4() -> Small:
    tokenizer = parts.words_tokenizer()
    pipe = assembled(
        diffusers.CogView4Pipeline,
        scheduler=euler(
            use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75, base_image_seq_len=256, time_shift_type="linear"
        ),
        vae=parts.autoencoder(0),
        text_encoder=parts.decoder(transformers.GlmModel, transformers.GlmConfig, tokenizer, 1),
        tokenizer=tokenizer,
        transformer=seeded(
            lambda: diffusers.CogView4Transformer2DModel(
                in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
                text_embed_dim=WIDTH, time_embed_dim=8, condition_dim=4, sample_size=16, rope_axes_dim=(32, 32),
            ),
            seed=2,
        ),
    )  # fmt: skip
    return Small(pipe, {**LENGTH_CALL, **SIZE, **GUIDED}, THREE_PROMPTS)


def sana() -> Small:
    tokenizer = parts.words_tokenizer()
    blocks: dict[str, Any] = {
        "latent_channels": 4, "attention_head_dim": 4,
        "encoder_block_types": ("ResBlock", "EfficientViTBlock"), "encoder_block_out_channels": (8, 8),
        "decoder_block_types": ("ResBlock", "EfficientViTBlock"), "decoder_block_out_channels": (8, 8),
        "encoder_layers_per_block": (1, 1), "decoder_layers_per_block": (1, 1),
        "encoder_qkv_multiscales": ((), (5,)), "decoder_qkv_multiscales": ((), (5,)),
    }  # fmt: skip
    pipe = assembled(
        diffusers.SanaPipeline,
        scheduler=diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        vae=seeded(lambda: diffusers.AutoencoderDC(**blocks), seed=0),
        text_encoder=parts.decoder(transformers.Gemma2Model, transformers.Gemma2Config, tokenizer, 1),
        tokenizer=tokenizer,
        transformer=seeded(
            lambda: diffusers.SanaTransformer2DModel(
                in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=4,
                num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8,
                caption_channels=WIDTH, sample_size=16,
            ),
            seed=2,
        ),
    )  # fmt: skip
    own = {"use_resolution_binning": False, "complex_human_instruction": None}
    return Small(pipe, {**LENGTH_CALL, **SIZE, **GUIDED, **own}, THREE_PROMPTS)


def lumina2() -> Small:
    tokenizer = parts.words_tokenizer()
    pipe = assembled(
        diffusers.Lumina2Pipeline,
        scheduler=euler(shift=6.0),
        vae=parts.autoencoder(0, scales=3),
        text_encoder=parts.decoder(transformers.Gemma2Model, transformers.Gemma2Config, tokenizer, 1),
        tokenizer=tokenizer,
        transformer=seeded(
            lambda: diffusers.Lumina2Transformer2DModel(
                sample_size=8, in_channels=4, hidden_size=32, num_layers=1, num_refiner_layers=1,
                num_attention_heads=2, num_kv_heads=1, multiple_of=16, axes_dim_rope=(4, 6, 6),
                axes_lens=(128, 32, 32), cap_feat_dim=WIDTH,
            ),
            seed=2,
        ),
    )  # fmt: skip
    call = {**LENGTH_CALL, "height": 64, "width": 64, **GUIDED, "max_sequence_length": 64}
    return Small(pipe, call, THREE_PROMPTS, notes=(parts.NEGATES,))


def hidream() -> Small:
    clip, t5, words = parts.clip_tokenizer(), parts.t5_tokenizer(), parts.words_tokenizer()
    pipe = assembled(
        diffusers.HiDreamImagePipeline,
        scheduler=parts.unipc(),
        vae=parts.autoencoder(0),
        text_encoder=parts.clip(clip, 1, projection=16),
        tokenizer=clip,
        text_encoder_2=parts.clip(clip, 2, projection=16),
        tokenizer_2=clip,
        text_encoder_3=parts.t5(t5, 3),
        tokenizer_3=t5,
        text_encoder_4=parts.decoder(
            transformers.LlamaForCausalLM, transformers.LlamaConfig, words, 4, attn_implementation="eager"
        ),
        tokenizer_4=words,
        transformer=seeded(
            lambda: diffusers.HiDreamImageTransformer2DModel(
                patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
                num_attention_heads=2, caption_channels=[WIDTH, WIDTH], text_emb_dim=32, num_routed_experts=2,
                num_activated_experts=1, axes_dims_rope=(4, 6, 6), max_resolution=(32, 32), llama_layers=[0, 1],
            ).eval(),
            seed=5,
        ),
    )  # fmt: skip
    pipe.default_sample_size = 16  # it brings every call to the area of so many latents
    call = {**LENGTH_CALL, **SIZE, **GUIDED, "max_sequence_length": 64}
    return Small(pipe, call, THREE_PROMPTS, notes=(parts.NEGATES,))


def stable_diffusion_xl() -> Small:
    clip = parts.clip_tokenizer()
    pipe = assembled(
        diffusers.StableDiffusionXLPipeline,
        scheduler=diffusers.EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1,
            timestep_spacing="leading",
        ),
        vae=parts.autoencoder(0),
        text_encoder=parts.clip(clip, 1),
        tokenizer=clip,
        text_encoder_2=parts.clip(clip, 2, projection=32),
        tokenizer_2=clip,
        unet=parts.unet(
            3, cross_attention_dim=2 * WIDTH, addition_embed_type="text_time", addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=32 + 6 * 4, use_linear_projection=True,
        ),
    )  # fmt: skip
    return Small(pipe, {**SIZE, **GUIDED}, THREE_PROMPTS)


def stable_diffusion(scheduler: Any = None) -> Small:
    """Stable Diffusion 1.5, with DDIM unless another scheduler is given."""
    clip = parts.clip_tokenizer()
    pipe = assembled(
        diffusers.StableDiffusionPipeline,
        scheduler=scheduler or diffusers.DDIMScheduler(**parts.BETAS, steps_offset=1, clip_sample=False),
        vae=parts.autoencoder(0),
        text_encoder=parts.clip(clip, 1),
        tokenizer=clip,
        unet=parts.unet(2, cross_attention_dim=WIDTH),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return Small(pipe, {**SIZE, **GUIDED}, THREE_PROMPTS, notes=("published with PNDM, which is refused",))


def pixart_sigma() -> Small:
    tokenizer = parts.t5_tokenizer()
    pipe = assembled(
        diffusers.PixArtSigmaPipeline,
        scheduler=diffusers.DPMSolverMultistepScheduler(),
        vae=parts.autoencoder(0),
        text_encoder=parts.t5(tokenizer, 1),
        tokenizer=tokenizer,
        transformer=seeded(
            lambda: diffusers.PixArtTransformer2DModel(
                sample_size=16, num_layers=1, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
                in_channels=4, out_channels=8, caption_channels=WIDTH, use_additional_conditions=False,
            ),
            seed=2,
        ),
    )  # fmt: skip
    call = {**LENGTH_CALL, **SIZE, **GUIDED, "use_resolution_binning": False, "clean_caption": False}
    return Small(pipe, call, THREE_PROMPTS, refused={"output": "learned variance"})


def aura_flow() -> Small:
    tokenizer = parts.t5_tokenizer()
    pipe = assembled(
        diffusers.AuraFlowPipeline,
        scheduler=euler(shift=1.73),
        vae=parts.autoencoder(0),
        text_encoder=parts.umt5(tokenizer, 1),
        tokenizer=tokenizer,
        transformer=seeded(
            lambda: diffusers.AuraFlowTransformer2DModel(
                sample_size=16, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8,
                num_attention_heads=2, joint_attention_dim=WIDTH, caption_projection_dim=16, out_channels=4,
                pos_embed_max_size=64,
            ),
            seed=2,
        ),
    )  # fmt: skip
    return Small(pipe, {**LENGTH_CALL, **SIZE, **GUIDED}, THREE_PROMPTS)


BUILDERS: dict[str, Callable[[], Small]] = {
    "Stable Diffusion 1.5": stable_diffusion,
    "Stable Diffusion XL": stable_diffusion_xl,
    "Stable Diffusion 3": stable_diffusion_3,
    "PixArt-Σ": pixart_sigma,
    "AuraFlow": aura_flow,
    "FLUX.1": tokens.flux,
    "FLUX.1 Kontext": tokens.flux_kontext,
    "FLUX.1 Fill": tokens.flux_fill,
    "FLUX.1 image to image": tokens.flux_img2img,
    "FLUX.2": tokens.flux2,
    "FLUX.2 with an image": tokens.flux2_edit,
    "FLUX.2 Klein": tokens.flux2_klein,
    "Chroma": tokens.chroma,
    "Qwen-Image": tokens.qwen_image,
    "Z-Image": z_image,
    "CogView4": cogview4,
    "Sana": sana,
    "Lumina 2": lumina2,
    "HiDream": hidream,
}
