"""Denoisers whose velocity is known exactly, so that tests can compare with exact values. All float64."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ertacache.core.predictor import History, Predictor
from ertacache.core.schedule import Schedule

Velocity = Callable[[Tensor, float], Tensor]
"""(x [B, D], sigma) -> v [B, D]."""


def shifted_sigmas(T: int, shift: float = 2.0) -> Tensor:
    """[T+1] the grid of a shifted flow-matching scheduler, from 1 down to 0."""
    t = torch.arange(T, -1, -1, dtype=torch.float64) / T
    return shift * t / (1 + (shift - 1) * t)


class Run(NamedTuple):
    """One Euler run: the latents [T+1, B, D] and what the solver received [T, B, D]."""

    latents: Tensor
    outputs: Tensor


def euler(velocity: Velocity, x: Tensor, sigmas: Tensor) -> Run:
    """The uncached run."""
    schedule = Schedule.all_computed(len(sigmas) - 1)
    return cached_euler(velocity, x, sigmas, schedule, Predictor.plain_reuse(schedule, ["cond"]))


def cached_euler(velocity: Velocity, x: Tensor, sigmas: Tensor, schedule: Schedule, predictor: Predictor) -> Run:
    """Euler with the one context "cond" computed or predicted as `schedule` says."""
    predictor.for_schedule(schedule)
    history, latents, outputs = History(predictor.levels), [x], []
    for i, computed in enumerate(schedule.computed):
        if computed:
            output = velocity(x, float(sigmas[i]))
            history.push("cond", output, x)
        else:
            output = predictor.terms(i, "cond")(history, x)
        x = x + (sigmas[i + 1] - sigmas[i]) * output
        latents.append(x)
        outputs.append(output)
    return Run(torch.stack(latents), torch.stack(outputs))


@dataclass(frozen=True, eq=False)
class LinearDenoiser:
    """v(x, t) = A x + c t, for A [D, D] and c [D]."""

    A: Tensor
    c: Tensor

    def __call__(self, x: Tensor, t: float) -> Tensor:
        return x @ self.A.T + self.c * t

    def propagator(self, sigmas: Tensor, start: int, stop: int) -> Tensor:
        """[D, D] what Euler steps start..stop-1 multiply a latent by: the product of (I + Δσ_i A)."""
        product = torch.eye(len(self.A), dtype=torch.float64)
        for i in range(start, stop):
            product = product + float(sigmas[i + 1] - sigmas[i]) * self.A @ product
        return product

    def latent(self, x0: Tensor, sigmas: Tensor, n: int) -> Tensor:
        """[B, D] the latent before step n: M_{n-1}…M_0 x_0 + Σ_j M_{n-1}…M_{j+1} Δσ_j σ_j c."""
        forced = [self.propagator(sigmas, j + 1, n) @ self.c * sigmas.diff()[j] * sigmas[j] for j in range(n)]
        return x0 @ self.propagator(sigmas, 0, n).T + sum(forced)


class GaussianMixture:
    """The exact flow of x = (1−σ) x_0 + σ noise for x_0 ~ Σ_m N(μ_m, s² I); each class owns some modes."""

    def __init__(self, classes: int = 4, modes: int = 3, dim: int = 16, s: float = 0.12, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.means = 0.7 * torch.randn(classes, modes, dim, generator=generator, dtype=torch.float64)
        self.s = s

    def draw(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """Noise [n, D] and labels [n]."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(n, self.means.shape[-1], generator=generator, dtype=torch.float64)
        return noise, torch.randint(len(self.means), (n,), generator=generator)

    def velocity(self, x: Tensor, sigma: float, label: Tensor | None = None) -> Tensor:
        """E[noise − x_0 | x] [B, D], given labels [B] or, without them, over all modes."""
        means = self.means.flatten(0, 1)[None] if label is None else self.means[label]
        variance = (1 - sigma) ** 2 * self.s**2 + sigma**2
        offset = x[:, None] - (1 - sigma) * means
        share = torch.softmax(-offset.square().sum(-1) / (2 * variance), 1)[..., None]
        noise = sigma / variance * offset
        clean = means + (1 - sigma) * self.s**2 / variance * offset
        return (share * (noise - clean)).sum(1)

    def guided(self, label: Tensor, weight: float) -> Velocity:
        """Classifier-free guidance: u + weight · (c − u)."""

        def velocity(x: Tensor, sigma: float) -> Tensor:
            unconditional = self.velocity(x, sigma)
            return unconditional + weight * (self.velocity(x, sigma, label) - unconditional)

        return velocity
