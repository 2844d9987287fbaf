"""The fit of a ComfyUI calibration against the same by hand, on runs whose slopes are known."""

import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import fake_comfy as fake
from ertacache.core.fit import RidgeSums, prompt_weights
from ertacache.core.schedule import Schedule
from ertacache.core.timesteps import adjust, phi

T, N = 6, 3
SIGMAS = torch.linspace(1, 0, T + 1)
NOISE = torch.randn(N, 2, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def calibrating(tmp_path: Path) -> Iterator[ModuleType]:
    with fake.loaded(tmp_path):
        yield sys.modules[f"{fake.NAME}.calibrating"]


def slope(x: Tensor, sigma: float) -> Tensor:
    """Of the model here: it bends, so that no plan is exact."""
    return torch.sin(2 * x) + x * sigma


def model(x: Tensor, sigma: float) -> Tensor:
    """The denoised latents."""
    return x - sigma * slope(x, sigma)


def sample(answers: Any, sigmas: Tensor, seeds: slice) -> None:
    """Euler, as a sampler of ComfyUI would step the chosen seeds."""
    x = NOISE[seeds].clone()
    for i, (sigma, following) in enumerate(pairwise(sigmas.tolist())):
        denoised = answers.step(i, x, sigma, lambda n, x=x, sigma=sigma: model(x[n : n + 1], sigma))
        x = x + (x - denoised) / sigma * (following - sigma)
    answers.final(x)


def uncached() -> tuple[list[Tensor], list[Tensor]]:
    latents, slopes = [NOISE.clone()], list[Tensor]()
    for i in range(T):
        slopes.append(slope(latents[-1], float(SIGMAS[i])))
        latents.append(latents[-1] + slopes[-1] * (SIGMAS[i + 1] - SIGMAS[i]))
    return latents, slopes


def weights_by_hand(schedule: Schedule, levels: int, ridge: float, fitted: int) -> dict[int, list[float]]:
    """Step by step along the cached trajectory: ridge least squares towards the recorded next latent."""
    latents, _ = uncached()
    x, held, found = NOISE.clone(), list[Tensor](), dict[int, list[float]]()
    for i in range(T):
        length = SIGMAS[i + 1] - SIGMAS[i]
        if schedule.computed[i]:
            v = slope(x, float(SIGMAS[i]))
            held = [v, *held][:levels]
        else:
            goal = (latents[i + 1] - x) / length
            sums, left = RidgeSums(len(held)), goal - held[0]
            sums.update([h[:fitted] for h in held], left[:fitted], prompt_weights(left[:fitted], goal[:fitted]))
            found[i] = sums.solve(ridge).tolist()
            found[i][0] += 1
            v = sum((w * h for w, h in zip(found[i], held, strict=True)), torch.zeros_like(x))
        x = x + v * length
    return found


def test_each_step_is_fitted_on_the_cached_trajectory(calibrating: Any):
    request = calibrating.Request(3, seeds=N, holdout=1, schedule="even", levels=2, ridge=1e-2)
    found = calibrating.calibrate(request, "euler", SIGMAS, sample)
    assert found.schedule == Schedule.uniform(T, 3) and torch.equal(found.sigmas, SIGMAS)
    for i, weights in weights_by_hand(found.schedule, 2, 1e-2, N - 1).items():
        own = found.predictor.a[i, 0, 0, : len(weights)]
        torch.testing.assert_close(own, torch.tensor(weights), rtol=1e-4, atol=1e-5)
    assert not found.predictor.d.any() and not found.predictor.b.any()
    assert found.calls == calibrating.calls_of(request, "euler", T) == N * (T + 3) + 3


def test_the_errors_are_those_of_seeds_that_were_not_fitted(calibrating: Any):
    """Changing what a held-out seed is changes its error, and no coefficient."""
    request = calibrating.Request(3, seeds=N, holdout=1, schedule="even", levels=2)
    found = calibrating.calibrate(request, "euler", SIGMAS, sample)
    NOISE[-1] *= 2
    try:
        other = calibrating.calibrate(request, "euler", SIGMAS, sample)
    finally:
        NOISE[-1] /= 2
    assert torch.equal(found.predictor.a, other.predictor.a)
    assert len(found.errors) == len(found.fewer_steps) == 1 and found.errors != other.errors
    # K plain steps: the sampler's own grid, thinned.
    coarse, x = [*Schedule.uniform(T, 3).computed_steps, T], NOISE[-1:].clone()
    for a, b in pairwise(coarse):
        x = x + slope(x, float(SIGMAS[a])) * (SIGMAS[b] - SIGMAS[a])
    end = uncached()[0][-1][-1:]
    assert found.fewer_steps[0] == pytest.approx(float((x - end).norm() / end.norm()), rel=1e-5)


def test_a_searched_schedule_is_the_cheapest_of_all(calibrating: Any):
    from ertacache.core.paths import price_of
    from ertacache.core.run_gram import RunGrams, gram_of
    from ertacache.core.segment_costs import segment_costs

    request = calibrating.Request(3, seeds=N, holdout=1, levels=2)
    chosen = calibrating.calibrate(request, "euler", SIGMAS, sample).schedule
    latents, slopes = (torch.stack(part) for part in uncached())
    grams = RunGrams.of([gram_of(latents[:, n], slopes[:, n]) for n in range(N - 1)], T)
    costs = segment_costs(grams, 2, 0, ridge=request.ridge)
    every = [Schedule.from_steps(T, [0, i, T - 1]) for i in range(1, T - 1)]
    assert chosen == min(every, key=lambda schedule: price_of(costs, schedule))


def test_the_grid_is_that_of_the_measured_phi(calibrating: Any):
    request = calibrating.Request(3, seeds=N, holdout=1, schedule="even", levels=1, ridge=float("inf"), strength=0.7)
    found = calibrating.calibrate(request, "euler", SIGMAS, sample)
    # An infinite ridge repeats the last computed slope, on the sampler's grid.
    x, before, newest, phis = NOISE.clone(), torch.zeros(()), torch.zeros(()), dict[int, float]()
    for i in range(T):
        truth = slope(x, float(SIGMAS[i]))
        if found.schedule.computed[i]:
            newest = truth
        else:
            phis[i] = phi(float((newest - truth).abs().sum()), float((truth - before).abs().sum()))
        x, before = x + newest * (SIGMAS[i + 1] - SIGMAS[i]), truth
    torch.testing.assert_close(found.sigmas, adjust(SIGMAS, found.schedule, phis, 0.7).float(), rtol=1e-5, atol=1e-6)
    assert found.calls == calibrating.calls_of(request, "euler", T) == N * (T + T + 3) + 3
