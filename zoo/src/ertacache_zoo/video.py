"""What the training of the video models shares: the autoencoder's loop, the pool of latents, text embeddings, export.

All autoencoders take clips as [N, 3, frames, height, width] in [-1, 1] and shrink time and space by four.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ertacache.files import save_atomic
from ertacache.opensora import AutoencoderKLOpenSora, OpenSoraPipeline
from ertacache_zoo import clip_text, clips
from ertacache_zoo.export import write_model
from ertacache_zoo.training import Recipe, train

#: Clips in the training pool, their seed, and how many of them the autoencoder sees.
POOL, POOL_SEED, AUTOENCODER_CLIPS = 16_000, 1, 3_000
#: Seed of the held-out clips that the reconstruction is measured on, and their number.
_RECONSTRUCTED_SEED, _RECONSTRUCTED = 303, 64
CROP = 24
#: What the parts of both models have to agree on, and the share of captions that are dropped in training.
LATENT_CHANNELS, TEXT_WIDTH, CAPTION_DROPOUT = 8, 96, 0.1
_CHUNK = 500
_BATCH = 25

_README = """# {name}

A small `{pipeline}` ({kind}), trained on captioned clips of two moving objects; see `docs/zoo.md` of ertacache.

The pipeline's defaults are made for the large model. Call it with what `call.json` holds:

```python
from {package} import {pipeline}

pipe = {pipeline}.from_pretrained("{name}")
video = pipe(
    "{caption}",
{call}
).frames[0]
```

Licence: Apache-2.0. Trained on generated clips only.
"""


def call(**own: Any) -> dict[str, Any]:
    """What a pipeline has to be called with, as its defaults are the large model's: the clips' size, and `own`."""
    return {"height": clips.CLIP_SIZE, "width": clips.CLIP_SIZE, "num_frames": clips.FRAMES, **own}


def pool_paths(drawn: list[clips.Clip]) -> Tensor:
    """Where the movers of a pool are in the clips that `pool_latents` encodes: [N, 2, 9, 2], see `clips.paths`."""
    return torch.cat([_rendered(drawn, start)[1] for start in range(0, len(drawn), _CHUNK)])


def _rendered(drawn: list[clips.Clip], start: int) -> tuple[Tensor, Tensor]:
    """The chunk of a pool from `start` on, drawn with a seed of its own: frames and paths."""
    return clips.render_with_paths(drawn[start : start + _CHUNK], _CHUNK + start)


def pool() -> list[clips.Clip]:
    """The clips that everything is trained on."""
    return clips.sample(POOL, POOL_SEED, "train")


def autoencoder_pixels(drawn: list[clips.Clip]) -> Tensor:
    """The autoencoder's share of the pool as uint8 [N, 9, 3, 48, 48]."""
    chosen = drawn[:AUTOENCODER_CLIPS]
    parts = [_eight_bit(clips.render(chosen[i : i + _CHUNK], i)) for i in range(0, len(chosen), _CHUNK)]
    return torch.cat(parts)


def train_on_stills(vae: Any, pixels: Tensor, folder: Path, recipe: Recipe) -> None:
    """Train `vae` in place on crops of single frames out of uint8 `pixels` [N, 9, 3, 48, 48].

    A frame is a ninth of the price of a clip: so a batch holds many more colours and shapes, which an autoencoder
    learns from stills long before it learns them from clips.
    """

    def loss(generator: torch.Generator) -> Tensor:
        return reconstruction_loss(vae, stills(pixels, recipe.batch_size, generator), generator)

    train("stills", vae, loss, recipe, folder)


def stills(pixels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Crops of random frames of uint8 `pixels` [N, 9, 3, 48, 48] as float32 [size, 3, 1, 24, 24] in [-1, 1]."""
    index = torch.randint(len(pixels), (size,), generator=generator)
    frame = torch.randint(clips.FRAMES, (size,), generator=generator)
    top, left = torch.randint(0, clips.CLIP_SIZE - CROP + 1, (2,), generator=generator).tolist()
    return signed(pixels[index, frame, None, :, top : top + CROP, left : left + CROP])


def train_autoencoder(vae: Any, pixels: Tensor, folder: Path, recipe: Recipe) -> None:
    """Train `vae` in place on uint8 `pixels` [N, 9, 3, 48, 48], and freeze it.

    Three batches of four are crops of 24×24 pixels, one is of whole frames and a quarter of the size, which costs
    the same: attention in the middle of the network has to meet as many positions as it will have to serve.
    """

    def loss(generator: torch.Generator) -> Tensor:
        whole = float(torch.rand((), generator=generator)) < 0.25
        size, side = (max(1, recipe.batch_size // 4), clips.CLIP_SIZE) if whole else (recipe.batch_size, CROP)
        index = torch.randint(len(pixels), (size,), generator=generator)
        top, left = torch.randint(0, clips.CLIP_SIZE - side + 1, (2,), generator=generator).tolist()
        batch = signed(pixels[index, :, :, top : top + side, left : left + side])
        return reconstruction_loss(vae, batch, generator)

    train("autoencoder", vae, loss, recipe, folder)
    vae.eval().requires_grad_(False)


def reconstruction_loss(vae: Any, batch: Tensor, generator: torch.Generator, weight: Tensor | None = None) -> Tensor:
    """Absolute and squared error of what an autoencoder makes of `batch`, and a little of its latents' divergence.

    Args:
        batch: [B, 3, frames, H, W] in [-1, 1]; [B, 3, H, W] for an autoencoder of images.
        weight: how much each pixel counts, in a shape that broadcasts against it; all the same without.
    """
    posterior = vae.encode(batch).latent_dist
    difference = decoded(vae, posterior.sample(generator), batch) - batch
    if weight is None:
        error = difference.abs().mean() + difference.pow(2).mean()
    else:
        error = (weight * (difference.abs() + difference.pow(2))).mean() / weight.mean()
    divergence = 0.5 * (posterior.mean.pow(2) + posterior.var - 1 - posterior.logvar).mean()
    return error + 1e-4 * divergence


def decoded(vae: Any, latents: Tensor, batch: Tensor) -> Tensor:
    """Clips from the latents of `batch`; the autoencoder of Open-Sora has to be told how many frames those had."""
    told: Any = {"num_frames": batch.shape[2]} if type(vae) is AutoencoderKLOpenSora else {}
    decode: Any = vae.decode
    return decode(latents, **told).sample


@torch.no_grad()
def reconstruction(vae: Any) -> float:
    """Mean PSNR in dB of whole held-out clips after encoding and decoding."""
    drawn = clips.sample(_RECONSTRUCTED, _RECONSTRUCTED_SEED, "heldout")
    pixels = _eight_bit(clips.render(drawn, _RECONSTRUCTED_SEED))
    found: list[Tensor] = []
    for part in pixels.split(_BATCH):
        batch = signed(part)
        again = decoded(vae, vae.encode(batch).latent_dist.mean, batch).clamp(-1, 1)
        found.append(-10 * ((again - batch) / 2).pow(2).flatten(1).mean(1).log10())
    return torch.cat(found).mean().item()


@torch.no_grad()
def pool_latents(vae: Any, drawn: list[clips.Clip], work: Path) -> Tensor:
    """Mean latents [N, channels, 3, 12, 12] of a pool; every 500 of them are kept in `work` and not made again."""
    folder = work / "latents"
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[Tensor] = []
    for start in range(0, len(drawn), _CHUNK):
        path = folder / f"{start:06d}.pt"
        if not path.exists():
            pixels = _eight_bit(_rendered(drawn, start)[0])
            made = torch.cat([vae.encode(signed(part)).latent_dist.mean for part in pixels.split(_BATCH)])
            save_atomic(path, lambda file, made=made: torch.save(made, file))
        parts.append(torch.load(path, weights_only=True))
    return torch.cat(parts)


def normalised(latents: Tensor) -> tuple[Tensor, list[float], list[float]]:
    """Latents [N, channels, ...] with mean 0 and standard deviation 1 per channel, and what those were."""
    dims = [0, *range(2, latents.ndim)]
    mean, std = latents.mean(dims, keepdim=True), latents.std(dims, keepdim=True)
    return (latents - mean) / std, mean.flatten().tolist(), std.flatten().tolist()


@torch.no_grad()
def text_embeddings(pipe: Any, captions: list[str], max_sequence_length: int) -> Tensor:
    """What the pipeline itself gives its transformer for captions: [N + 1, tokens, width].

    The empty caption is added as a last row: index -1 is the unconditional text.
    """
    texts = [*captions, ""]
    options: dict[str, Any] = {"do_classifier_free_guidance": False, "max_sequence_length": max_sequence_length}
    parts = [pipe.encode_prompt(texts[i : i + _CHUNK], **options)[0] for i in range(0, len(texts), _CHUNK)]
    return torch.cat(parts)


def compiled_call(module: nn.Module, compiled: bool) -> list[Callable[..., Any]]:
    """The call of a module, compiled or not, in a list: so it stays out of the state of a module that keeps it."""
    return [torch.compile(module) if compiled else module]


def stages(stills: Recipe, autoencoder: Recipe, motion: Recipe, transformer: Recipe) -> dict[str, Recipe]:
    """The recipes of a model by the names of its stages, in their order."""
    return {
        "stills": stills,
        "autoencoder": autoencoder,
        "motion": motion,
        "text": clip_text.RECIPE,
        "transformer": transformer,
    }


def export(
    name: str,
    kind: str,
    pipe: Any,
    call: dict[str, Any],
    out: Path,
    run: Path,
    recipes: dict[str, Recipe],
    psnr: float,
    pool_size: int,
) -> Path:
    """Write a video model as a diffusers folder with call.json, README.md, training.json and the training logs.

    Args:
        kind: the kind of model in a few words, for the README.
        run: holds STAGE.jsonl of each stage in `recipes`.
        psnr: what `reconstruction` gave, in dB.
        pool_size: clips that the transformer was trained on.
    """
    readme = _readme(name, kind, type(pipe), call)
    facts = {
        "pool": pool_size,
        "pool_seed": POOL_SEED,
        "autoencoder_clips": AUTOENCODER_CLIPS,
        "autoencoder_psnr": round(psnr, 2),
        "transformer_parameters": sum(p.numel() for p in pipe.transformer.parameters()),
        "recipes": {stage: asdict(recipe) for stage, recipe in recipes.items()},
    }
    return write_model(pipe, out, call, readme, facts, run, list(recipes))


def _readme(name: str, kind: str, pipeline: type, call: dict[str, Any]) -> str:
    """Of a model, with code that runs."""
    values = {key: json.dumps(value) if isinstance(value, str) else repr(value) for key, value in call.items()}
    return _README.format(
        name=name,
        kind=kind,
        pipeline=pipeline.__name__,
        package="ertacache.opensora" if pipeline is OpenSoraPipeline else "diffusers",
        caption=clips.sample(1, 0, "heldout")[0].caption,
        call="\n".join(f"    {key}={value}," for key, value in values.items()),
    )


def _eight_bit(frames: Tensor) -> Tensor:
    """Eight bits, as any video file would have held them."""
    return (frames * 255).round().byte()


def signed(pixels: Tensor) -> Tensor:
    """uint8 [N, frames, 3, H, W] as the autoencoders take it: float32 [N, 3, frames, H, W] in [-1, 1]."""
    return pixels.transpose(1, 2).float() / 127.5 - 1
