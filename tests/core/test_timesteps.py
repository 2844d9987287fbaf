import math

import pytest
import torch

from dummies import GaussianMixture, euler, shifted_sigmas
from ertacache.core.schedule import Schedule
from ertacache.core.timesteps import adjust, phi, soften, stretch
from ertacache.errors import InvalidArgument

GRID = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("error", "change", "expected"),
    [(1.0, 4.0, 0.75), (0.0, 4.0, 1.0), (4.0, 4.0, 0.0), (9.0, 4.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0)],
)
def test_phi(error: float, change: float, expected: float):
    assert phi(error, change) == expected


def test_phi_of_plain_reuse_right_after_a_computed_step_is_zero():
    """There ṽ_i is v_{i−1}, so error and change are the same number."""
    mixture = GaussianMixture()
    x, label = mixture.draw(4, seed=1)
    outputs = euler(mixture.guided(label, 3.0), x, shifted_sigmas(8)).outputs
    for i in range(1, 8):
        error = float((outputs[i - 1] - outputs[i]).abs().sum())
        assert error > 0
        assert phi(error, float((outputs[i] - outputs[i - 1]).abs().sum())) == 0.0


def test_soften():
    assert soften(0.2, 0.0) == 1.0
    assert soften(0.2, 1.0) == pytest.approx(0.2)
    assert soften(0.2, 0.25) == pytest.approx(0.8)
    for strength in (-0.1, 1.1, math.nan):
        with pytest.raises(InvalidArgument, match=rf"strength is {strength}; choose from 0 .* to 1"):
            soften(0.2, strength)


def test_stretch_by_hand():
    """Half of 1/4 is given up and spread over the remaining 1/2: each later interval grows by a quarter."""
    assert stretch(GRID, 1, 0.5).tolist() == [1.0, 0.75, 0.625, 0.3125, 0.0]


def test_stretch_on_a_grid_that_is_neither_uniform_nor_ends_at_zero():
    """The interval 4 → 2 shrinks to 4 → 3, and 2 → 1.5 → 1 stretches to 3 → 2 → 1."""
    grid = torch.tensor([8.0, 4.0, 2.0, 1.5, 1.0])
    assert stretch(grid, 1, 0.5).tolist() == [8.0, 4.0, 3.0, 2.0, 1.0]
    assert stretch(-grid, 1, 0.5).tolist() == [-8.0, -4.0, -3.0, -2.0, -1.0]  # rising grids alike


def test_stretch_keeps_the_end_the_direction_and_the_proportions():
    sigmas = shifted_sigmas(10, shift=3.0)
    for i in range(9):
        grid = stretch(sigmas, i, 0.3)
        assert grid[0] == sigmas[0] and grid[-1] == sigmas[-1]
        assert (grid.diff() < 0).all()
        gain = grid.diff()[i + 1 :] / sigmas.diff()[i + 1 :]
        torch.testing.assert_close(gain, gain[:1].expand_as(gain), rtol=1e-12, atol=0)
        assert torch.equal(grid[: i + 1], sigmas[: i + 1])


def test_an_interval_keeps_a_thousandth_of_its_length():
    assert stretch(GRID, 1, 0.0)[2].item() == 0.75 - 1e-3 * 0.25
    assert torch.equal(stretch(GRID, 1, 0.0), stretch(GRID, 1, 1e-3))


def test_factor_one_and_the_last_interval_change_nothing():
    sigmas = shifted_sigmas(7) + 0.1
    for i in range(7):
        assert torch.equal(stretch(sigmas, i, 1.0), sigmas)
    assert torch.equal(stretch(sigmas, 6, 0.2), sigmas)


@pytest.mark.parametrize(("i", "factor"), [(4, 0.5), (-1, 0.5), (1, -0.1), (1, 1.5), (1, math.nan)])
def test_stretch_refuses(i: int, factor: float):
    with pytest.raises(InvalidArgument, match=rf"interval {i} of 4 by factor {factor}: need 0 <= i < 4"):
        stretch(GRID, i, factor)


def test_adjust_by_hand():
    """Step 1 at φ = 1/2 as above; step 2, now 5/16 long, keeps 1/16 at φ = 1/5; the last takes the rest."""
    grid = adjust(GRID, Schedule.from_mask("#..#"), {1: 0.5, 2: 0.2}, strength=1.0)
    torch.testing.assert_close(grid, torch.tensor([1.0, 0.75, 0.625, 0.5625, 0.0]).double())


def test_adjust_is_remaining_budget_over_remaining_steps_on_a_uniform_grid():
    """Eq. 13 with Eq. 14 corrected: Δt_c = (1 − Σ Δt_j) / (T − i − 1) after step i."""
    T, schedule, phis = 8, Schedule.from_mask("#..#.#.#"), {1: 0.5, 2: 0.9, 4: 0.0, 6: 0.25}
    step, spent, lengths = 1 / T, 0.0, []
    for i in range(T):
        lengths.append(step if schedule.computed[i] else step * max(phis[i], 1e-3))
        spent += lengths[-1]
        step = (1 - spent) / (T - i - 1) if i < T - 1 else 0.0
    grid = adjust(torch.linspace(1, 0, T + 1, dtype=torch.float64), schedule, phis, strength=1.0)
    torch.testing.assert_close(-grid.diff(), torch.tensor(lengths, dtype=torch.float64))


def test_adjust_with_every_phi_zero_still_falls_strictly_and_arrives():
    sigmas, schedule = shifted_sigmas(12, 3.0), Schedule.uniform(12, 4)
    phis = dict.fromkeys(schedule.predicted_steps, 0.0)
    grid = adjust(sigmas, schedule, phis, strength=1.0)
    assert grid[0] == sigmas[0] and grid[-1] == sigmas[-1]
    assert (grid.diff() < 0).all()
    kept = grid.diff() / sigmas.diff()
    assert all(kept[i] >= 1e-3 - 1e-12 for i in schedule.predicted_steps)
    assert torch.equal(adjust(sigmas, schedule, phis, strength=0.0), sigmas)


def test_adjust_reads_float32_and_answers_in_float64():
    grid = adjust(GRID.float(), Schedule.from_mask("#..#"), {1: 1.0, 2: 1.0}, strength=1.0)
    assert grid.dtype == torch.float64 and torch.equal(grid, GRID)
    assert adjust(GRID.float(), Schedule.all_computed(4), {}, strength=1.0).dtype == torch.float64


def test_adjust_refuses():
    schedule = Schedule.from_mask("#..#")
    with pytest.raises(InvalidArgument, match=r"shape \(4,\); give \[T\+1\] = \[5\]"):
        adjust(GRID[:4], schedule, {1: 1.0, 2: 1.0}, 1.0)
    with pytest.raises(InvalidArgument, match=r"predicted steps \[2\] have no φ; measure it"):
        adjust(GRID, schedule, {1: 1.0}, 1.0)
    with pytest.raises(InvalidArgument, match=r"strength is 2\.0; choose"):
        adjust(GRID, schedule, {1: 1.0, 2: 1.0}, 2.0)
