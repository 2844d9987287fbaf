import pytest
import torch
from torch import Tensor

from dummies import GaussianMixture, Run, cached_euler, euler, shifted_sigmas
from ertacache.core.analysis import decompose
from ertacache.core.predictor import Predictor
from ertacache.core.schedule import Schedule
from ertacache.errors import InvalidArgument

T, SIGMAS = 30, shifted_sigmas(30)
SCHEDULE = Schedule.uniform(T, 15)


@pytest.fixture(scope="module")
def runs() -> tuple[Run, Run]:
    """Cached with residual reuse, and uncached, under guidance 3."""
    mixture = GaussianMixture()
    x, label = mixture.draw(8, seed=1)
    velocity = mixture.guided(label, 3.0)
    predictor = Predictor.residual_reuse(SCHEDULE, ["cond"])
    return cached_euler(velocity, x, SIGMAS, SCHEDULE, predictor), euler(velocity, x, SIGMAS)


def summed(sigmas: Tensor, used: Tensor, reference: Tensor) -> Tensor:
    """Eq. 11 by hand: Σ_i Δσ_i ε_i."""
    return torch.einsum("t,t...->...", sigmas.double().diff(), used.double() - reference.double())


def rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()


def test_eq_11_is_the_measured_deviation(runs: tuple[Run, Run]):
    cached, reference = runs
    measured = cached.latents[-1] - reference.latents[-1]
    assert rms(measured) > 1e-3
    delta = summed(SIGMAS, cached.outputs, reference.outputs)
    torch.testing.assert_close(delta, measured, rtol=1e-10, atol=1e-12)
    single = summed(SIGMAS.float(), cached.outputs.float(), reference.outputs.float())
    torch.testing.assert_close(single, measured, rtol=0, atol=1e-6)


def test_eq_11_over_predicted_steps_only_is_not(runs: tuple[Run, Run]):
    """Computed steps run on a latent that already deviates; leaving out their share misses much of δ."""
    cached, reference = runs
    measured = cached.latents[-1] - reference.latents[-1]
    predicted = ~torch.tensor(SCHEDULE.computed)[:, None, None]
    only = torch.where(predicted, cached.outputs, reference.outputs)
    missing = measured - summed(SIGMAS, only, reference.outputs)
    assert rms(missing) > 0.1 * rms(measured)


def test_decompose_follows_the_deviation_step_by_step(runs: tuple[Run, Run]):
    cached, reference = runs
    parts = decompose(SIGMAS, cached.outputs, reference.outputs, SCHEDULE)
    errors = cached.outputs - reference.outputs
    measured = torch.stack([rms(d) for d in cached.latents - reference.latents])
    torch.testing.assert_close(parts.deviation, measured, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(parts.feature_shift, torch.stack([rms(e) for e in errors]))
    torch.testing.assert_close(parts.amplified, SIGMAS.diff().abs() * parts.feature_shift)
    assert parts.computed == SCHEDULE.computed
    assert parts.feature_shift[0] == 0 and parts.feature_shift[2] > 0  # step 2 is computed, yet off


def test_decompose_by_hand():
    sigmas = torch.tensor([1.0, 0.5, 0.25])
    reference = torch.zeros(2, 1, 2)
    used = torch.tensor([[[3.0, 3.0]], [[-4.0, 4.0]]], dtype=torch.bfloat16)
    parts = decompose(sigmas, used, reference, Schedule.from_mask("#."))
    assert parts.feature_shift.tolist() == [3.0, 4.0]
    assert parts.amplified.tolist() == [1.5, 1.0]
    assert parts.deviation.tolist() == [0.0, 1.5, pytest.approx(((0.5**2 + 2.5**2) / 2) ** 0.5)]


def test_without_caching_there_is_nothing_to_decompose(runs: tuple[Run, Run]):
    _, reference = runs
    parts = decompose(SIGMAS, reference.outputs, reference.outputs, Schedule.all_computed(T))
    assert not parts.feature_shift.any() and not parts.amplified.any() and not parts.deviation.any()


def test_refusals_name_the_value_and_the_remedy():
    outputs = torch.zeros(2, 1, 2)
    with pytest.raises(InvalidArgument, match=r"2 sigmas, 2 used and 2 reference outputs; give T\+1, T, T"):
        decompose(torch.ones(2), outputs, outputs, Schedule.all_computed(2))
    with pytest.raises(InvalidArgument, match="3 sigmas, 2 used and 1 reference"):
        decompose(torch.ones(3), outputs, outputs[:1], Schedule.all_computed(2))
    with pytest.raises(InvalidArgument, match="the schedule has 3 steps and the run 2; use the run's own"):
        decompose(torch.ones(3), outputs, outputs, Schedule.all_computed(3))
