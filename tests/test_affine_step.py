"""Aiming at the trajectory under any solver: what the solver is given makes it land where it should."""

import copy
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.closed_loop import ClosedLoop, LoopRun
from ertacache.calibration.lockstep import Lockstep
from ertacache.calibration.method import Method
from ertacache.calibration.pipeline_run import run_pipeline
from ertacache.calibration.solving import Seat, Solving
from ertacache.core.schedule import Schedule
from ertacache.core.timesteps import stretch
from ertacache.pipelines.affine_step import aimed_output, is_affine
from ertacache.pipelines.solvers import read_grid, solver_step, write_grid
from ertacache.runtime.run import Controller, Run
from solver_pipelines import FLOW, SCHEDULERS, linear

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
T = 9


def steps(scheduler: Any, probe: bool, changed: bool) -> tuple[list[Tensor], list[float]]:
    """The latents of a run on random outputs, and how far each aimed output lands from a random goal."""
    generator = torch.Generator().manual_seed(0)
    scheduler.set_timesteps(T)
    if changed:
        write_grid(scheduler, stretch(read_grid(scheduler), 2, 0.5).float())
    latents, missed = [torch.randn(2, 3, 4, generator=generator)], list[float]()
    for i, t in enumerate(scheduler.timesteps):
        x, output, goal = latents[-1], *torch.randn(2, 2, 3, 4, generator=generator)
        if probe:
            aimed = aimed_output(scheduler, i, read_grid(scheduler), x, goal)
            assert aimed is not None
            trial = copy.deepcopy(scheduler)
            missed.append(float((solver_step(trial.step, trial, i, aimed, t, x)["prev_sample"] - goal).abs().max()))
        latents.append(solver_step(scheduler.step, scheduler, i, output, t, x)["prev_sample"])
    return latents, missed


@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_aimed_output_lands_on_the_goal_and_leaves_no_trace(name: str, changed: bool) -> None:
    scheduler = SCHEDULERS[name]()
    latents, missed = steps(scheduler, True, changed)
    assert len(missed) == T and max(missed) < 1e-4
    plain, _ = steps(SCHEDULERS[name](), False, changed)
    assert all(torch.equal(one, other) for one, other in zip(latents, plain, strict=True))


def test_eulers_aim_is_the_closed_form() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(4)
    x, x_next = torch.randn(2, 1, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sigmas = scheduler.sigmas
    aimed = aimed_output(scheduler, 1, sigmas, x, x_next)
    assert aimed is not None and torch.equal(aimed, (x_next - x) / float(sigmas[2] - sigmas[1]))


def test_a_step_that_hardly_depends_on_the_output_has_none() -> None:
    """At the start of a flow, UniPC's σ is 1 − 1e-6: over an interval of 1e-7 nothing can be undone."""
    scheduler = SCHEDULERS["DPM-Solver"]()
    scheduler.set_timesteps(4)
    sigmas = torch.tensor([0.9, 0.9 - 2e-7, 0.4, 0.2, 0.0])
    scheduler.sigmas = sigmas
    x = torch.ones(1, 1, 2)
    assert aimed_output(scheduler, 0, sigmas, x, x) is None
    scheduler.sigmas = sigmas - torch.tensor([0, 0.1, 0, 0, 0])
    assert aimed_output(scheduler, 0, scheduler.sigmas, x, x) is not None


class Follower(LoopRun):
    """Notes how far each step ends from the uncached run's latent, and pushes it away before step 4."""

    def __init__(self, loop: ClosedLoop, seat: Seat, way: Tensor) -> None:
        super().__init__(loop, seat)
        self._way = way
        self.missed = list[float]()

    def for_run(self, run: Run) -> Controller:
        return self

    def solve(self, run: Run, output: Tensor, x: Tensor) -> Tensor:
        return super().solve(run, output, x) + (0.5 if run.step == 3 else 0)

    def end_step(self, run: Run, x_next: Tensor) -> None:
        super().end_step(run, x_next)
        self.missed.append(float((x_next - self._way[run.step + 1]).abs().max()))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_fit_to_the_trajectory_lands_on_the_uncached_next_latent(name: str) -> None:
    """One prompt, one element: the one weight of the fit can reach any goal exactly."""
    schedule = Schedule.from_mask("#..#.#..#")
    pipe = linear(SCHEDULERS[name]())
    texts = ["prompt 0 of class 0", "prompt 1 of class 0"]
    run = Calibrator(pipe, texts, choose=0.5, seed=3, call={"num_inference_steps": T})
    found: dict[str, list[float]] = {}
    for aim in ("step", "trajectory"):
        method, lockstep = Method("fitted", "guided", schedule, levels=1, aim=aim), Lockstep(1)
        seat = run._seat(method, 0, None)
        loop = ClosedLoop(Solving(method, lockstep, 1), run.reference.contexts, (), [seat], lockstep)
        follower = Follower(loop, seat, run.reference.recordings[0].latents)
        run_pipeline(pipe, run.parts.fitted, follower, run.call, decode=False)
        found[aim] = follower.missed
    assert max(found["trajectory"][i] for i in schedule.predicted_steps) < 1e-6
    assert found["trajectory"][3] > 1e-3
    assert found["step"][4] > 1e-3  # the true output there does not bring back what was lost before


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_known_solvers_are_affine(name: str) -> None:
    assert is_affine(SCHEDULERS[name]())


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
        DPMSolverMultistepScheduler(**FLOW, algorithm_type="sde-dpmsolver++"),
        DPMSolverMultistepScheduler(thresholding=True),
        DDIMScheduler(clip_sample=True),
        DDPMScheduler(),
    ],
    ids=["noise in Euler", "noise in DPM-Solver", "thresholding", "clipping", "unknown"],
)
def test_noise_clipping_and_unknown_solvers_are_not(scheduler: Any) -> None:
    assert not is_affine(scheduler)
