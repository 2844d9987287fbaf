"""Rows of the table of combinations: other ways to call a pipeline, and pipelines around the same denoiser."""

import warnings
from dataclasses import replace
from typing import Any

import diffusers
import torch
from PIL import Image

import small_images as images
import small_modular as modular
import small_token_images as tokens
from combinations import Row
from pipelines import PROMPTS
from small_parts import seeded
from supported import Small

_LATE = "calibrated at strength 1; a late start computes until it has a history"


def _black_and_white(side: int = 32) -> Image.Image:
    """A mask that keeps the left half."""
    mask = Image.new("L", (side, side), 0)
    mask.paste(255, (side // 2, 0, side, side))
    return mask


def _around(pipeline: Any, small: Small, **more: Any) -> Small:
    """The same parts in another pipeline class."""
    pipe = pipeline(**{name: part for name, part in small.pipe.components.items() if part is not None}, **more)
    pipe.set_progress_bar_config(disable=True)
    return replace(small, pipe=pipe)


def flux_inpaint() -> Small:
    small = _around(diffusers.FluxInpaintPipeline, tokens.flux())
    small.call["strength"] = 1.0
    return replace(small, inputs={"image": tokens.picture(), "mask_image": _black_and_white()})


def sdxl_img2img() -> Small:
    small = _around(diffusers.StableDiffusionXLImg2ImgPipeline, images.stable_diffusion_xl())
    call = {name: value for name, value in small.call.items() if name not in ("height", "width")}
    return replace(small, call={**call, "strength": 1.0}, inputs={"image": tokens.picture()})


def sdxl_inpaint() -> Small:
    small = _around(diffusers.StableDiffusionXLInpaintPipeline, images.stable_diffusion_xl())
    inputs = {"image": tokens.picture(), "mask_image": _black_and_white()}
    return replace(small, call={**small.call, "strength": 1.0}, inputs=inputs, batch_size=1)


def flux_controlnet() -> Small:
    small = tokens.flux()
    config: dict[str, Any] = dict(small.pipe.transformer.config)
    known = ("patch_size", "in_channels", "attention_head_dim", "num_attention_heads", "joint_attention_dim")
    known = (*known, "pooled_projection_dim", "guidance_embeds", "axes_dims_rope")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`FluxPosEmbed` is deprecated", FutureWarning)  # diffusers' own use of it
        net = seeded(
            lambda: diffusers.FluxControlNetModel(
                num_layers=1, num_single_layers=1, **{name: config[name] for name in known}
            ),
            seed=9,
        )  # fmt: skip
    _wake(net)
    small = _around(diffusers.FluxControlNetPipeline, small, controlnet=net)
    return replace(small, inputs={"control_image": tokens.picture()}, batch_size=1)


def sdxl_controlnet() -> Small:
    small = images.stable_diffusion_xl()
    net = diffusers.ControlNetModel.from_unet(small.pipe.unet, conditioning_channels=3)
    net.controlnet_cond_embedding = seeded(
        lambda: type(net.controlnet_cond_embedding)(8, block_out_channels=(8, 8), conditioning_channels=3), seed=9
    )
    _wake(net)
    small = _around(diffusers.StableDiffusionXLControlNetPipeline, small, controlnet=net)
    return replace(small, inputs={"image": tokens.picture()}, batch_size=1)


def _wake(net: torch.nn.Module) -> None:
    """What a ControlNet adds starts at zero; random numbers make it heard."""
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if name.startswith(("controlnet_", "controlnet_blocks", "controlnet_single")) and not weight.any():
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)


ROWS = {
    "several pictures of one prompt": Row(
        "`num_images_per_prompt=2`", tokens.flux, call={"num_images_per_prompt": 2}, same=False
    ),
    "several pictures, two branches": Row(
        "`num_images_per_prompt=2`", images.stable_diffusion_xl, call={"num_images_per_prompt": 2}, same=False,
        slow=True,
    ),
    "a batch of prompts": Row("`pipe([...])`", tokens.flux, call={"prompt": PROMPTS[:2]}, same=False),
    "a batch of prompts, two branches": Row(
        "`pipe([...], negative_prompt=[...])`", images.stable_diffusion_xl,
        call={"prompt": PROMPTS[:2], "negative_prompt": ["", "grey"]}, same=False,
    ),
    "image to image": Row(
        "`strength=0.75`", tokens.flux_img2img, call={"strength": 0.75}, same=False, starts=2, notes=_LATE
    ),
    "image to image, U-Net": Row(
        "`strength=0.75`", sdxl_img2img, call={"strength": 0.75}, same=False, starts=2, notes=_LATE,
        slow=True,
    ),
    "inpainting": Row("`strength=0.75`", flux_inpaint, call={"strength": 0.75}, same=False, starts=2, notes=_LATE),
    "inpainting, U-Net": Row(
        "`strength=0.75`", sdxl_inpaint, call={"strength": 0.75}, same=False, starts=2, notes=_LATE,
        slow=True,
    ),
    "ControlNet": Row(
        "`controlnet=` of the pipeline", flux_controlnet, same=False,
        notes="the pipeline runs the ControlNet itself in every step, predicted ones too",
    ),
    "ControlNet, U-Net": Row(
        "`controlnet=` of the pipeline", sdxl_controlnet, same=False, slow=True,
        notes="the pipeline runs the ControlNet itself in every step, predicted ones too",
    ),
    "Modular Diffusers": Row("`FluxAutoBlocks().init_pipeline(...)`", modular.flux, same=False),
    "Modular Diffusers with a guider": Row("`WanBlocks().init_pipeline(...)`", modular.wan, same=False),
    "Modular Diffusers, U-Net": Row(
        "`StableDiffusionXLAutoBlocks().init_pipeline(...)`", modular.stable_diffusion_xl, same=False, slow=True
    ),
    "Modular Diffusers, true guidance": Row(
        "`QwenImageAutoBlocks().init_pipeline(...)`", modular.qwen_image, same=False, slow=True
    ),
}  # fmt: skip
