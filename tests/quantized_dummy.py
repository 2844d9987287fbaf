"""The mixture pipeline with a denoiser that is off by a known gain and bias at every step."""

from typing import Any

import torch
from torch import Tensor

from dummy_pipeline import DummyPipeline, NamedMixtureModule, mixture_pipeline
from ertacache.core.compensation import Compensation
from ertacache.core.predictor import Predictor
from ertacache.core.schedule import Schedule
from ertacache.profile.profile import Profile, Provenance
from ertacache.runtime.identity import identity_of

T, W, SEED = 6, 4.0, 5
PROMPTS = [f"prompt {n} of class {n * 7 % 4}" for n in range(12)]
CALL: dict[str, Any] = {"num_inference_steps": T, "guidance_scale": W}


def off_pipeline(gain: float = 0.1, bias: float = 0.05) -> DummyPipeline:
    """Its denoiser returns (1 + gain σ) v + bias σ k for channel k, the last axis of latents [B, 4, 4]."""
    pipe = mixture_pipeline()
    pipe.set_progress_bar_config()
    exact = type(pipe.transformer).forward

    def forward(self: Any, hidden_states: Tensor, timestep: Tensor, label: Tensor | None = None, **more: Any) -> Any:
        v = exact(self, hidden_states, timestep, label)[0]
        sigma = float(timestep[0]) / 1000
        return (v * (1 + gain * sigma) + bias * sigma * torch.arange(4).to(v),)

    # Of the same name: a quantised denoiser is of the class that it was.
    pipe.transformer.__class__ = type("NamedMixtureModule", (NamedMixtureModule,), {"forward": forward})
    return pipe


def ideal(sigmas: Tensor, gain: float = 0.1, bias: float = 0.05) -> Compensation:
    """What undoes `off_pipeline` exactly: õ = (1 + gain σ) o + bias σ k on both branches, and so on the guided one."""
    s = sigmas[:-1].double()[:, None]
    scale = (1 / (1 + gain * s)).expand(-1, 4)
    shift = -bias * s * torch.arange(4).double() * scale
    return Compensation(scale.float().contiguous(), torch.zeros(len(s), 4), shift.float())


def played(
    pipe: DummyPipeline, sigmas: Tensor, table: Compensation | None, mask: str = "#" * T, **facts: Any
) -> Profile:
    """A profile by hand: plain reuse where the mask predicts, and this table."""
    schedule = Schedule.from_mask(mask)
    grid = sigmas.float()
    return Profile(
        schedule, "guided", Predictor.plain_reuse(schedule, ["guided"]), grid, grid, None,
        Provenance(
            **identity_of(pipe), num_inference_steps=schedule.T, contexts=("cond", "uncond"), guidance_weight=W,
            embedded_guidance=None, call={}, latent_shape=(4, 4), channel_axis=-1, dtype="float64", prompt_count=0,
            prompt_hash="", holdout_count=0, seed=0, method={}, versions={}, heldout={}, **facts,
        ),
        compensation=table,
    )  # fmt: skip
