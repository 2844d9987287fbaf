"""The wrappers of a calibration: all seeds go through one sampling run, and the model is called for one at a time."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from .played_steps import slope
from .playing import check_alone
from .samplers import Steps, sampler_name


class Recorder:
    """Keeps what N seeds' uncached runs leave, in float32 on the CPU.

    Attributes:
        latents: [T+1, N, *], the last being what the sampler returned. slopes: [T, N, *]. Both empty before the end.
        calls: of the model.
    """

    def __init__(self) -> None:
        self.latents = self.slopes = torch.zeros(0)
        self.calls = 0
        self._latents, self._slopes = list[Tensor](), list[Tensor]()

    def step(self, i: int, x: Tensor, sigma: float, call: Callable[[int], Tensor]) -> Tensor:
        denoised = each(len(x), call)
        self.calls += len(x)
        self._latents.append(kept(x))
        self._slopes.append(kept(slope(x, denoised, sigma)))
        return denoised

    def final(self, x: Tensor) -> None:
        self.latents, self.slopes = torch.stack([*self._latents, kept(x)]), torch.stack(self._slopes)
        self._latents.clear()
        self._slopes.clear()


class Answers(Protocol):
    """What a calibration does in a run: `step` gives the denoised latents [N, *] of a step, `final` sees the end."""

    def step(self, i: int, x: Tensor, sigma: float, call: Callable[[int], Tensor]) -> Tensor: ...

    def final(self, x: Tensor) -> None: ...


class Watcher:
    """Hands one sampling run over N latents to an `Answers`.

    The sampler steps all N at once, so that a step is fitted the moment it is reached; the model sees one latent at a
    time and needs no more memory than in use.

    Args:
        on_call: called after each model call, for a progress bar.
    """

    def __init__(self, answers: Answers, on_call: Callable[[], object] = lambda: None) -> None:
        self._answers, self._on_call = answers, on_call
        self._steps = Steps("none", ())

    def sampler_sample(self, executor: Any, guider: Any, sigmas: Tensor, *rest: Any, **named: Any) -> Tensor:
        """Around the sampler (WrappersMP.SAMPLER_SAMPLE)."""
        check_alone(guider.model_options)
        steps = self._steps = Steps(sampler_name(executor.class_obj), sigmas)
        final = executor(guider, sigmas, *rest, **named)
        steps.check_ended()
        self._answers.final(final)
        return final

    def predict_noise(self, executor: Any, x: Tensor, timestep: Tensor, *rest: Any, **named: Any) -> Tensor:
        """Around a guided call (WrappersMP.PREDICT_NOISE)."""
        sigma = float(timestep[0])
        step = self._steps.next(sigma)

        def call(n: int) -> Tensor:
            found = executor(x[n : n + 1], timestep[n : n + 1], *rest, **named)
            self._on_call()
            return found

        return self._answers.step(step, x, sigma, call)


def each(count: int, call: Callable[[int], Tensor]) -> Tensor:
    """The model's answers for all of N latents, [N, *]."""
    return torch.cat([call(n) for n in range(count)])


def kept(x: Tensor) -> Tensor:
    """A copy in float32 on the CPU."""
    return x.detach().to("cpu", torch.float32, copy=True)


def relative_errors(final: Tensor, reference: Tensor) -> list[float]:
    """RMS of the difference over that of the reference, of each latent in [N, *]."""
    error, size = ((x.double().flatten(1)).square().mean(1).sqrt() for x in (final - reference, reference))
    return [float(value) for value in error / size.clamp(min=torch.finfo(torch.float64).tiny)]
