"""Pairs of models whose velocities are known exactly: a mixture and one that is off, and two linear ones."""

from typing import Any

import torch
from torch import Tensor

from dummies import GaussianMixture
from dummy_pipeline import DummyPipeline, NamedMixtureModule, linear_pipeline

T, W, SEED = 6, 2.0, 5
PROMPTS = [f"prompt {n} of class {n * 7 % 4}" for n in range(12)]
CALL: dict[str, Any] = {"num_inference_steps": T, "guidance_scale": W}


class LargeModule(NamedMixtureModule):
    """A mixture that multiplies matrices of 16 by `width` beside, so that operations are counted."""

    width = 64

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, label: Tensor | None = None, return_dict: bool = True
    ) -> tuple[Tensor]:
        _ = hidden_states.flatten(1) @ torch.ones(16, self.width, dtype=torch.float64)
        return super().forward(hidden_states, timestep, label)


class OffModule(LargeModule):
    """(1 + gain σ) v + bias (1 − σ) k for channel k, the last axis of latents [B, 4, 4]."""

    width, gain, bias = 16, 0.3, 0.1

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, label: Tensor | None = None, return_dict: bool = True
    ) -> tuple[Tensor]:
        v = super().forward(hidden_states, timestep, label)[0]
        sigma = float(timestep[0]) / 1000
        return (v * (1 + self.gain * sigma) + self.bias * (1 - sigma) * torch.arange(4).to(v),)


def mixtures() -> tuple[DummyPipeline, DummyPipeline]:
    """A large model and a small one that is off by a known line; neither is linear."""
    pair = tuple(
        DummyPipeline(kind(GaussianMixture(seed=0)), (4, 4), branches=True) for kind in (LargeModule, OffModule)
    )
    for pipe in pair:
        pipe.set_progress_bar_config()
    return pair  # type: ignore[return-value]


def linear(*, like: bool) -> tuple[DummyPipeline, DummyPipeline]:
    """v = A x + c t, each model with a c of its own, and where they are not alike with an A of its own."""
    drawn = torch.Generator().manual_seed(1)
    A = 0.5 * torch.randn(3, 3, generator=drawn, dtype=torch.float64)
    c = torch.randn(2, 3, generator=drawn, dtype=torch.float64)
    other = A if like else A + 0.2 * torch.randn(3, 3, generator=drawn, dtype=torch.float64)
    pair = linear_pipeline(A, c[0]), linear_pipeline(other, c[1])
    for pipe in pair:
        pipe.set_progress_bar_config()
    return pair
