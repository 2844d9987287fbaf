"""The solver's own grid of K steps as a plan of T: where the nodes lie, and what such a plan is fitted to."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler

from dummies import shifted_sigmas
from dummy_pipeline import PROMPTS, mixture_pipeline
from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.candidates import fitted_candidate
from ertacache.calibration.coarse_grid import coarse_grid, spread
from ertacache.calibration.method import Method
from ertacache.core.interpolation import between
from ertacache.errors import UnsupportedPipeline

T, K = 14, 5
CALL: dict[str, Any] = {"num_inference_steps": T, "guidance_scale": 7.0}


def calibrator(**options: Any) -> Calibrator:
    return Calibrator(mixture_pipeline(), PROMPTS, choose=0.25, seed=5, call={**CALL, **options})


def test_nodes_are_computed_and_the_rest_lies_evenly_between():
    schedule, grid = spread([1.0, 0.6, 0.3, 0.0], torch.linspace(1, 0, 8))
    assert str(schedule) == "#.#.#.."
    torch.testing.assert_close(torch.tensor(grid), torch.tensor([1.0, 0.8, 0.6, 0.45, 0.3, 0.2, 0.1, 0.0]))


@pytest.mark.parametrize("nodes", [[1.0, 0.5, 0.0], [1.2, 0.0]], ids=["more than steps", "outside"])
def test_nodes_that_no_run_of_these_steps_has_are_refused(nodes: list[float]):
    with pytest.raises(UnsupportedPipeline, match="lie not within the run of 1 steps"):
        spread(nodes, torch.tensor([1.0, 0.0]))


def test_the_nodes_are_the_solvers_own_and_nothing_is_computed_for_them():
    run = calibrator()
    assert run.T == T
    before = run.store.spent.runs
    schedule, grid = coarse_grid(run, K)
    assert schedule.K == K
    solver = FlowMatchEulerDiscreteScheduler(shift=2.0)
    solver.set_timesteps(K)
    nodes = torch.tensor([*(grid[i] for i in schedule.computed_steps), grid[-1]])
    torch.testing.assert_close(nodes, solver.sigmas)
    assert run.store.spent.runs == before
    assert coarse_grid(run, K) == (schedule, grid)


def test_its_fit_aims_at_the_recorded_trajectory_between_its_latents():
    run = calibrator()
    schedule, grid = coarse_grid(run, K)
    recording = run.reference.recordings[0]
    target = run.trajectory(grid, 0)
    for i, sigma in enumerate(grid):
        assert torch.equal(target(i), between(run.reference.sigmas, recording.latents, sigma))
    method = Method("fitted", "guided", schedule, levels=3, ridge=1e-3, aim="trajectory", grid=grid)
    candidate = fitted_candidate(run, method)
    torch.testing.assert_close(candidate.profile.sigmas, torch.tensor(grid))
    # Nearer than what holding the outputs leaves on this grid.
    reuse = Method("residual", "guided", schedule, levels=0, grid=grid)
    held = run.solve(reuse)
    assert candidate.deviation < sum(held.errors) / len(held.errors)


def test_on_the_runs_own_grid_it_is_the_fit_without_a_grid():
    run = calibrator()
    schedule, _ = coarse_grid(run, K)
    method = Method("fitted", "guided", schedule, levels=3, ridge=1e-3, aim="trajectory")
    own = tuple(run.reference.sigmas.double().tolist())
    assert run.solve(replace(method, grid=own)).errors == run.solve(method).errors


def test_where_there_is_no_such_grid_it_says_why():
    run = calibrator(sigmas=shifted_sigmas(T)[:-1].tolist())
    with pytest.raises(UnsupportedPipeline, match="sigmas in the call fixes the solver's steps"):
        coarse_grid(run, K)
    run = calibrator()
    assert run.T == T
    run.pipe.scheduler = FlowMatchHeunDiscreteScheduler()
    with pytest.raises(UnsupportedPipeline, match="cannot be changed"):
        coarse_grid(run, K)
