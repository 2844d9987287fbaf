"""Real pipelines around small random weights: they prove plumbing, never quality."""

from typing import Any

import torch
from diffusers import FluxPipeline

from ertacache.zoo import components

CALL: dict[str, Any] = {
    "height": 64,
    "width": 64,
    "num_inference_steps": 10,
    "max_sequence_length": components.MAX_SEQUENCE_LENGTH,
    "guidance_scale": 4.0,
}
#: Two branches: without a negative prompt the pipeline would silently run without guidance.
CFG_CALL: dict[str, Any] = {**CALL, "true_cfg_scale": 4.0, "negative_prompt": ""}

PROMPTS = [
    "a small red ring at the top left and a large cyan triangle at the top right on a grey dotted background",
    "a large green square at the top left and a small red cross at the bottom left on a dark striped background",
    "a small white circle at the top right and a small blue ring at the bottom left on a dark cloudy background",
    "a large purple diamond at the bottom right and a small red ring at the top left on a grey checked background",
]


def flux(guidance_embeds: bool = True, seed: int = 0) -> Any:
    """A FluxPipeline with random weights, output scaled so that trajectories bend as trained ones do."""
    t5, clip = components.t5_tokenizer(), components.clip_tokenizer()
    build = components.seeded
    pipe = FluxPipeline(
        scheduler=components.scheduler(),
        vae=build(components.autoencoder, seed=seed),
        text_encoder=build(components.clip_encoder, clip, seed=seed + 1),
        tokenizer=clip,
        text_encoder_2=build(components.t5_encoder, t5, seed=seed + 2),
        tokenizer_2=t5,
        transformer=build(components.transformer, guidance_embeds, seed=seed + 3),
    )
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        pipe.transformer.proj_out.weight.mul_(8)
    return pipe


def generate(pipe: Any, prompts: list[str], call: dict[str, Any], seed: int = 0, **more: Any) -> torch.Tensor:
    """Images [B, 3, 64, 64], prompt n from the noise of seed + n."""
    generators = [torch.Generator().manual_seed(seed + n) for n in range(len(prompts))]
    arguments = {**call, **more}
    if "negative_prompt" in arguments:
        arguments["negative_prompt"] = [arguments["negative_prompt"]] * len(prompts)
    return pipe(prompt=prompts, generator=generators, **{"output_type": "pt", **arguments})[0]
