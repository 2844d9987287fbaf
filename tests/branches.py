"""Two-branch guidance with a cache of diffusers that cannot mix the branches: what ours is checked against."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import torch

from ertacache.calibration.prompts import Prompts


def one_cache_per_branch(pipe: Any, config: Callable[[], Any]) -> Any:
    """The pipeline, for one run: its two calls per step go to two copies of the denoiser, each with its own cache."""
    copies = [copy.deepcopy(pipe.transformer) for _ in range(2)]
    for denoiser in copies:
        denoiser.enable_cache(config())
    calls = itertools.count()
    pipe.transformer.forward = lambda *args, **kwargs: copies[next(calls) % 2](*args, **kwargs)
    return pipe


@torch.no_grad()
def batched_wan(pipe: Any, prompts: Prompts, call: dict[str, Any], cache: Callable[[Callable[[], float]], Any]) -> Any:
    """Final latents of Wan with both branches in one batch, the unconditional one first.

    Args:
        cache: makes diffusers' config from the callback that tells the timestep; None for no cache.
    """
    now: list[float] = []
    config = cache(lambda: now[-1])
    if config is not None:
        pipe.transformer.enable_cache(config)
    text, negative = pipe.encode_prompt(
        list(prompts.texts), call["negative_prompt"], True, 1, max_sequence_length=call["max_sequence_length"]
    )
    pipe.scheduler.set_timesteps(call["num_inference_steps"])
    size = call["height"], call["width"], call["num_frames"]
    generator = torch.Generator().manual_seed(prompts.seed)
    latents = pipe.prepare_latents(1, pipe.transformer.config.in_channels, *size, torch.float32, generator=generator)
    for timestep in pipe.scheduler.timesteps:
        now.append(float(timestep))
        both = pipe.transformer(
            hidden_states=torch.cat([latents] * 2),
            timestep=timestep.expand(2),
            encoder_hidden_states=torch.cat([negative, text]),
            return_dict=False,
        )[0]
        uncond, cond = both.chunk(2)
        guided = uncond + call["guidance_scale"] * (cond - uncond)
        latents = pipe.scheduler.step(guided, timestep, latents, return_dict=False)[0]
    return latents
