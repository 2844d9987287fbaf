"""From nothing to the finished model folders; of the image models: pool, autoencoder, base, distilled model."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxPipeline
from torch import Tensor

from ertacache.files import save_atomic
from ertacache_zoo import autoencoder, catalogue, cogvideox, components, flow, nano_flux, open_sora, scenes, text, wan
from ertacache_zoo.export import write_model

#: Scenes in the training pool, their seed, and how many of them the autoencoder sees.
POOL, POOL_SEED, AUTOENCODER_IMAGES = 40_000, 1, 6_000
_CHUNK = 1000

_README = """# {name}

A small `FluxPipeline` ({kind}), trained on captioned scenes of two objects; see `docs/zoo.md` of ertacache.

The pipeline's defaults are made for the large model. Call it with what `call.json` holds:

```python
from diffusers import FluxPipeline

pipe = FluxPipeline.from_pretrained("{name}")
image = pipe("{caption}", {call}).images[0]
```

{note}Licence: Apache-2.0. Trained on generated images only.
"""
_NOTES = {
    "tiny-flux": ("guidance embedded, one call per step", ""),
    "tiny-flux-base": (
        "two-branch guidance, two calls per step",
        "Without a negative prompt, even an empty one, `true_cfg_scale` silently does nothing.\n\n",
    ),
}

#: Modules that train a model of their own.
_OTHERS: dict[str, Any] = {
    "tiny-wan": wan,
    "tiny-cogvideox": cogvideox,
    "tiny-open-sora": open_sora,
    "nano-flux": nano_flux,
}

CALLS: dict[str, dict[str, Any]] = {
    "tiny-flux": {"guidance_scale": 10.0},
    "tiny-flux-base": {"true_cfg_scale": 4.0, "negative_prompt": ""},
}
SHARED_CALL = {
    "height": scenes.IMAGE_SIZE,
    "width": scenes.IMAGE_SIZE,
    "num_inference_steps": 30,
    "max_sequence_length": components.MAX_SEQUENCE_LENGTH,
}


def train_model(name: str, work: Path, out: Path, compiled: bool) -> Path:
    """Train what is not trained yet under `work`, and write the model folder `out`.

    Raises:
        InvalidArgument: no such model.
    """
    catalogue.folder(name)
    if name in _OTHERS:
        return _OTHERS[name].train_model(work, out, compiled)
    scenes_ = scenes.sample(POOL, POOL_SEED, "train")
    vae = _autoencoder(scenes_, work)
    t5, clip = components.t5_tokenizer(), components.clip_tokenizer()
    latents = _latents(vae, scenes_, work)
    encoders = text.train_encoders(scenes_, t5, clip, work / "run")
    pool = flow.make_pool(latents, [scene.caption for scene in scenes_], t5, clip)
    denoiser = flow.train_base(pool, encoders, work / "run", flow.BASE, compiled)
    stages = ["autoencoder", "text", "base"]
    recipes: dict[str, Any] = {
        "autoencoder": asdict(autoencoder.RECIPE),
        "text": asdict(text.RECIPE),
        "base": asdict(flow.BASE),
    }
    if name == "tiny-flux":
        denoiser = flow.distil(denoiser, pool, work / "run", flow.DISTILLED, compiled)
        stages.append("distilled")
        recipes["distilled"] = {**asdict(flow.DISTILLED), "guidance_range": flow.GUIDANCE_RANGE}
    return export(name, vae, denoiser, (t5, clip), out, work / "run", stages, recipes)


def _autoencoder(pool: list[scenes.Scene], work: Path) -> AutoencoderKL:
    images = scenes.render(pool[:AUTOENCODER_IMAGES], POOL_SEED)
    # Eight bits, as any image file would have held them.
    return autoencoder.train_autoencoder((images * 255).round() / 255, work / "run")


def _latents(vae: AutoencoderKL, pool: list[scenes.Scene], work: Path) -> Tensor:
    path = work / "latents.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    parts = [
        autoencoder.encode_pool(vae, scenes.render(pool[i : i + _CHUNK], _CHUNK + i))
        for i in range(0, len(pool), _CHUNK)
    ]
    latents = torch.cat(parts)
    save_atomic(path, lambda file: torch.save(latents, file))
    return latents


def export(
    name: str,
    vae: AutoencoderKL,
    denoiser: flow.Denoiser,
    tokenizers: tuple[Any, Any],
    out: Path,
    run: Path,
    stages: list[str],
    recipes: dict[str, Any],
) -> Path:
    """Write a model as a diffusers folder, with call.json, training.json and the training logs beside it."""
    t5, clip = tokenizers
    parts: dict[str, Any] = {"text_encoder": denoiser.clip, "text_encoder_2": denoiser.t5}
    pipe = FluxPipeline(
        scheduler=components.scheduler(),
        vae=vae,
        tokenizer=clip,
        tokenizer_2=t5,
        transformer=denoiser.transformer,
        **parts,
    )
    facts = {"pool": POOL, "pool_seed": POOL_SEED, "autoencoder_images": AUTOENCODER_IMAGES, "recipes": recipes}
    return write_model(pipe, out, {**SHARED_CALL, **CALLS[name]}, _readme(name), facts, run, stages)


def _readme(name: str) -> str:
    call = ", ".join(f"{key}={value!r}" for key, value in {**SHARED_CALL, **CALLS[name]}.items())
    kind, note = _NOTES[name]
    caption = scenes.sample(1, 0, "heldout")[0].caption
    return _README.format(name=name, kind=kind, caption=caption, call=call, note=note)
