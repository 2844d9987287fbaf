"""Calibration of the mixture pipeline done by hand: one loop, no part of the package but the scheduler's grid.

Everything that the package finds on `mixture_pipeline` is compared with this.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from dummies import GaussianMixture
from dummy_pipeline import SHIFT, label_of

Key = tuple[int, str]


@dataclass
class Found:
    """What one closed loop gave: by (step, target), and per step."""

    latents: Tensor
    grid: Tensor
    weights: dict[Key, Tensor] = field(default_factory=dict[Key, Tensor])
    kappa: dict[Key, Tensor] = field(default_factory=dict[Key, Tensor])
    beta: dict[Key, Tensor] = field(default_factory=dict[Key, Tensor])
    phis: dict[int, float] = field(default_factory=dict[int, float])


class ByHand:
    """Prompts of the mixture, prompt n from the noise of seed + n; two branches with guidance w; Euler."""

    def __init__(self, prompts: Sequence[str], seed: int, T: int, w: float, mixture: GaussianMixture) -> None:
        generators = [torch.Generator().manual_seed(seed + n) for n in range(len(prompts))]
        self.x0 = torch.cat([torch.randn(1, 4, 4, generator=g, dtype=torch.float64) for g in generators])
        self.label = torch.tensor([label_of(prompt) for prompt in prompts])
        self.w, self.T, self.mixture = w, T, mixture
        scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
        scheduler.set_timesteps(T)
        self.sigmas: Tensor = scheduler.sigmas

    def call(self, x: Tensor, sigma: Tensor) -> dict[str, Tensor]:
        """The two outputs and the guided one at a float32 sigma, which reaches the denoiser as 1000 σ."""
        s, flat = float(sigma * 1000) / 1000, x.flatten(1)
        cond = self.mixture.velocity(flat, s, self.label).view_as(x)
        uncond = self.mixture.velocity(flat, s).view_as(x)
        return {"cond": cond, "uncond": uncond, "guided": uncond + self.w * (cond - uncond)}

    def step(self, x: Tensor, i: int, g: Tensor, grid: Tensor) -> Tensor:
        """As the scheduler does it: the sample in float32, the sum in the output's dtype."""
        return x.float() + (grid[i + 1] - grid[i]) * g

    def uncached(self) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Final latents, and per step the latent and what the solver received."""
        x, xs, gs = self.x0, [], []
        for i in range(self.T):
            xs.append(x)
            gs.append(self.call(x, self.sigmas[i])["guided"])
            x = self.step(x, i, gs[-1], self.sigmas)
        return x, xs, gs

    def threshold(self, lam: float, residual: bool) -> str:
        """Algorithm 2 as a mask: predict while the mean ℓ1 error of reuse is below λ of the uncached residual's."""
        _, xs, gs = self.uncached()
        x, mask, newest = self.x0, "", (self.x0, self.x0)
        for i in range(self.T):
            g = self.call(x, self.sigmas[i])["guided"]
            reused = newest[0] + (x - newest[1] if residual else 0)
            relative = (reused - g).abs().mean() / (gs[i] - xs[i]).abs().mean()
            if 0 < i < self.T - 1 and relative < lam:
                mask, g = mask + ".", reused
            else:
                mask, newest = mask + "#", (g, x)
            x = self.step(x, i, g, self.sigmas)
        return mask

    def run(
        self,
        mask: str,
        *,
        targets: Sequence[str] = ("guided",),
        residual: bool = True,
        levels: int = 0,
        branches: bool = False,
        ridge: float = 0.0,
        aim: str = "step",
        rectifier: str | None = None,
        sigmoid: bool = False,
        strength: float = 0.0,
        grid: Tensor | None = None,
    ) -> Found:
        """One closed loop with everything solved on the way, all prompts at once."""
        exact = (self.sigmas if grid is None else grid).double()
        x, found, held, before = self.x0, Found(self.x0, exact), [], {}
        end, way, _ = self.uncached()
        way = [*way, end]
        for i in range(self.T):
            truth = self.call(x, exact[i].float())
            used = dict(truth)
            errors, changes = 0.0, 0.0
            for target in targets if mask[i] == "." else ():
                v = held[0][target] + (x - held[0]["x"] if residual else 0)
                if levels:
                    sources = ("cond", "uncond") if branches else (target,)
                    features = [past[source] for past in held[:levels] for source in sources]
                    back = (way[i + 1] - x) / (self.sigmas[i + 1] - self.sigmas[i]).double()
                    goal = truth[target] if aim == "step" else back
                    found.weights[i, target] = weighted_ridge(features, goal - v, goal, ridge)
                    v = v + sum(a * f for a, f in zip(found.weights[i, target], features, strict=True))
                errors += float((v - truth[target]).abs().sum())
                changes += float((truth[target] - before[target]).abs().sum())
                if rectifier:
                    kappa, beta = line(v, v - truth[target], rectifier)
                    found.kappa[i, target], found.beta[i, target] = kappa, beta
                    v = v - torch.sigmoid(4 * kappa * v + 4 * beta - 2) if sigmoid else v - kappa * v - beta
                used[target] = v
            if mask[i] == "." and strength:
                found.phis[i] = min(max(1 - errors / changes, 0.0), 1.0)
                exact = stretched(exact, i, 1 - strength * (1 - found.phis[i]))
            if mask[i] == "#":
                held = [{**truth, "x": x}, *held]
            before = truth
            if "cond" in targets:
                used["guided"] = used["uncond"] + self.w * (used["cond"] - used["uncond"])
            x = self.step(x, i, used["guided"], exact.float())
        found.latents, found.grid = x, exact
        return found


def weighted_ridge(features: list[Tensor], left: Tensor, truth: Tensor, ridge: float) -> Tensor:
    """argmin Σ_p w_p |left − F a|² + ridge aᵀ diag(Fᵀ W F) a, as least squares with one more row per feature."""
    energy = left.flatten(1).square().sum(1) + 1e-6 * truth.flatten(1).square().sum(1)
    root = energy.rsqrt()[:, None]
    F = torch.stack([(f.flatten(1) * root).flatten() for f in features], 1)
    rows = torch.diag((ridge * F.square().sum(0)).sqrt())
    y = torch.cat([(left.flatten(1) * root).flatten(), torch.zeros(len(features), dtype=F.dtype)])
    return torch.linalg.lstsq(torch.cat([F, rows]), y[:, None], driver="gelsd").solution[:, 0]


def line(v: Tensor, error: Tensor, granularity: str) -> tuple[Tensor, Tensor]:
    """Ordinary least squares error ≈ κ v + β: over all, per channel (the last axis), or per element toward κ = 0."""
    if granularity == "element":
        dv, de = v - v.mean(0), error - error.mean(0)
        spread = dv.square().sum(0)
        kappa = (dv * de).sum(0) / (spread + spread.mean())
        return kappa, error.mean(0) - kappa * v.mean(0)
    channels = [v.flatten()] if granularity == "scalar" else list(v.flatten(0, -2).T)
    targets = [error.flatten()] if granularity == "scalar" else list(error.flatten(0, -2).T)
    fits = [
        torch.linalg.lstsq(torch.stack([c, torch.ones_like(c)], 1), e[:, None]).solution[:, 0]
        for c, e in zip(channels, targets, strict=True)
    ]
    solved = torch.stack(fits, 1)
    shape = () if granularity == "scalar" else (*(1,) * (v.ndim - 2), len(fits))
    return solved[0].reshape(shape), solved[1].reshape(shape)


def stretched(grid: Tensor, i: int, factor: float) -> Tensor:
    """Interval i times a factor (a thousandth at least); the rest of the way shared out as before."""
    steps = grid.diff()
    kept = max(factor, 1e-3) * steps[i]
    rest = steps[i + 1 :].sum()
    if i + 1 < len(steps):
        steps[i + 1 :] *= (steps[i] + rest - kept) / rest
        steps[i] = kept
    return torch.cat([grid[:1], grid[0] + steps.cumsum(0)])
