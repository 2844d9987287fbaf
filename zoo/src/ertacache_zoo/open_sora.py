"""A small Open-Sora text-to-video model: its parts, the real classes only narrower, and their training."""

from pathlib import Path
from typing import Any, cast

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ertacache.opensora import AutoencoderKLOpenSora, OpenSoraPipeline, STDiT3Transformer3DModel
from ertacache.opensora.attention import STDiT3AttnProcessor
from ertacache.opensora.causal_convolution import CausalConv3d
from ertacache_zoo import clip_text, clips, components, motion, shape_map, video
from ertacache_zoo.product_attention import ProductAttention
from ertacache_zoo.training import Recipe, train
from ertacache_zoo.video import CAPTION_DROPOUT, LATENT_CHANNELS, TEXT_WIDTH

STILLS = Recipe(iterations=1200, batch_size=64, learning_rate=2e-3, seed=91)
TEMPORAL = Recipe(iterations=1450, batch_size=16, learning_rate=2e-3, ema=0.99, seed=94, save_every=100)
MOTION = Recipe(iterations=600, batch_size=8, learning_rate=3e-4, warmup=50, seed=93)
TRANSFORMER = Recipe(
    iterations=6400, batch_size=32, learning_rate=2e-3, warmup=200, ema=0.999, weight_decay=0.01, seed=101, muon=True
)
#: Of the pool: half of it, as encoding all of it would take a tenth of the whole training.
CLIPS = 8_000
#: Noise levels are drawn logit-normal, this wide, and shifted like this towards noise, where a caption is decided.
TRAINING_WIDTH, TRAINING_SHIFT = 1.3, 3.0
#: How much it counts to know the shape that is drawn at a place, and which mover that is, in nats.
SHAPE_LOSS = 0.1
FPS = 24.0
#: What the pipeline has to be called with.
CALL = video.call(num_inference_steps=30, guidance_scale=7.0, fps=FPS, aesthetic_score=None, clean_caption=False)
#: Clips that are encoded at once.
_CLIPS = 10
#: How much more an error counts where the latents of single frames have a deviation of 1 over time.
_EMPHASIS = 2.0


def autoencoder() -> AutoencoderKLOpenSora:
    """9×48×48 pixels to 3×12×12 latents of eight channels, in one chunk.

    Each convolution over time starts with weights for the present frame alone, and each one that doubles the number of
    frames by repeating them: so a frame is first treated as a still, but for the norms, which see all frames.
    """
    vae = AutoencoderKLOpenSora(
        latent_channels=LATENT_CHANNELS,
        block_out_channels=(16, 32, 48),
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=clips.CLIP_SIZE,
        temporal_filters=32,
        temporal_multipliers=(1, 1, 2),
        temporal_res_blocks=1,
        temporal_norm_num_groups=4,
        time_downsample=(True, True),
        micro_batch_size=clips.FRAMES,
        latents_mean=(0.0,) * LATENT_CHANNELS,
        latents_std=(1.0,) * LATENT_CHANNELS,
    )
    decoder = vae.temporal_vae.decoder
    with torch.no_grad():
        for module in vae.temporal_vae.modules():
            if isinstance(module, CausalConv3d):
                module.conv.weight[:, :, :-1] = 0
        for module in decoder.conv_blocks.children():
            if isinstance(module, CausalConv3d):
                for parameter in module.conv.parameters():  # neighbouring channels are neighbouring frames
                    parameter[1::2] = parameter[::2]
    return vae


def train_spatial(vae: Any, pixels: Tensor, folder: Path, recipe: Recipe) -> None:
    """Train the spatial half of `vae` in place on crops of single frames.

    As the published one was trained on images, before there was a temporal half.

    Args:
        pixels: uint8 [N, 9, 3, 48, 48].
    """
    spatial = vae.spatial_vae.module

    def loss(generator: torch.Generator) -> Tensor:
        return video.reconstruction_loss(
            spatial, video.stills(pixels, recipe.batch_size, generator).squeeze(2), generator
        )

    train("stills", spatial, loss, recipe, folder)


def train_temporal(vae: Any, pixels: Tensor, folder: Path, recipe: Recipe) -> None:
    """Train the temporal half of `vae` in place on what the spatial one, as it is, makes of whole clips; freeze both.

    As the published one was. A clip costs a fifth of what it does through pixels, and in bfloat16 half of that.

    Args:
        pixels: uint8 [N, 9, 3, 48, 48].
    """
    vae.eval().requires_grad_(False)
    latents = spatial_latents(vae, pixels)
    deviation = latents.std()
    vae.register_to_config(spatial_scaling_factor=1 / deviation.item())
    temporal = vae.temporal_vae.requires_grad_(True)

    def loss(generator: torch.Generator) -> Tensor:
        index = torch.randint(len(latents), (recipe.batch_size,), generator=generator)
        return temporal_loss(temporal, latents[index] / deviation, generator)

    train("temporal", temporal, loss, recipe, folder)
    vae.requires_grad_(False)


@torch.no_grad()
def spatial_latents(vae: Any, pixels: Tensor) -> Tensor:
    """Mean latents [N, 8, 9, 12, 12] of the spatial half for uint8 `pixels` [N, 9, 3, 48, 48], not scaled."""
    encode = vae.spatial_vae.module.encode
    frames = (video.signed(part).transpose(1, 2).flatten(0, 1) for part in pixels.split(_CLIPS))
    found = torch.cat([encode(part).latent_dist.mean for part in frames])
    return found.unflatten(0, (-1, clips.FRAMES)).transpose(1, 2).contiguous()


def temporal_loss(temporal: Any, batch: Tensor, generator: torch.Generator) -> Tensor:
    """What `video.reconstruction_loss` is to pixels, for scaled latents of frames [B, 8, 9, 12, 12]."""
    with torch.autocast("cpu", torch.bfloat16):
        mean, logvar = temporal.encode(batch).float().chunk(2, 1)
        logvar = logvar.clamp(-30, 20)
        drawn = mean + (0.5 * logvar).exp() * torch.randn(mean.shape, generator=generator)
        again = temporal.decode(drawn, batch.shape[2]).float()
    difference = again - batch
    weight = 1 + _EMPHASIS * batch.std(2, keepdim=True).mean(1, keepdim=True)
    error = (weight * (difference.abs() + difference.pow(2))).mean() / weight.mean()
    return error + 0.5e-4 * (mean.pow(2) + logvar.exp() - 1 - logvar).mean()


def normalise(vae: Any, latents: Tensor) -> Tensor:
    """Latents [N, 8, 3, 12, 12] with mean 0 and standard deviation 1 per channel, as `vae` gives them from now on."""
    scaled, mean, std = video.normalised(latents)
    vae.register_to_config(latents_mean=mean, latents_std=std)
    with torch.no_grad():
        vae.shift.copy_(torch.tensor(mean).view_as(vae.shift))
        vae.scale.copy_(torch.tensor(std).view_as(vae.scale))
    return scaled


def trained_autoencoder(drawn: list[clips.Clip], work: Path) -> tuple[Any, Tensor, float]:
    """Train what is not trained yet under `work`: the autoencoder, normalised latents of the pool, and PSNR in dB."""
    run, pixels = work / "run", video.autoencoder_pixels(drawn)
    vae: Any = components.seeded(autoencoder, seed=STILLS.seed)
    train_spatial(vae, pixels, run, STILLS)
    train_temporal(vae, pixels, run, TEMPORAL)
    motion.train_on_motion(vae, pixels, run, MOTION, decoder_only=True)
    psnr = video.reconstruction(vae)
    return vae, normalise(vae, video.pool_latents(vae, drawn, work)), psnr


def transformer() -> STDiT3Transformer3DModel:
    """4 pairs of blocks, 1.8M parameters, 108 latent tokens for 9 frames of 48×48 pixels."""
    model = STDiT3Transformer3DModel(
        caption_channels=TEXT_WIDTH,
        depth=4,
        hidden_size=128,
        num_heads=4,
        in_channels=LATENT_CHANNELS,
        input_sq_size=clips.CLIP_SIZE,
        mlp_ratio=2.0,
        model_max_length=clip_text.MAX_SEQUENCE_LENGTH,
    )
    # Every block starts as the identity, which trains faster and more steadily (adaLN-Zero, arXiv 2212.09748).
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("t_block.") or ".cross_attn.proj." in name or name.endswith("scale_shift_table"):
                parameter.zero_()
    return model


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Euler's; the pipeline shifts the noise levels by what 9 frames of 48×48 pixels ask for, 1.73."""
    return FlowMatchEulerDiscreteScheduler()


class Denoiser(nn.Module):
    """A transformer called on sigma in [0, 1], and its null caption, which is a buffer there, as a parameter."""

    def __init__(self, model: STDiT3Transformer3DModel, compiled: bool) -> None:
        super().__init__()
        self.transformer = model
        self.null = nn.Parameter(model.null_caption(1)[0].clone())
        model.set_attn_processor(cast(Any, ProductAttention()))
        if compiled:
            model.compile_repeated_blocks(dynamic=False)

    def forward(self, x: Tensor, sigma: Tensor, text: Tensor, mask: Tensor, dropped: Tensor) -> Tensor:
        """What the transformer gives for noisy latents at sigma [B], [B, 16, 3, 12, 12].

        Args:
            x: [B, 8, 3, 12, 12].
            text, mask: captions [B, 24, 96] and where they have tokens [B, 24].
            dropped: bool [B], whose place the null caption takes; it is as long as they are.
        """
        side = torch.tensor([float(clips.CLIP_SIZE)])
        with torch.autocast("cpu", torch.bfloat16):
            return self.transformer(
                hidden_states=x,
                timestep=1000 * sigma,
                encoder_hidden_states=torch.where(dropped[:, None, None], self.null, text),
                encoder_attention_mask=mask,
                fps=torch.tensor([FPS]),
                height=side,
                width=side,
                return_dict=False,
            )[0].float()


def noise_levels(size: int, generator: torch.Generator) -> Tensor:
    """Noise levels [size] of a batch, one from each of as many equally likely ranges: no batch is all noise."""
    share = (torch.arange(size) + torch.rand(size, generator=generator)) / size
    u = (TRAINING_WIDTH * torch.special.ndtri(share.clamp(1e-4, 1 - 1e-4))).sigmoid()
    return TRAINING_SHIFT * u / (1 + (TRAINING_SHIFT - 1) * u)


def train_transformer(
    model: STDiT3Transformer3DModel,
    latents: Tensor,
    text: tuple[Tensor, Tensor],
    shown: tuple[Tensor, Tensor],
    folder: Path,
    recipe: Recipe,
    compiled: bool,
) -> None:
    """Train `model` in place by flow matching with caption dropout, and freeze it; the velocity is latents - noise.

    The channels after those of the velocity are of no use in inference; here they learn which shape is drawn where,
    and which mover of the caption that is.

    Args:
        latents: normalised, [N, 8, 3, 12, 12].
        text: embeddings of their captions [N, 24, 96], and where these have tokens [N, 24].
        shown: what `shape_map.shape_map` and `shape_map.mover_map` give, [N, 3, 12, 12] each.
    """
    denoiser, kinds = Denoiser(model, compiled), (LATENT_CHANNELS, len(clips.SHAPES), 2)

    def loss(generator: torch.Generator) -> Tensor:
        size = recipe.batch_size
        index = torch.randint(len(latents), (size,), generator=generator)
        sigma, clean = noise_levels(size, generator), latents[index]
        noise = torch.randn(clean.shape, generator=generator)
        level = sigma[:, None, None, None, None]
        dropped = torch.rand(size, generator=generator) < CAPTION_DROPOUT
        found = denoiser((1 - level) * clean + level * noise, sigma, text[0][index], text[1][index], dropped)
        velocity, *guesses = found.split(kinds, 1)
        weight = shape_map.emphasis(shown[0][index], sigma)
        error = (weight * (velocity - (clean - noise)).pow(2)).mean() / weight.mean()
        unknown = [
            cross_entropy(guess, what[index], ignore_index=shape_map.NOWHERE)
            for guess, what in zip(guesses, shown, strict=True)
        ]
        return error + SHAPE_LOSS * torch.stack(unknown).sum()

    train("transformer", denoiser, loss, recipe, folder)
    with torch.no_grad():
        model.y_embedder.y_embedding.copy_(denoiser.null)
    model.set_attn_processor(cast(Any, STDiT3AttnProcessor()))
    model.eval().requires_grad_(False)


def text_embeddings(pipe: OpenSoraPipeline, captions: list[str]) -> tuple[Tensor, Tensor]:
    """What the pipeline itself gives its transformer for captions, [N, 24, 96], and their masks [N, 24]."""
    options: dict[str, Any] = {name: CALL[name] for name in ("aesthetic_score", "clean_caption")}
    size = 500
    parts = [pipe.encode_prompt(captions[i : i + size], **options) for i in range(0, len(captions), size)]
    return torch.cat([embeds for embeds, _ in parts]), torch.cat([mask for _, mask in parts])


def train_model(work: Path, out: Path, compiled: bool) -> Path:
    """Train what is not trained yet under `work`, and write the model folder `out`."""
    run, drawn = work / "run", video.pool()[:CLIPS]
    vae, latents, psnr = trained_autoencoder(drawn, work)
    tokenizer, encoder = clip_text.pretrained(components.t5_encoder, drawn, run, masked=True)
    model = components.seeded(transformer, seed=TRANSFORMER.seed)
    pipe = OpenSoraPipeline(tokenizer, encoder, vae, model, scheduler())
    text = text_embeddings(pipe, [clip.caption for clip in drawn])
    paths = video.pool_paths(drawn)
    shown = (shape_map.shape_map(drawn, paths), shape_map.mover_map(drawn, paths))
    train_transformer(model, latents, text, shown, run, TRANSFORMER, compiled)
    recipes = {
        "stills": STILLS,
        "temporal": TEMPORAL,
        "motion": MOTION,
        "text": clip_text.RECIPE,
        "transformer": TRANSFORMER,
    }
    return video.export(
        "tiny-open-sora", "guidance in one batched call", pipe, CALL, out, run, recipes, psnr, len(drawn)
    )
