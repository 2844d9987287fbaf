"""LTX-Video and LTX-2 around small random weights."""

from typing import Any

import diffusers
import transformers

import small_parts as parts
from small_parts import GUIDED, LENGTH_CALL, SIZE, THREE_PROMPTS, WIDTH, assembled, euler, seeded
from small_wan_videos import FRAMES
from supported import Small

_CALL: dict[str, Any] = {**LENGTH_CALL, **SIZE, **GUIDED}


def ltx_video() -> Small:
    tokenizer = parts.t5_tokenizer()
    pipe = assembled(
        diffusers.LTXPipeline,
        scheduler=euler(
            use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024,
            max_image_seq_len=4096, shift_terminal=0.1,
        ),
        vae=seeded(
            lambda: diffusers.AutoencoderKLLTXVideo(
                latent_channels=8, block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4,
                layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 5,
                spatio_temporal_scaling=(True, True, False, False),
                decoder_spatio_temporal_scaling=(True, True, False, False), patch_size=1,
            ),
            seed=0,
        ),
        text_encoder=parts.t5(tokenizer, 1),
        tokenizer=tokenizer,
        transformer=seeded(
            lambda: diffusers.LTXVideoTransformer3DModel(
                in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
                num_layers=1, caption_channels=WIDTH,
            ),
            seed=2,
        ),
    )  # fmt: skip
    return Small(pipe, {**_CALL, "num_frames": 9}, THREE_PROMPTS)


def ltx_2() -> Small:
    tokenizer = parts.words_tokenizer()
    text = {**parts.DECODER, "vocab_size": len(tokenizer), "layer_types": ["full_attention"] * 2}
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    heads: dict[str, Any] = {
        f"{stream}_connector_{name}": value
        for stream in ("video", "audio")
        for name, value in {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1,
                            "num_learnable_registers": None}.items()
    }  # fmt: skip
    audio_vae = diffusers.AutoencoderKLLTX2Audio(
        base_channels=4,
        ch_mult=(1,),
        num_res_blocks=1,
        attn_resolutions=None,
        resolution=32,
        latent_channels=2,
        mel_bins=8,
    )
    pipe = assembled(
        diffusers.LTX2Pipeline,
        scheduler=euler(),
        vae=seeded(
            lambda: diffusers.AutoencoderKLLTX2Video(
                latent_channels=4, block_out_channels=(8,), decoder_block_out_channels=(8,), layers_per_block=(1,),
                decoder_layers_per_block=(1, 1), spatio_temporal_scaling=(True,),
                decoder_spatio_temporal_scaling=(True,), decoder_inject_noise=(False, False),
                downsample_type=("spatial",), upsample_residual=(False,), upsample_factor=(1,), patch_size=1,
            ),
            seed=0,
        ),
        audio_vae=audio_vae,
        text_encoder=seeded(
            lambda: transformers.Gemma3ForConditionalGeneration(
                transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
            ).eval(),
            seed=1,
        ),
        tokenizer=tokenizer,
        connectors=seeded(
            lambda: diffusers.pipelines.ltx2.LTX2TextConnectors(
                caption_channels=WIDTH, text_proj_in_factor=3, connector_rope_base_seq_len=32, rope_type="split",
                rope_double_precision=False, **heads,
            ),
            seed=2,
        ),
        transformer=seeded(
            lambda: diffusers.LTX2VideoTransformer3DModel(
                in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
                audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=4,
                audio_cross_attention_dim=8, num_layers=2, caption_channels=WIDTH, rope_type="split",
                rope_double_precision=False,
            ),
            seed=3,
        ),
        vocoder=diffusers.pipelines.ltx2.LTX2Vocoder(in_channels=16, hidden_channels=8, out_channels=2,
            upsample_kernel_sizes=[4, 4], upsample_factors=[2, 2], resnet_kernel_sizes=[3],
            resnet_dilations=[[1, 3, 5]],
        ),
    )  # fmt: skip
    own = {
        "num_frames": FRAMES,
        "frame_rate": 25.0,
        "stg_scale": 0.0,
        "audio_stg_scale": 0.0,
        "spatio_temporal_guidance_blocks": None,
    }
    reason = "LTX2VideoTransformer3DModel returns several tensors, of which only the first is predicted"
    return Small(pipe, {**_CALL, **own}, THREE_PROMPTS, refused={"output": reason, "guided": reason})
