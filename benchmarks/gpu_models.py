"""The published models that are measured: one row each.

Another model is another row of `MODELS`: its published configuration, a small one for tests, and what its pipeline
needs beside the denoiser.
"""

import zlib
from collections.abc import Callable
from typing import Any

import torch
from gpu_build import Model, Size
from torch import Tensor


def _texts(prompt: Any, *shape: int) -> Tensor:
    """[B, *shape] float32: what an encoder could have made of texts, equal for equal texts."""
    texts = [prompt] if isinstance(prompt, str) else list(prompt)
    seeds = [zlib.crc32(text.encode()) for text in texts]
    made = [torch.randn(*shape, generator=torch.Generator().manual_seed(seed), device="cpu") for seed in seeds]
    return torch.stack(made).float()


def _encode_flux(size: Size, dtype: torch.dtype) -> Callable[..., Any]:
    def encode(prompt: Any, *args: Any, device: Any = None, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
        words = _texts(prompt, size.tokens, size.config["joint_attention_dim"])
        pooled = _texts(prompt, size.config["pooled_projection_dim"])
        ids = torch.zeros(size.tokens, 3)
        words, pooled, ids = (made.to(device, dtype) for made in (words, pooled, ids))
        return words, pooled, ids

    return encode


def _encode_branches(width: str) -> Callable[[Size, torch.dtype], Callable[..., Any]]:
    """Of pipelines whose `encode_prompt` gives the embeddings of the prompt and of the negative one."""

    def for_size(size: Size, dtype: torch.dtype) -> Callable[..., Any]:
        def encode(
            prompt: Any, negative_prompt: Any = None, *args: Any, device: Any = None, **kwargs: Any
        ) -> tuple[Tensor, Tensor]:
            count = 1 if isinstance(prompt, str) else len(prompt)
            shape = (size.tokens, size.config[width])
            both = (_texts(prompt, *shape), _texts(negative_prompt or [""] * count, *shape))
            return both[0].to(device, dtype), both[1].to(device, dtype)

        return encode

    return for_size


def _encode_open_sora(size: Size, dtype: torch.dtype) -> Callable[..., Any]:
    def encode(prompt: Any, *args: Any, device: Any = None, **kwargs: Any) -> tuple[Tensor, Tensor]:
        words = _texts(prompt, size.tokens, size.config["caption_channels"]).to(device, dtype)
        return words, torch.ones(words.shape[:2], dtype=torch.long, device=device)

    return encode


def _flux_scheduler() -> Any:
    import diffusers

    return diffusers.FlowMatchEulerDiscreteScheduler(
        shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256,
        max_image_seq_len=4096,
    )  # fmt: skip


def _flux_vae() -> Any:
    import diffusers

    build: Any = diffusers.AutoencoderKL  # its annotations allow for one block only
    blocks: dict[str, Any] = {
        "block_out_channels": (8,) * 4, "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4, "latent_channels": 16, "norm_num_groups": 2,
        "scaling_factor": 0.3611, "shift_factor": 0.1159, "mid_block_add_attention": False, "use_quant_conv": False,
        "use_post_quant_conv": False,
    }  # fmt: skip
    return build(**blocks)


def _wan_scheduler() -> Any:
    import diffusers

    return diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
    )


def _wan_vae() -> Any:
    import diffusers

    return diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )


def _cogvideox_scheduler() -> Any:
    import diffusers

    return diffusers.CogVideoXDDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
        rescale_betas_zero_snr=True, set_alpha_to_one=True, timestep_spacing="trailing", snr_shift_scale=3.0,
        clip_sample=False,
    )  # fmt: skip


def _cogvideox_vae() -> Any:
    import diffusers

    build: Any = diffusers.AutoencoderKLCogVideoX  # annotated likewise
    return build(
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8,) * 4, latent_channels=16, layers_per_block=1, norm_num_groups=2,
    )  # fmt: skip


def _open_sora_scheduler() -> Any:
    import diffusers

    return diffusers.FlowMatchEulerDiscreteScheduler()


def _open_sora_vae() -> Any:
    from ertacache.opensora import AutoencoderKLOpenSora

    return AutoencoderKLOpenSora(
        block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=2, temporal_filters=8, temporal_res_blocks=1,
        temporal_norm_num_groups=2,
    )  # fmt: skip


_TINY_CLIP: dict[str, Any] = {"height": 32, "width": 32, "num_frames": 9, "num_inference_steps": 12}

FLUX = Model(
    name="FLUX.1-dev",
    pipeline="FluxPipeline",
    denoiser="FluxTransformer2DModel",
    full=Size(
        config={
            "patch_size": 1, "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128,
            "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768,
            "guidance_embeds": True,
        },
        call={"height": 1024, "width": 1024, "num_inference_steps": 28, "guidance_scale": 3.5},
        tokens=512, activations=4 * 2**30, step_seconds=0.22,
    ),
    tiny=Size(
        config={
            "patch_size": 1, "in_channels": 64, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16,
            "num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": 32, "guidance_embeds": True,
            "axes_dims_rope": (4, 6, 6),
        },
        call={"height": 64, "width": 64, "num_inference_steps": 12, "guidance_scale": 3.5},
        tokens=8,
    ),
    layers=("num_layers", "num_single_layers"),
    contexts=("cond",),
    scheduler=_flux_scheduler,
    vae=_flux_vae,
    encode=_encode_flux,
    empty=("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
)  # fmt: skip
WAN = Model(
    name="Wan2.1-T2V-1.3B",
    pipeline="WanPipeline",
    denoiser="WanTransformer3DModel",
    full=Size(
        config={
            "patch_size": (1, 2, 2), "num_attention_heads": 12, "attention_head_dim": 128, "in_channels": 16,
            "out_channels": 16, "text_dim": 4096, "freq_dim": 256, "ffn_dim": 8960, "num_layers": 30,
        },
        call={"height": 480, "width": 832, "num_frames": 81, "num_inference_steps": 50, "guidance_scale": 5.0},
        tokens=512, activations=6 * 2**30, step_seconds=1.5,
    ),
    tiny=Size(
        config={
            "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 16,
            "out_channels": 16, "text_dim": 32, "freq_dim": 32, "ffn_dim": 48, "num_layers": 3, "rope_max_seq_len": 32,
        },
        call={**_TINY_CLIP, "guidance_scale": 5.0},
        tokens=8,
    ),
    layers=("num_layers",),
    contexts=("cond", "uncond"),
    scheduler=_wan_scheduler,
    vae=_wan_vae,
    encode=_encode_branches("text_dim"),
)  # fmt: skip
COGVIDEOX = Model(
    name="CogVideoX-2B",
    pipeline="CogVideoXPipeline",
    denoiser="CogVideoXTransformer3DModel",
    full=Size(
        config={
            "num_attention_heads": 30, "attention_head_dim": 64, "in_channels": 16, "out_channels": 16,
            "time_embed_dim": 512, "text_embed_dim": 4096, "num_layers": 30, "sample_width": 90, "sample_height": 60,
            "sample_frames": 49, "max_text_seq_length": 226,
        },
        call={"height": 480, "width": 720, "num_frames": 49, "num_inference_steps": 50, "guidance_scale": 6.0},
        tokens=226, activations=6 * 2**30, step_seconds=1.0,
    ),
    tiny=Size(
        config={
            "num_attention_heads": 4, "attention_head_dim": 8, "in_channels": 16, "out_channels": 16,
            "time_embed_dim": 16, "text_embed_dim": 32, "num_layers": 3, "sample_width": 4, "sample_height": 4,
            "sample_frames": 9, "max_text_seq_length": 8,
        },
        call={**_TINY_CLIP, "guidance_scale": 6.0},
        tokens=8,
    ),
    layers=("num_layers",),
    contexts=("cond_uncond",),
    scheduler=_cogvideox_scheduler,
    vae=_cogvideox_vae,
    encode=_encode_branches("text_embed_dim"),
)  # fmt: skip
OPEN_SORA = Model(
    name="Open-Sora 1.2",
    pipeline="OpenSoraPipeline",
    denoiser="STDiT3Transformer3DModel",
    full=Size(
        config={
            "caption_channels": 4096, "depth": 28, "hidden_size": 1152, "num_heads": 16, "in_channels": 4,
            "model_max_length": 300,
        },
        call={"height": 480, "width": 854, "num_frames": 51, "num_inference_steps": 30, "guidance_scale": 7.0},
        tokens=300, activations=3 * 2**30, step_seconds=0.8,
    ),
    tiny=Size(
        config={
            "caption_channels": 32, "depth": 2, "hidden_size": 48, "num_heads": 2, "in_channels": 4,
            "model_max_length": 8,
        },
        call={**_TINY_CLIP, "guidance_scale": 7.0},
        tokens=8,
    ),
    layers=("depth",),
    contexts=("cond_uncond",),
    scheduler=_open_sora_scheduler,
    vae=_open_sora_vae,
    encode=_encode_open_sora,
)  # fmt: skip
MODELS = (FLUX, WAN, COGVIDEOX, OPEN_SORA)
