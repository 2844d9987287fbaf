"""Pipelines of a page around denoisers whose velocity is known exactly; they run in milliseconds, in float64.

They have what the package needs of a diffusers pipeline and no more: a real scheduler, a denoiser module, a call.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.models.cache_utils import CacheMixin
from torch import Tensor, nn

from dummies import GaussianMixture, LinearDenoiser
from ertacache.profile.profile import Profile

SHIFT = 2.0
#: The number at the end picks the class.
PROMPTS = [f"prompt {n} of class {n * 7 % 4}" for n in range(8)]


def label_of(prompt: str) -> int:
    """Class of a prompt."""
    return int(prompt.split()[-1])


@dataclass
class Made:
    """Denoiser calls that really ran, seen from below whatever is attached.

    Attributes:
        sizes: samples in the batch of each. inside: calls under way. most: the most that ever were at a time.
        pause: what a call does in its middle.
    """

    sizes: list[int] = field(default_factory=list[int])
    inside: int = 0
    most: int = 0
    pause: Callable[[], object] = lambda: None

    @contextmanager
    def one(self, x: Tensor) -> Generator[None]:
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.sizes.append(len(x))
        try:
            self.pause()
            yield
        finally:
            self.inside -= 1

    @property
    def samples(self) -> int:
        return sum(self.sizes)


class MixtureModule(nn.Module):
    """The exact velocity of a Gaussian mixture on latents [B, 4, 4]."""

    def __init__(self, mixture: GaussianMixture) -> None:
        super().__init__()
        self.made = Made()
        self.mixture = mixture
        self.register_buffer("means", mixture.means)
        self.config = {"classes": mixture.means.shape[0], "dim": mixture.means.shape[-1]}

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, label: Tensor | None = None, return_dict: bool = True
    ) -> tuple[Tensor]:
        """timestep [B] = 1000 σ; the label [B] or, without it, the unconditional velocity."""
        sigma = float(timestep[0]) / 1000
        with self.made.one(hidden_states):
            return (self.mixture.velocity(hidden_states.flatten(1), sigma, label).view_as(hidden_states),)


class NamedMixtureModule(MixtureModule, CacheMixin):
    """The same with diffusers' cache contexts."""


class LinearModule(nn.Module, CacheMixin):
    """v = A x + c t on latents [B, D]."""

    def __init__(self, denoiser: LinearDenoiser) -> None:
        super().__init__()
        self.made = Made()
        self.denoiser = denoiser
        self.register_buffer("matrix", denoiser.A)
        self.config = {"dim": len(denoiser.A)}

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, label: Tensor | None = None, return_dict: bool = True
    ) -> tuple[Tensor]:
        with self.made.one(hidden_states):
            return (self.denoiser(hidden_states, float(timestep[0]) / 1000),)


class DummyPipeline:
    """A pipeline that counts its calls and, if asked, dies in the middle of one.

    Attributes:
        calls: pipeline calls so far, those on shallow copies too.
        fail_at: the number of the call that dies in its second step, or None.
        branches: conditional and unconditional calls (guidance u + w (c − u)), else one call.
        start: first step of every run, as in image to image.
    """

    def __init__(self, module: nn.Module, latent_shape: tuple[int, ...], branches: bool) -> None:
        self.scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
        self.transformer = module
        self.latent_shape, self.branches = latent_shape, branches
        self.fail_at, self.start = None, 0
        self.seen: list[dict[str, Any]] = []  # shallow copies share it

    @property
    def calls(self) -> int:
        return len(self.seen)

    def set_progress_bar_config(self, **config: Any) -> None:
        self._progress_bar_config = config

    def __call__(
        self,
        prompt: Sequence[str],
        num_inference_steps: int = 30,
        guidance_scale: float = 7.0,
        generator: Sequence[torch.Generator] = (),
        negative_prompt: Sequence[str] | None = None,
        output_type: str = "pil",
        sigmas: Sequence[float] | None = None,
        extra: Any = None,
    ) -> tuple[Tensor]:
        bar = dict(self._progress_bar_config)
        seeds = [g.initial_seed() for g in generator]
        self.seen.append({"prompt": prompt, "negative_prompt": negative_prompt, "bar": bar, "seeds": seeds})
        number = self.calls
        label = torch.tensor([label_of(text) for text in prompt])
        x = torch.cat([torch.randn(1, *self.latent_shape, generator=g, dtype=torch.float64) for g in generator])
        self.scheduler.set_timesteps(num_inference_steps if sigmas is None else None, sigmas=sigmas)
        self.scheduler.set_begin_index(self.start)
        for n, t in enumerate(self.scheduler.timesteps[self.start :]):
            if number == self.fail_at and n == 1:
                raise ConnectionError("the machine went away")
            output = self._guided(x, t.expand(len(x)), label, guidance_scale)
            x = self.scheduler.step(output, t, x, return_dict=False)[0]
        return (x if output_type == "latent" else decode(x),)

    def _guided(self, x: Tensor, t: Tensor, label: Tensor, weight: float) -> Tensor:
        context = getattr(self.transformer, "cache_context", lambda name: nullcontext())
        with context("cond"):
            cond = self.transformer(hidden_states=x, timestep=t, label=label, return_dict=False)[0]
        if not self.branches:
            return cond
        with context("uncond"):
            uncond = self.transformer(hidden_states=x, timestep=t, return_dict=False)[0]
        return uncond + weight * (cond - uncond)


def decode(latents: Tensor) -> Tensor:
    """[B, *] -> images [B, 3, 12, 12] in [0, 1]."""
    values = latents.flatten(1).sigmoid()
    return values[:, torch.arange(3 * 144) % values.shape[1]].view(-1, 3, 12, 12).float()


def mixture_pipeline(seed: int = 0, named: bool = True) -> DummyPipeline:
    """Contexts cond and uncond, or call0 and call1 without `named`."""
    module = (NamedMixtureModule if named else MixtureModule)(GaussianMixture(seed=seed))
    return DummyPipeline(module, (4, 4), branches=True)


def linear_pipeline(A: Tensor, c: Tensor) -> DummyPipeline:
    """One context, cond; the prompt only picks the noise."""
    return DummyPipeline(LinearModule(LinearDenoiser(A, c)), (len(A),), branches=False)


def untimed(profile: Profile) -> Profile:
    """Without what the clock said, which differs from run to run."""
    return replace(profile, provenance=replace(profile.provenance, measured={}))
