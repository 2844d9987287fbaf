"""Latents between recorded ones: exact at the nodes and on cubics."""

import pytest
import torch

from dummies import shifted_sigmas
from ertacache.core.interpolation import between

T = 9
SIGMAS = shifted_sigmas(T).float()


def cubic(sigma: torch.Tensor) -> torch.Tensor:
    powers = torch.stack([sigma**k for k in range(4)])
    return (powers.T @ torch.tensor([[1.0, -2.0], [0.5, 3.0], [-4.0, 1.0], [2.0, -0.25]], dtype=torch.float64))[:, None]


def test_a_recorded_sigma_gives_the_recorded_latent_itself():
    latents = torch.randn(T + 1, 2, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    for i, sigma in enumerate(SIGMAS.tolist()):
        assert torch.equal(between(SIGMAS, latents, sigma), latents[i])


def test_a_cubic_is_met_everywhere():
    latents = cubic(SIGMAS.double())
    for sigma in torch.linspace(0, 1, 57, dtype=torch.float64):
        torch.testing.assert_close(between(SIGMAS, latents, float(sigma)), cubic(sigma[None])[0], rtol=2e-6, atol=2e-7)


def test_the_four_nearest_latents_count():
    latents = torch.eye(T + 1)
    sigma = 0.4 * float(SIGMAS[3]) + 0.6 * float(SIGMAS[4])
    used = between(SIGMAS, latents, sigma).nonzero().flatten().tolist()
    assert used == sorted((SIGMAS - sigma).abs().argsort()[:4].tolist())


@pytest.mark.parametrize(("sigma", "node"), [(1.5, 0), (-0.1, T)])
def test_outside_the_grid_its_end_stands_in(sigma: float, node: int):
    latents = torch.eye(T + 1)
    assert torch.equal(between(SIGMAS, latents, sigma), latents[node])


def test_a_run_of_one_step_is_a_line():
    latents = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    torch.testing.assert_close(
        between(torch.tensor([1.0, 0.0]), latents, 0.25), torch.tensor([0.75], dtype=torch.float64)
    )
