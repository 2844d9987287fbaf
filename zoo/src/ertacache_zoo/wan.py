"""A small Wan text-to-video model: its parts, the real diffusers classes only narrower, and their training."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from ertacache_zoo import clip_text, components, motion, video
from ertacache_zoo.training import Recipe, train
from ertacache_zoo.video import CAPTION_DROPOUT, LATENT_CHANNELS, TEXT_WIDTH

STILLS = Recipe(iterations=1200, batch_size=64, learning_rate=2e-3, seed=51)
AUTOENCODER = Recipe(iterations=1500, batch_size=8, learning_rate=6e-4, seed=52)
MOTION = Recipe(iterations=1000, batch_size=8, learning_rate=1e-3, warmup=50, seed=53)
TRANSFORMER = Recipe(
    iterations=15000, batch_size=32, learning_rate=1.5e-3, warmup=200, ema=0.999, weight_decay=0.01, seed=61
)
#: Noise levels are drawn logit-normal and shifted like this towards noise, where a caption is decided.
TRAINING_SHIFT = 4.0
#: What the pipeline has to be called with.
CALL = video.call(
    num_inference_steps=50,
    guidance_scale=5.0,
    negative_prompt="",
    max_sequence_length=clip_text.MAX_SEQUENCE_LENGTH,
)


def autoencoder() -> AutoencoderKLWan:
    """9×48×48 pixels to 3×12×12 latents of eight channels; untrained, it treats every frame as a still.

    Each convolution over time starts with weights for the present frame alone, and each one that halves or doubles
    the number of frames by dropping or repeating them: so what is learned from stills holds for clips.
    """
    vae = AutoencoderKLWan(
        base_dim=16,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
        scale_factor_temporal=4,
        scale_factor_spatial=4,
    )
    with torch.no_grad():
        for name, module in vae.named_modules():
            if isinstance(module, nn.Conv3d) and module.kernel_size[0] == 3:
                module.weight[:, :, :2] = 0
                if name.endswith("time_conv"):
                    copies = module.out_channels // module.in_channels
                    module.weight[:, :, 2, 0, 0] = torch.eye(module.in_channels).repeat(copies, 1)
    return vae


def transformer() -> WanTransformer3DModel:
    """6 blocks, 1.8M parameters, 108 latent tokens for 9 frames of 48×48 pixels."""
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_WIDTH,
        freq_dim=128,
        ffn_dim=512,
        num_layers=6,
        rope_max_seq_len=32,
    )
    # Every block starts as the identity, which trains faster and more steadily (adaLN-Zero, arXiv 2212.09748).
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".time_proj." in name or ".attn2.to_out." in name or ".scale_shift_table" in name:
                parameter.zero_()
    return model


def scheduler() -> UniPCMultistepScheduler:
    """The solver of Wan2.1: UniPC on flow sigmas with shift 3."""
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
    )


def text_encoder(tokenizer: Any) -> UMT5EncoderModel:
    config = UMT5Config(
        vocab_size=len(tokenizer), d_model=TEXT_WIDTH, d_kv=24, d_ff=256, num_layers=2, num_heads=4, dropout_rate=0.0
    )
    return UMT5EncoderModel(config)


class Denoiser(nn.Module):
    """A transformer called on sigma in [0, 1]."""

    def __init__(self, model: WanTransformer3DModel, compiled: bool) -> None:
        super().__init__()
        self.transformer = model
        self.call = video.compiled_call(model, compiled)

    def forward(self, x: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
        """Velocity [B, 8, 3, 12, 12] of noisy latents at sigma [B] under text embeddings [B, 24, 96]."""
        # The solver hands whole timesteps to the transformer: it cuts off, it does not round.
        timestep = (1000 * sigma).floor()
        return self.call[0](hidden_states=x, timestep=timestep, encoder_hidden_states=text, return_dict=False)[0]


def train_transformer(
    model: WanTransformer3DModel, latents: Tensor, text: Tensor, folder: Path, recipe: Recipe, compiled: bool
) -> None:
    """Train `model` in place by flow matching with caption dropout, and freeze it; the velocity is noise - latents.

    Args:
        latents: normalised, [N, 8, 3, 12, 12].
        text: embeddings of their captions and, last, of the empty one, [N + 1, 24, 96].
    """
    denoiser = Denoiser(model, compiled)

    def loss(generator: torch.Generator) -> Tensor:
        size = recipe.batch_size
        index = torch.randint(len(latents), (size,), generator=generator)
        u = torch.randn(size, generator=generator).sigmoid()
        sigma = TRAINING_SHIFT * u / (1 + (TRAINING_SHIFT - 1) * u)
        clean = latents[index]
        noise = torch.randn(clean.shape, generator=generator)
        level = sigma[:, None, None, None, None]
        dropped = torch.rand(size, generator=generator) < CAPTION_DROPOUT
        captions = text[index.masked_fill(dropped, len(text) - 1)]
        predicted = denoiser((1 - level) * clean + level * noise, sigma, captions)
        return (predicted - (noise - clean)).pow(2).mean()

    train("transformer", denoiser, loss, recipe, folder)
    model.eval().requires_grad_(False)


def train_model(work: Path, out: Path, compiled: bool) -> Path:
    """Train what is not trained yet under `work`, and write the model folder `out`."""
    run, drawn = work / "run", video.pool()
    vae: Any = components.seeded(autoencoder, seed=STILLS.seed)
    pixels = video.autoencoder_pixels(drawn)
    video.train_on_stills(vae, pixels, run, STILLS)
    video.train_autoencoder(vae, pixels, run, AUTOENCODER)
    motion.train_on_motion(vae, pixels, run, MOTION, decoder_only=True)
    psnr = video.reconstruction(vae)
    latents, mean, std = video.normalised(video.pool_latents(vae, drawn, work))
    vae.register_to_config(latents_mean=mean, latents_std=std)
    tokenizer, encoder = clip_text.pretrained(text_encoder, drawn, run, masked=True)
    model = components.seeded(transformer, seed=TRANSFORMER.seed)
    pipe = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=vae,
        scheduler=scheduler(),  # pyright: ignore[reportArgumentType]  # the published models come with this one
        transformer=model,
    )
    text = video.text_embeddings(pipe, [clip.caption for clip in drawn], clip_text.MAX_SEQUENCE_LENGTH)
    train_transformer(model, latents, text, run, TRANSFORMER, compiled)
    recipes = video.stages(STILLS, AUTOENCODER, MOTION, TRANSFORMER)
    return video.export(
        "tiny-wan", "two-branch guidance, two calls per step", pipe, CALL, out, run, recipes, psnr, len(drawn)
    )
