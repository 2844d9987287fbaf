"""Flow-matching training of the base model, and distillation of its guidance into an embedding."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn

from ertacache_zoo import components
from ertacache_zoo.training import Recipe, train

BASE = Recipe(iterations=7500, batch_size=48, learning_rate=1.5e-3, ema=0.999, weight_decay=0.01, seed=21)
DISTILLED = Recipe(iterations=1500, batch_size=32, learning_rate=7e-4, ema=0.998, seed=31)
CAPTION_DROPOUT = 0.1
#: Guidance weights that the distilled model sees in training.
GUIDANCE_RANGE = (1.0, 14.0)
#: Noise levels are drawn logit-normal and shifted like this towards noise, where a caption is decided.
TRAINING_SHIFT = 2.0


@dataclass(frozen=True, eq=False)
class Pool:
    """Latents [N, 64, 16] (packed as the pipeline packs them) and the token ids of their captions."""

    latents: Tensor
    t5_ids: Tensor
    clip_ids: Tensor


class Denoiser(nn.Module):
    """A transformer with its text encoders, called on token ids."""

    def __init__(self, transformer: FluxTransformer2DModel, t5: nn.Module, clip: nn.Module, compiled: bool):
        super().__init__()
        self.transformer = transformer
        self.t5, self.clip = t5, clip
        # Compilation is a speed matter of this machine and must not reach the saved state.
        self.call: list[Callable[..., Any]] = [torch.compile(transformer) if compiled else transformer]
        side = 8
        rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        image_ids = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3).float()
        self.register_buffer("image_ids", image_ids, persistent=False)
        text_ids = torch.zeros(components.MAX_SEQUENCE_LENGTH, 3)
        self.register_buffer("text_ids", text_ids, persistent=False)

    def encode(self, t5_ids: Tensor, clip_ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.t5(t5_ids)[0], self.clip(clip_ids).pooler_output

    def forward(self, x: Tensor, sigma: Tensor, text: tuple[Tensor, Tensor], guidance: Tensor | None) -> Tensor:
        output = self.call[0](
            hidden_states=x,
            timestep=sigma,
            guidance=guidance,
            encoder_hidden_states=text[0],
            pooled_projections=text[1],
            txt_ids=self.text_ids,
            img_ids=self.image_ids,
            return_dict=False,
        )
        return output[0]


def make_pool(latents: Tensor, captions: list[str], t5_tokenizer: Any, clip_tokenizer: Any) -> Pool:
    """Pack latents [N, 4, 16, 16] and tokenize captions exactly as FluxPipeline does.

    The empty caption is added as a last row of the ids: index -1 is the unconditional text.
    """
    n, c, h, w = latents.shape
    packed = FluxPipeline._pack_latents(latents, n, c, h, w)  # pyright: ignore[reportPrivateUsage]
    t5_ids, clip_ids = components.tokenize([*captions, ""], t5_tokenizer, clip_tokenizer)
    return Pool(packed, t5_ids, clip_ids)


def _noised(pool: Pool, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """index [B], sigma [B], x_sigma [B, N, C], velocity [B, N, C] of a random batch."""
    index = torch.randint(len(pool.latents), (size,), generator=generator)
    u = torch.randn(size, generator=generator).sigmoid()
    sigma = TRAINING_SHIFT * u / (1 + (TRAINING_SHIFT - 1) * u)
    clean = pool.latents[index]
    noise = torch.randn(clean.shape, generator=generator)
    level = sigma[:, None, None]
    return index, sigma, (1 - level) * clean + level * noise, noise - clean


def train_base(
    pool: Pool, encoders: tuple[nn.Module, nn.Module], folder: Path, recipe: Recipe, compiled: bool
) -> Denoiser:
    """Train the transformer on frozen text encoders, with caption dropout; Eq. 3."""
    model = Denoiser(components.seeded(components.transformer, False, seed=recipe.seed), *encoders, compiled)

    def loss(generator: torch.Generator) -> Tensor:
        index, sigma, x, velocity = _noised(pool, recipe.batch_size, generator)
        dropped = torch.rand(recipe.batch_size, generator=generator) < CAPTION_DROPOUT
        index = index.masked_fill(dropped, len(pool.t5_ids) - 1)
        with torch.no_grad():
            text = model.encode(pool.t5_ids[index], pool.clip_ids[index])
        return (model(x, sigma, text, None) - velocity).pow(2).mean()

    train("base", model, loss, recipe, folder)
    return model.eval().requires_grad_(False)


def distil(base: Denoiser, pool: Pool, folder: Path, recipe: Recipe, compiled: bool) -> Denoiser:
    """Teach one call with an embedded guidance weight w to give what two calls give: u + w (c - u)."""
    student = Denoiser(components.seeded(components.transformer, True, seed=recipe.seed), base.t5, base.clip, compiled)
    student.transformer.load_state_dict(base.transformer.state_dict(), strict=False)
    # The new embedder starts silent, so that training starts from the base model itself.
    last: Any = student.transformer.get_submodule("time_text_embed.guidance_embedder.linear_2")
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    low, high = GUIDANCE_RANGE

    def loss(generator: torch.Generator) -> Tensor:
        index, sigma, x, _ = _noised(pool, recipe.batch_size, generator)
        guidance = low + (high - low) * torch.rand(recipe.batch_size, generator=generator)
        with torch.no_grad():
            text = base.encode(pool.t5_ids[index], pool.clip_ids[index])
            empty = tuple(part.expand_as(full) for part, full in zip(_empty(base, pool), text, strict=True))
            cond = base(x, sigma, text, None)
            uncond = base(x, sigma, (empty[0], empty[1]), None)
            target = uncond + guidance[:, None, None] * (cond - uncond)
        return (student(x, sigma, text, guidance) - target).pow(2).mean()

    train("distilled", student, loss, recipe, folder)
    return student.eval().requires_grad_(False)


def _empty(base: Denoiser, pool: Pool) -> tuple[Tensor, Tensor]:
    return base.encode(pool.t5_ids[-1:], pool.clip_ids[-1:])
