"""Real pipelines around small random weights: they prove plumbing, never quality."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    FluxPipeline,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

from ertacache_zoo import components

CALL: dict[str, Any] = {
    "height": 64,
    "width": 64,
    "num_inference_steps": 10,
    "max_sequence_length": components.MAX_SEQUENCE_LENGTH,
    "guidance_scale": 4.0,
}
#: Two branches: without a negative prompt the pipeline would silently run without guidance.
CFG_CALL: dict[str, Any] = {**CALL, "true_cfg_scale": 4.0, "negative_prompt": ""}

#: Wan makes two calls per step, CogVideoX one with both branches in the batch.
VIDEO_CALL: dict[str, Any] = {
    "height": 32,
    "width": 32,
    "num_frames": 9,
    "num_inference_steps": 10,
    "guidance_scale": 5.0,
    "max_sequence_length": components.MAX_SEQUENCE_LENGTH,
    "negative_prompt": "",
}

PROMPTS = [
    "a small red ring at the top left and a large cyan triangle at the top right on a grey dotted background",
    "a large green square at the top left and a small red cross at the bottom left on a dark striped background",
    "a small white circle at the top right and a small blue ring at the bottom left on a dark cloudy background",
    "a large purple diamond at the bottom right and a small red ring at the top left on a grey checked background",
]


def flux(guidance_embeds: bool = True, seed: int = 0) -> Any:
    """A FluxPipeline with random weights, output scaled so that trajectories bend as trained ones do."""
    t5, clip = components.t5_tokenizer(), components.clip_tokenizer()
    build = components.seeded
    pipe = FluxPipeline(
        scheduler=components.scheduler(),
        vae=build(components.autoencoder, seed=seed),
        text_encoder=build(components.clip_encoder, clip, seed=seed + 1),
        tokenizer=clip,
        text_encoder_2=build(components.t5_encoder, t5, seed=seed + 2),
        tokenizer_2=t5,
        transformer=build(components.transformer, guidance_embeds, seed=seed + 3),
    )
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        pipe.transformer.proj_out.weight.mul_(8)
    return pipe


def wan(seed: int = 0) -> Any:
    """A WanPipeline with random weights and its published solver, UniPC on flow sigmas."""
    build, tokenizer = components.seeded, components.t5_tokenizer()
    text: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4, "dropout_rate": 0.0}
    pipe = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=build(lambda: UMT5EncoderModel(UMT5Config(vocab_size=len(tokenizer), **text)), seed=seed),
        vae=build(
            lambda: AutoencoderKLWan(
                base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
                latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
            ),
            seed=seed + 1,
        ),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
        ),
        transformer=build(
            lambda: WanTransformer3DModel(
                patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
                text_dim=32, freq_dim=32, ffn_dim=48, num_layers=3, rope_max_seq_len=32,
            ),
            seed=seed + 2,
        ),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def cogvideox(seed: int = 0) -> Any:
    """A CogVideoXPipeline with random weights: guidance in one batched call, DDIM on v-prediction."""
    build, tokenizer = components.seeded, components.t5_tokenizer()
    text: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4, "dropout_rate": 0.0}
    pipe = CogVideoXPipeline(
        tokenizer=tokenizer,
        text_encoder=build(lambda: T5EncoderModel(T5Config(vocab_size=len(tokenizer), **text)), seed=seed),
        vae=build(
            lambda: AutoencoderKLCogVideoX(
                down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
                block_out_channels=(8,) * 4, latent_channels=4, layers_per_block=1, norm_num_groups=2,
            ),
            seed=seed + 1,
        ),
        scheduler=CogVideoXDDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
            rescale_betas_zero_snr=True, set_alpha_to_one=True, timestep_spacing="trailing", snr_shift_scale=3.0,
            clip_sample=False,
        ),
        transformer=build(
            lambda: CogVideoXTransformer3DModel(
                num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=16,
                text_embed_dim=32, num_layers=3, sample_width=4, sample_height=4, sample_frames=9, patch_size=2,
                max_text_seq_length=components.MAX_SEQUENCE_LENGTH,
            ),
            seed=seed + 2,
        ),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: Any, prompts: list[str], call: dict[str, Any], seed: int = 0, **more: Any) -> torch.Tensor:
    """Images [B, 3, 64, 64], prompt n from the noise of seed + n."""
    generators = [torch.Generator().manual_seed(seed + n) for n in range(len(prompts))]
    arguments = {**call, **more}
    if "negative_prompt" in arguments:
        arguments["negative_prompt"] = [arguments["negative_prompt"]] * len(prompts)
    return pipe(prompt=prompts, generator=generators, **{"output_type": "pt", **arguments})[0]
