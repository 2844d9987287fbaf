import torch

from dummies import GaussianMixture, LinearDenoiser, euler, shifted_sigmas


def test_the_linear_trajectory_has_its_closed_form():
    A = torch.tensor([[-0.4, 0.9], [-0.7, 0.2]], dtype=torch.float64)
    denoiser = LinearDenoiser(A, torch.tensor([0.5, -1.0], dtype=torch.float64))
    x, sigmas = torch.tensor([[1.0, 2.0], [-3.0, 0.5]], dtype=torch.float64), shifted_sigmas(9)
    for n, latent in enumerate(euler(denoiser, x, sigmas).latents):
        torch.testing.assert_close(latent, denoiser.latent(x, sigmas, n), rtol=1e-13, atol=1e-13)


def test_the_mixture_velocity_is_tweedies_formula():
    """E[noise | x] = −σ ∇ log p(x), and E[x_0 | x] follows from x = (1−σ) x_0 + σ noise."""
    mixture, sigma = GaussianMixture(dim=5), 0.4
    noise, label = mixture.draw(6, seed=1)
    x = noise.requires_grad_()
    variance = (1 - sigma) ** 2 * mixture.s**2 + sigma**2
    for labels, means in ((None, mixture.means.flatten(0, 1)[None]), (label, mixture.means[label])):
        squares = (x[:, None] - (1 - sigma) * means).square().sum(-1)
        (score,) = torch.autograd.grad(torch.logsumexp(-squares / (2 * variance), 1).sum(), x)
        expected_noise = -sigma * score
        expected_clean = (x - sigma * expected_noise) / (1 - sigma)
        velocity = mixture.velocity(x, sigma, labels)
        torch.testing.assert_close(velocity, expected_noise - expected_clean, rtol=1e-11, atol=1e-11)
