"""`nano-flux`: tiny-flux pruned and taught by its own runs, with a light decoder; Hybrid SD's device side."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, FluxPipeline
from torch import Tensor

from ertacache.pipelines.loading import call_arguments, load_pipeline
from ertacache.split.pruning import prune
from ertacache.split.significance import record_calls, significance
from ertacache_zoo import components, scenes, trajectories
from ertacache_zoo.export import write_model
from ertacache_zoo.flow import Denoiser
from ertacache_zoo.training import Recipe, train
from ertacache_zoo.trajectories import Trajectories

TEACHER = "tiny-flux"
#: Captions whose runs are recorded, and those on which significance is measured.
CAPTIONS, PROBED = 4000, 16
#: What is kept of tiny-flux: half of its heads and width, one double block of two, all four single ones.
RATIO, BLOCKS = 0.5, (1, 4)
DISTILLED = Recipe(iterations=4000, batch_size=48, learning_rate=2e-3, ema=0.998, seed=61)
AUTOENCODER = Recipe(iterations=1500, batch_size=8, learning_rate=3e-3, ema=0.99, seed=62)
#: Final latents that the light autoencoder sees.
PICTURES = 2000
#: Weight of the encoder's error beside the decoder's: the two share no weights, but one clipping of gradients.
ENCODER_WEIGHT = 0.1

_README = """# nano-flux

A `FluxPipeline` with a quarter of the operations of tiny-flux, pruned from it and taught by its runs, with a light
autoencoder:
the model of the device in a split run, see `docs/split.md` of ertacache. Text encoders and latents are those of
tiny-flux.

```python
from diffusers import FluxPipeline

pipe = FluxPipeline.from_pretrained("nano-flux")
image = pipe("{caption}", {call}).images[0]
```

It was taught at `guidance_scale={guidance}`. Licence: Apache-2.0. Trained on generated images only.
"""


def autoencoder() -> AutoencoderTiny:
    """Latents of tiny-flux as its denoiser has them to 64×64 pixels, and back."""
    channels = (16, 16, 16)
    return AutoencoderTiny(
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        num_encoder_blocks=(1, 1, 2),
        num_decoder_blocks=(3, 2, 1),
        latent_channels=components.LATENT_CHANNELS,
    )


def train_model(work: Path, out: Path, compiled: bool) -> Path:
    """Record runs of the bundled tiny-flux, prune it, distil denoiser and autoencoder, and write the folder `out`."""
    pipe, call = load_pipeline(TEACHER), call_arguments(TEACHER, {})
    teacher = Denoiser(pipe.transformer, pipe.text_encoder_2, pipe.text_encoder, compiled).eval().requires_grad_(False)
    guidance: float = call["guidance_scale"]
    tokenizers = (pipe.tokenizer_2, pipe.tokenizer)
    runs = trajectories.record(teacher, guidance, tokenizers, CAPTIONS, work / "trajectories")
    student = Denoiser(pruned(pipe, call), teacher.t5, teacher.clip, compiled)
    distil(student, runs, guidance, work / "run", DISTILLED)
    light = autoencoder_of(pipe.vae, unpacked(runs.finals[:PICTURES].float()), work / "run", AUTOENCODER)
    parts: dict[str, Any] = {**pipe.components, "transformer": student.transformer, "vae": light}
    facts = {
        "teacher": TEACHER, "captions": CAPTIONS, "stride": trajectories.STRIDE, "pictures": PICTURES, "ratio": RATIO,
        "blocks": BLOCKS, "recipes": {"distilled": asdict(DISTILLED), "autoencoder": asdict(AUTOENCODER)},
    }  # fmt: skip
    shown = ", ".join(f"{key}={value!r}" for key, value in call.items())
    caption = scenes.sample(1, 0, "heldout")[0].caption
    readme = _README.format(caption=caption, call=shown, guidance=guidance)
    return write_model(FluxPipeline(**parts), out, call, readme, facts, work / "run", ["distilled", "autoencoder"])


def pruned(pipe: Any, call: dict[str, Any]) -> Any:
    """The transformer of a pipeline without its least significant parts, measured at every fifth step of a run."""
    texts = [scene.caption for scene in scenes.sample(PROBED, 5, "train")]
    generator = torch.Generator().manual_seed(5)
    calls = record_calls(pipe, {**call, "prompt": texts, "generator": generator, "output_type": "latent"}, every=5)
    return prune(pipe.transformer, significance(pipe.transformer, calls), RATIO, BLOCKS).requires_grad_(True)


def distil(student: Denoiser, runs: Trajectories, guidance: float, folder: Path, recipe: Recipe) -> None:
    """Teach the transformer of `student` the velocities of recorded runs at the states that they went through."""
    student.t5.requires_grad_(False)
    student.clip.requires_grad_(False)
    grid = trajectories.sigmas()
    with torch.no_grad():
        parts = zip(runs.t5_ids.split(500), runs.clip_ids.split(500), strict=True)
        texts = [torch.cat(part) for part in zip(*(student.encode(*ids) for ids in parts), strict=True)]

    def loss(generator: torch.Generator) -> Tensor:
        index = torch.randint(len(runs.states), (recipe.batch_size,), generator=generator)
        owner = runs.captions[index]
        x, wanted = runs.states[index].float(), runs.velocities[index].float()
        text = texts[0][owner], texts[1][owner]
        weight = torch.full((recipe.batch_size,), guidance)
        return (student(x, grid[runs.steps[index]], text, weight) - wanted).pow(2).mean()

    train("distilled", student.transformer, loss, recipe, folder)
    student.eval().requires_grad_(False)


def autoencoder_of(vae: Any, latents: Tensor, folder: Path, recipe: Recipe) -> AutoencoderTiny:
    """Teach a light autoencoder the pictures that `vae` makes of latents, and the latents that it makes of those.

    Args:
        vae: with scaling and shift of its own; the light one takes latents as the denoiser has them.
        latents: [N, 4, 16, 16] as the denoiser has them.
    """
    light: Any = components.seeded(autoencoder, seed=recipe.seed)
    scale, shift = vae.config["scaling_factor"], vae.config["shift_factor"]
    with torch.no_grad():
        pixels = torch.cat([vae.decode(part / scale + shift).sample for part in latents.split(50)])
        means = torch.cat([vae.encode(part).latent_dist.mean for part in pixels.split(50)])
    wanted = (means - shift) * scale

    def loss(generator: torch.Generator) -> Tensor:
        index = torch.randint(len(latents), (recipe.batch_size,), generator=generator)
        error = light.decode(latents[index]).sample - pixels[index]
        back = light.encode(pixels[index]).latents - wanted[index]
        return error.abs().mean() + error.pow(2).mean() + ENCODER_WEIGHT * back.abs().mean()

    train("autoencoder", light, loss, recipe, folder)
    return light.eval().requires_grad_(False)


def unpacked(tokens: Tensor) -> Tensor:
    """Latents [B, 4, 16, 16] of packed ones [B, 64, 16]."""
    side = scenes.IMAGE_SIZE
    return FluxPipeline._unpack_latents(tokens, side, side, 4)  # pyright: ignore[reportPrivateUsage]
