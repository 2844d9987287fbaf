"""A small CogVideoX text-to-video model: its parts, the real diffusers classes only narrower, and their training."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel

from ertacache_zoo import clip_text, clips, components, motion, video
from ertacache_zoo.training import Recipe, train
from ertacache_zoo.video import CAPTION_DROPOUT, LATENT_CHANNELS, TEXT_WIDTH

STILLS = Recipe(iterations=1000, batch_size=64, learning_rate=1e-3, seed=71)
AUTOENCODER = Recipe(iterations=2000, batch_size=8, learning_rate=1.5e-3, seed=72)
MOTION = Recipe(iterations=1750, batch_size=8, learning_rate=1.5e-3, warmup=50, seed=73)
TRANSFORMER = Recipe(
    iterations=11000, batch_size=32, learning_rate=1.5e-3, warmup=200, ema=0.999, weight_decay=0.01, seed=81
)
LATENT_SIDE = clips.CLIP_SIZE // 4
#: No call of up to a hundred steps ends at a lower timestep.
LAST_TIMESTEP = 9
#: What the pipeline has to be called with.
CALL = video.call(
    num_inference_steps=50,
    guidance_scale=6.0,
    negative_prompt="",
    max_sequence_length=clip_text.MAX_SEQUENCE_LENGTH,
)


def autoencoder() -> AutoencoderKLCogVideoX:
    """9×48×48 pixels to 3×12×12 latents of eight channels."""
    build: Any = AutoencoderKLCogVideoX  # its annotations allow for one block only
    return build(
        block_out_channels=(16, 32, 48),
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        temporal_compression_ratio=4,
        sample_height=clips.CLIP_SIZE,
        sample_width=clips.CLIP_SIZE,
        scaling_factor=1.0,
    )


def frame_by_frame(vae: nn.Module) -> None:
    """Move the weights of every convolution over time to the present frame.

    A convolution repeats the first frame before the start of a clip, so on stills its output stays the same; and what
    was learned from stills now holds for each frame of a clip, however it moves.
    """
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, nn.Conv3d) and module.kernel_size[0] > 1:
                module.weight[:, :, -1] = module.weight.sum(2)
                module.weight[:, :, :-1] = 0


def transformer() -> CogVideoXTransformer3DModel:
    """8 blocks, 2.4M parameters, 108 latent tokens for 9 frames of 48×48 pixels and 24 of text."""
    model = CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        time_embed_dim=64,
        text_embed_dim=TEXT_WIDTH,
        num_layers=8,
        sample_width=LATENT_SIDE,
        sample_height=LATENT_SIDE,
        sample_frames=clips.FRAMES,
        patch_size=2,
        max_text_seq_length=clip_text.MAX_SEQUENCE_LENGTH,
        spatial_interpolation_scale=1.0,
        # As the image-to-video model of 5B has both: the latter holds the sines and cosines of the place, untrained.
        use_rotary_positional_embeddings=True,
        use_learned_positional_embeddings=True,
    )
    # Every block starts as the identity, which trains faster and more steadily (adaLN-Zero, arXiv 2212.09748).
    for name, module in model.transformer_blocks.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(("norm1.linear", "norm2.linear")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return model


def scheduler() -> CogVideoXDDIMScheduler:
    """The solver of CogVideoX-2B: DDIM on v-prediction, no signal at the first step."""
    return CogVideoXDDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        snr_shift_scale=3.0,
        clip_sample=False,
    )


def text_encoder(tokenizer: Any) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(tokenizer), d_model=TEXT_WIDTH, d_kv=24, d_ff=256, num_layers=2, num_heads=4, dropout_rate=0.0
    )
    return T5EncoderModel(config)


def scaled(latents: Tensor) -> tuple[Tensor, float]:
    """Latents [N, 8, 3, 12, 12] as the transformer takes them, [N, 3, 8, 12, 12], and the factor that scaled them.

    The pipeline knows one factor for all channels and no shift. So the factor brings the variance about the means of
    the channels to 1, and the means themselves, which are the same in every clip, stay.
    """
    factor = 1 / latents.var((0, 2, 3, 4)).mean().sqrt().item()
    return (latents * factor).transpose(1, 2).contiguous(), factor


def timestep_weights(levels: Tensor) -> Tensor:
    """How often training draws each timestep, from the solver's `levels` (cumulative alphas) [1000].

    In proportion to the angle by which the solver turns there, atan2(sqrt(1 - alpha), sqrt(alpha)): with v-prediction
    an error counts as much as the turn (arXiv 2202.00512, appendix D). Half of all timesteps are next to pure noise,
    and together make a fifth of the way.
    """
    angle = torch.atan2((1 - levels).sqrt(), levels.sqrt())
    weights = angle.diff(prepend=angle[:1])
    weights[:LAST_TIMESTEP] = 0
    return weights


def rotary_embedding(pipe: CogVideoXPipeline) -> tuple[Tensor, Tensor]:
    """The rotary position embedding that the pipeline hands to its transformer: cosines and sines, [108, 32] each."""
    return pipe._prepare_rotary_positional_embeddings(  # pyright: ignore[reportPrivateUsage]
        clips.CLIP_SIZE, clips.CLIP_SIZE, (clips.FRAMES - 1) // 4 + 1, torch.device("cpu")
    )


def train_transformer(
    model: CogVideoXTransformer3DModel,
    latents: Tensor,
    text: Tensor,
    rotary: tuple[Tensor, Tensor],
    folder: Path,
    recipe: Recipe,
    compiled: bool,
) -> None:
    """Train `model` in place on v-prediction with caption dropout, and freeze it.

    The noise levels are those of the solver's own thousand timesteps, as often as `timestep_weights` says.

    Args:
        latents: scaled, [N, 3, 8, 12, 12].
        text: embeddings of their captions and, last, of the empty one, [N + 1, 24, 96].
        rotary: what `rotary_embedding` gives.
    """
    call, levels = video.compiled_call(model, compiled)[0], scheduler()
    weights = timestep_weights(levels.alphas_cumprod)

    def loss(generator: torch.Generator) -> Tensor:
        size = recipe.batch_size
        index = torch.randint(len(latents), (size,), generator=generator)
        timestep = torch.multinomial(weights, size, replacement=True, generator=generator)
        clean = latents[index]
        noise = torch.randn(clean.shape, generator=generator)
        dropped = torch.rand(size, generator=generator) < CAPTION_DROPOUT
        captions = text[index.masked_fill(dropped, len(text) - 1)]
        noisy = levels.add_noise(clean, noise, timestep)  # pyright: ignore[reportArgumentType]
        predicted = call(
            hidden_states=noisy,
            encoder_hidden_states=captions,
            timestep=timestep,
            image_rotary_emb=rotary,
            return_dict=False,
        )[0]
        velocity = levels.get_velocity(clean, noise, timestep)  # pyright: ignore[reportArgumentType]
        return (predicted - velocity).pow(2).mean()

    train("transformer", model, loss, recipe, folder)
    model.eval().requires_grad_(False)


def train_model(work: Path, out: Path, compiled: bool) -> Path:
    """Train what is not trained yet under `work`, and write the model folder `out`."""
    run, drawn = work / "run", video.pool()
    vae: Any = components.seeded(autoencoder, seed=STILLS.seed)
    pixels = video.autoencoder_pixels(drawn)
    video.train_on_stills(vae, pixels, run, STILLS)
    frame_by_frame(vae)
    video.train_autoencoder(vae, pixels, run, AUTOENCODER)
    motion.train_on_motion(vae, pixels, run, MOTION)
    psnr = video.reconstruction(vae)
    latents, factor = scaled(video.pool_latents(vae, drawn, work))
    vae.register_to_config(scaling_factor=factor)
    tokenizer, encoder = clip_text.pretrained(text_encoder, drawn, run, masked=False)
    model = components.seeded(transformer, seed=TRANSFORMER.seed)
    pipe = CogVideoXPipeline(
        tokenizer=tokenizer, text_encoder=encoder, vae=vae, scheduler=scheduler(), transformer=model
    )
    text = video.text_embeddings(pipe, [clip.caption for clip in drawn], clip_text.MAX_SEQUENCE_LENGTH)
    train_transformer(model, latents, text, rotary_embedding(pipe), run, TRANSFORMER, compiled)
    recipes = video.stages(STILLS, AUTOENCODER, MOTION, TRANSFORMER)
    return video.export(
        "tiny-cogvideox", "guidance in one batched call", pipe, CALL, out, run, recipes, psnr, len(drawn)
    )
