"""Every scheduler whose grid can be changed, in a dummy pipeline that calls it as pipelines do."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from dummies import GaussianMixture, LinearDenoiser
from dummy_pipeline import DummyPipeline, LinearModule, NamedMixtureModule, decode, label_of

FLOW: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
ANGLES: dict[str, Any] = {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "clip_sample": False}

SCHEDULERS: dict[str, Callable[[], Any]] = {
    "Euler": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    "UniPC": lambda: UniPCMultistepScheduler(**FLOW),
    "UniPC of order 3": lambda: UniPCMultistepScheduler(**FLOW, solver_order=3),
    "DPM-Solver": lambda: DPMSolverMultistepScheduler(**FLOW),
    "DDIM": lambda: DDIMScheduler(**ANGLES, rescale_betas_zero_snr=True),
    "DDIM on noise": lambda: DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    "CogVideoX's DDIM": lambda: CogVideoXDDIMScheduler(**ANGLES, rescale_betas_zero_snr=True),
}


class SolverPipeline(DummyPipeline):
    """As the base, under any scheduler; without guidance unless the module has branches."""

    def __init__(self, module: Any, latent_shape: tuple[int, ...], branches: bool, scheduler: Any) -> None:
        super().__init__(module, latent_shape, branches)
        self.scheduler = scheduler

    def __call__(  # type: ignore[override]
        self,
        prompt: Sequence[str],
        num_inference_steps: int = 30,
        guidance_scale: float = 7.0,
        generator: Sequence[torch.Generator] = (),
        output_type: str = "pil",
    ) -> tuple[Tensor]:
        label = torch.tensor([label_of(text) for text in prompt])
        x = torch.cat([torch.randn(1, *self.latent_shape, generator=g, dtype=torch.float64) for g in generator])
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            output = self._guided(x, t.expand(len(x)), label, guidance_scale)
            x = self.scheduler.step(output, t, x, return_dict=False)[0].double()
        return (x if output_type == "latent" else decode(x),)


def linear(scheduler: Any, dim: int = 1) -> SolverPipeline:
    """v = A x + c t on latents [B, 1, dim]: UniPC needs more than two axes."""
    A = torch.diag(torch.linspace(0.5, -0.8, dim, dtype=torch.float64))
    c = torch.linspace(0.3, 0.1, dim, dtype=torch.float64)
    return SolverPipeline(LinearModule(LinearDenoiser(A, c)), (1, dim), False, scheduler)


def mixture(scheduler: Any, seed: int = 0) -> SolverPipeline:
    """The exact velocity of a Gaussian mixture under guidance; for flow solvers."""
    return SolverPipeline(NamedMixtureModule(GaussianMixture(seed=seed)), (4, 4), True, scheduler)
