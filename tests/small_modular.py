"""Pipelines of Modular Diffusers around the small random parts of the classic ones."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from diffusers import ClassifierFreeGuidance
from diffusers.modular_pipelines.flux.modular_blocks_flux import FluxAutoBlocks
from diffusers.modular_pipelines.qwenimage.modular_blocks_qwenimage import QwenImageAutoBlocks
from diffusers.modular_pipelines.stable_diffusion_xl.modular_blocks_stable_diffusion_xl import (
    StableDiffusionXLAutoBlocks,
)
from diffusers.modular_pipelines.wan.modular_blocks_wan import WanBlocks

import pipelines
import small_images as images
import small_token_images as tokens
from ertacache.pipelines.pipeline_call import progress_bars
from small_parts import THREE_PROMPTS
from supported import Small, T

_GUIDER = "guidance by the pipeline's guider"


def _of_blocks(blocks: Any, classic: Small, guidance: str = "") -> Small:
    """The parts of a classic pipeline behind blocks, its guidance weight in a guider where `guidance` names it."""
    call = dict(classic.call)
    guider = {"guider": ClassifierFreeGuidance(guidance_scale=call.pop(guidance))} if guidance else {}
    pipe: Any = blocks.init_pipeline()
    known = {name: part for name, part in classic.pipe.components.items() if part is not None}
    pipe.update_components(**{name: part for name, part in known.items() if name in pipe._component_specs}, **guider)
    for bar in progress_bars(pipe):
        bar.set_progress_bar_config(disable=True)
    return replace(classic, pipe=pipe, call=call, notes=(_GUIDER,) if guidance else ())


def flux() -> Small:
    return _of_blocks(FluxAutoBlocks(), tokens.flux())


def without_decoder() -> Any:
    """FLUX that ends with its latents."""
    blocks = FluxAutoBlocks()
    del blocks.sub_blocks["decode"]
    return _of_blocks(blocks, tokens.flux()).pipe


def wan() -> Small:
    call = {**pipelines.VIDEO_CALL, "num_inference_steps": T}
    return _of_blocks(WanBlocks(), Small(pipelines.wan(), call, THREE_PROMPTS), "guidance_scale")


def stable_diffusion_xl() -> Small:
    return _of_blocks(StableDiffusionXLAutoBlocks(), images.stable_diffusion_xl(), "guidance_scale")


def qwen_image() -> Small:
    return _of_blocks(QwenImageAutoBlocks(), tokens.qwen_image(), "true_cfg_scale")


BUILDERS: dict[str, Callable[[], Small]] = {
    "FLUX.1 of blocks": flux,
    "Stable Diffusion XL of blocks": stable_diffusion_xl,
    "Qwen-Image of blocks": qwen_image,
    "Wan of blocks": wan,
}
