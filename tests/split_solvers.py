"""Every solver whose state can be handed over, on a small model, and the call that is split."""

from typing import Any

import diffusers
import torch

from small_images import stable_diffusion, stable_diffusion_3
from small_parts import BETAS, SIZE

_VP: dict[str, Any] = {**BETAS, "steps_offset": 1}
_FLOW: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}

#: Class, configuration, and a place to hand over at where the whole of its history is there.
SOLVERS: dict[str, tuple[str, dict[str, Any], int]] = {
    "Euler of a flow": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, 2),
    "Euler": ("EulerDiscreteScheduler", _VP, 2),
    "Euler, Karras": ("EulerDiscreteScheduler", {**_VP, "use_karras_sigmas": True}, 2),
    "Euler, ancestral": ("EulerAncestralDiscreteScheduler", _VP, 2),
    "DDIM": ("DDIMScheduler", {**_VP, "clip_sample": False}, 2),
    "CogVideoX's DDIM": ("CogVideoXDDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}, 2),
    "LCM": ("LCMScheduler", _VP, 2),
    "Heun": ("HeunDiscreteScheduler", _VP, 4),
    "DPM-Solver++ 2M": ("DPMSolverMultistepScheduler", _VP, 3),
    "DPM-Solver++ 3M": ("DPMSolverMultistepScheduler", {**_VP, "solver_order": 3}, 3),
    "DPM-Solver++ 2M of a flow": ("DPMSolverMultistepScheduler", _FLOW, 3),
    "DPM-Solver++ 2M, SDE": ("DPMSolverMultistepScheduler", {**_VP, "algorithm_type": "sde-dpmsolver++"}, 3),
    "UniPC": ("UniPCMultistepScheduler", _VP, 3),
    "UniPC of order 3": ("UniPCMultistepScheduler", {**_VP, "solver_order": 3}, 3),
    "UniPC of a flow": ("UniPCMultistepScheduler", _FLOW, 3),
    "DEIS": ("DEISMultistepScheduler", _VP, 3),
    "LMS": ("LMSDiscreteScheduler", _VP, 5),
    "PNDM": ("PNDMScheduler", {**_VP, "skip_prk_steps": True}, 5),
}
STEPS = 6
PROMPTS = ["a small red ring", "a large blue square"]


def pipeline(name: str) -> Any:
    """Stable Diffusion around the same small weights each time: 1.5, or 3 for the solver of a flow."""
    scheduler, config, _ = SOLVERS[name]
    made = getattr(diffusers, scheduler)(**config)
    if "flow" not in name:
        return stable_diffusion(made).pipe
    pipe = stable_diffusion_3().pipe
    pipe.scheduler = made
    return pipe


def call(**more: Any) -> dict[str, Any]:
    """Two prompts, guided, each from noise of its own."""
    generators = [torch.Generator().manual_seed(n) for n in range(len(PROMPTS))]
    return {
        "prompt": PROMPTS, "negative_prompt": ["", "a ring"], "guidance_scale": 4.0, "num_inference_steps": STEPS,
        "generator": generators, **SIZE, **more,
    }  # fmt: skip
