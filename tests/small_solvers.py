"""Every kind of scheduler that diffusers has for images, on one small U-Net."""

from typing import Any

import diffusers

from small_images import stable_diffusion
from small_parts import BETAS
from supported import Small

_VP: dict[str, Any] = {**BETAS, "steps_offset": 1}
_TWICE = "evaluates the denoiser 2 times per step"

#: Class, configuration and, where it is refused, a pattern of the reason.
SOLVERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "DDIM": ("DDIMScheduler", {**_VP, "clip_sample": False}, ""),
    "DDPM": ("DDPMScheduler", {**_VP, "clip_sample": False}, ""),
    "Euler": ("EulerDiscreteScheduler", {**_VP}, ""),
    "Euler, ancestral": ("EulerAncestralDiscreteScheduler", {**_VP}, ""),
    "EDM Euler": ("EDMEulerScheduler", {}, ""),
    "DPM-Solver++ 2M": ("DPMSolverMultistepScheduler", {**_VP}, ""),
    "DPM-Solver++ 2M, SDE": ("DPMSolverMultistepScheduler", {**_VP, "algorithm_type": "sde-dpmsolver++"}, ""),
    "DPM-Solver++ 2S": ("DPMSolverSinglestepScheduler", {**BETAS, "lower_order_final": True}, ""),
    "UniPC": ("UniPCMultistepScheduler", {**_VP}, ""),
    "DEIS": ("DEISMultistepScheduler", {**_VP}, ""),
    "LMS": ("LMSDiscreteScheduler", {**_VP}, ""),
    "SA-Solver": ("SASolverScheduler", {**_VP}, ""),
    "LCM": ("LCMScheduler", {**_VP}, ""),
    "TCD": ("TCDScheduler", {**_VP}, ""),
    "PNDM": ("PNDMScheduler", {**_VP, "skip_prk_steps": True}, "visits timestep .* twice"),
    "Heun": ("HeunDiscreteScheduler", {**_VP}, _TWICE),
    "flow Heun": ("FlowMatchHeunDiscreteScheduler", {}, _TWICE),
    "IPNDM": ("IPNDMScheduler", {}, "keeps no sigmas"),
    "CogVideoX DPM": (
        "CogVideoXDPMScheduler",
        {"steps_offset": 1, "clip_sample": False},
        "takes model_output, old_",
    ),
}


def on_a_small_unet(name: str) -> Small:
    scheduler, config, refused = SOLVERS[name]
    small = stable_diffusion(getattr(diffusers, scheduler)(**config))
    small.refused = {"guided": refused} if refused else {}
    return small
