"""Video pipelines of diffusers around small random weights, with the scheduler of their published weights."""

import warnings
from collections.abc import Callable
from typing import Any

import diffusers
import transformers

import small_ltx_videos as ltx
import small_parts as parts
import small_wan_videos as wan
from ertacache_zoo import components
from pipelines import cogvideox
from small_parts import GUIDED, LENGTH_CALL, SIZE, THREE_PROMPTS, WIDTH, assembled, euler, seeded
from small_wan_videos import FRAMES, LATE_START, clip, picture
from supported import Small

#: Of the pipelines that decode to 16 × 16 pixels or to 32 × 32, for 2 to 4 tokens a side.
_CALL: dict[str, Any] = {**LENGTH_CALL, "height": 16, "width": 16, "num_frames": FRAMES}


def hunyuan_video() -> Small:
    words, clip_tokenizer = parts.words_tokenizer(), parts.clip_tokenizer()
    pipe = assembled(
        diffusers.HunyuanVideoPipeline,
        scheduler=euler(shift=7.0),
        vae=seeded(
            lambda: diffusers.AutoencoderKLHunyuanVideo(
                latent_channels=4, block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=4,
                down_block_types=("HunyuanVideoDownBlock3D",) * 4, up_block_types=("HunyuanVideoUpBlock3D",) * 4,
            ),
            seed=0,
        ),
        # The pipeline takes the third hidden state from the end.
        text_encoder=parts.decoder(
            transformers.LlamaModel, transformers.LlamaConfig, words, 1, num_hidden_layers=3
        ),
        tokenizer=words,
        text_encoder_2=parts.clip(clip_tokenizer, 2),
        tokenizer_2=clip_tokenizer,
        transformer=seeded(
            lambda: diffusers.HunyuanVideoTransformer3DModel(
                in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1,
                num_single_layers=1, num_refiner_layers=1, patch_size=1, text_embed_dim=WIDTH,
                pooled_projection_dim=WIDTH, rope_axes_dim=(2, 4, 4),
            ),
            seed=3,
        ),
    )  # fmt: skip
    template = {"template": "{}", "crop_start": 0}
    return Small(pipe, {**_CALL, "guidance_scale": 6.0, "prompt_template": template}, THREE_PROMPTS)


def hunyuan_video_15() -> Small:
    words = parts.words_tokenizer()
    pipe = assembled(
        diffusers.HunyuanVideo15Pipeline,
        scheduler=euler(shift=7.0),
        vae=seeded(
            lambda: diffusers.AutoencoderKLHunyuanVideo15(
                latent_channels=4, block_out_channels=(16, 16), layers_per_block=1, spatial_compression_ratio=4,
                temporal_compression_ratio=2, downsample_match_channel=False, upsample_match_channel=False,
            ),
            seed=0,
        ),
        text_encoder=parts.decoder(
            transformers.Qwen2_5_VLTextModel, transformers.Qwen2_5_VLTextConfig, words, 1, num_hidden_layers=3,
            rope_parameters={"mrope_section": [2, 3, 3], "rope_type": "default", "rope_theta": 1e6},
        ),
        tokenizer=words,
        text_encoder_2=parts.t5(transformers.ByT5Tokenizer(), 2),
        tokenizer_2=transformers.ByT5Tokenizer(),
        guider=diffusers.ClassifierFreeGuidance(guidance_scale=6.0),
        transformer=seeded(
            lambda: diffusers.HunyuanVideo15Transformer3DModel(
                in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1,
                num_refiner_layers=1, mlp_ratio=2.0, patch_size=1, text_embed_dim=WIDTH, text_embed_2_dim=WIDTH,
                image_embed_dim=12, rope_axes_dim=(2, 2, 4), target_size=16,
            ),
            seed=3,
        ),
    )  # fmt: skip
    # Of the published tokenizer's template and lengths.
    pipe.prompt_template_encode_start_idx, pipe.tokenizer_max_length, pipe.tokenizer_2_max_length = 0, parts.LENGTH, 8
    pipe.vision_num_semantic_tokens = 4  # of an image, which text to video leaves empty
    call = {"num_inference_steps": 8, "height": 16, "width": 16, "num_frames": FRAMES, "negative_prompt": ""}
    return Small(pipe, call, THREE_PROMPTS, notes=("guidance by the pipeline's guider",))


def _zeroed(model: Any) -> Any:
    """Mochi's positions are weights that start without values."""
    model.pos_frequencies.data.zero_()
    return model


def mochi() -> Small:
    tokenizer = parts.t5_tokenizer()
    pipe = assembled(
        diffusers.MochiPipeline,
        scheduler=euler(invert_sigmas=True),
        vae=seeded(
            lambda: diffusers.AutoencoderKLMochi(
                latent_channels=12, encoder_block_out_channels=(32,) * 4, decoder_block_out_channels=(32,) * 4,
                layers_per_block=(1,) * 5,
            ),
            seed=0,
        ),
        text_encoder=parts.t5(tokenizer, 1),
        tokenizer=tokenizer,
        transformer=seeded(
            lambda: _zeroed(
                diffusers.MochiTransformer3DModel(
                    num_attention_heads=2, attention_head_dim=8, num_layers=2, pooled_projection_dim=16,
                    in_channels=12, text_embed_dim=WIDTH, time_embed_dim=4, max_sequence_length=parts.LENGTH,
                )
            ),
            seed=2,
        ),
    )  # fmt: skip
    call = {**_CALL, **GUIDED, "num_frames": 7}
    return Small(pipe, call, THREE_PROMPTS, warns="In CPU autocast")


_NUMPY = "__array__"  # NumPy warns of diffusers' use of it


def _euler_ancestral() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", _NUMPY, DeprecationWarning)
        return diffusers.EulerAncestralDiscreteScheduler(**parts.BETAS, timestep_spacing="linspace")


def allegro() -> Small:
    tokenizer = parts.t5_tokenizer()
    vae = seeded(
        lambda: diffusers.AutoencoderKLAllegro(
            down_block_types=("AllegroDownBlock3D",) * 4, up_block_types=("AllegroUpBlock3D",) * 4,
            block_out_channels=(8,) * 4, latent_channels=4, layers_per_block=1, norm_num_groups=2,
        ),
        seed=0,
    )  # fmt: skip
    vae.enable_tiling()  # it decodes in no other way
    pipe = assembled(
        diffusers.AllegroPipeline,
        scheduler=_euler_ancestral(),
        vae=vae,
        text_encoder=parts.t5(tokenizer, 1),
        tokenizer=tokenizer,
        transformer=seeded(
            lambda: diffusers.AllegroTransformer3DModel(
                num_attention_heads=2, attention_head_dim=12, num_layers=1, cross_attention_dim=24, sample_width=8,
                sample_height=8, sample_frames=8, caption_channels=WIDTH,
            ),
            seed=2,
        ),
    )  # fmt: skip
    call = {**_CALL, **GUIDED, "num_frames": 8, "clean_caption": False}
    return Small(pipe, call, THREE_PROMPTS, notes=("noise of the solver from the generator",), warns=_NUMPY)


def _cogvideox(pipeline: Any, in_channels: int = 4) -> Any:
    text_to_video = cogvideox()
    return assembled(
        pipeline,
        **{
            **text_to_video.components,
            "transformer": seeded(
                lambda: diffusers.CogVideoXTransformer3DModel.from_config(
                    {**text_to_video.transformer.config, "in_channels": in_channels, "num_layers": 1}
                ),
                seed=2,
            ),
        },
    )


_COGVIDEOX_CALL = {"num_inference_steps": 8, **SIZE, **GUIDED, "max_sequence_length": components.MAX_SEQUENCE_LENGTH}


def cogvideox_image_to_video() -> Small:
    pipe = _cogvideox(diffusers.CogVideoXImageToVideoPipeline, in_channels=8)
    call = {**_COGVIDEOX_CALL, "num_frames": 9}
    return Small(pipe, call, THREE_PROMPTS, {"image": picture(32)})


def cogvideox_video_to_video() -> Small:
    pipe = _cogvideox(diffusers.CogVideoXVideoToVideoPipeline)
    call = {**_COGVIDEOX_CALL, "strength": 1.0}
    return Small(pipe, call, THREE_PROMPTS, {"video": clip(32, 9)}, notes=(LATE_START,))


BUILDERS: dict[str, Callable[[], Small]] = {
    "HunyuanVideo": hunyuan_video,
    "HunyuanVideo 1.5": hunyuan_video_15,
    "LTX-Video": ltx.ltx_video,
    "LTX-2": ltx.ltx_2,
    "Mochi": mochi,
    "Allegro": allegro,
    "CogVideoX image to video": cogvideox_image_to_video,
    "CogVideoX video to video": cogvideox_video_to_video,
    "Wan image to video": wan.image_to_video,
    "Wan2.2 5B image to video": wan.image_to_video_5b,
    "Wan VACE": wan.vace,
    "Wan video to video": wan.video_to_video,
    "SkyReels V2": wan.skyreels,
    "SkyReels V2 diffusion forcing": wan.skyreels_diffusion_forcing,
}
