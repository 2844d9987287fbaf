"""Changed grids: an unchanged one is the plain pipeline, a refined one converges at the solver's order."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import pipelines
from ertacache.calibration.calibrate import calibrate
from ertacache.calibration.pipeline_run import Final, run_pipeline
from ertacache.calibration.prompts import Prompts
from ertacache.core.timesteps import stretch
from ertacache.errors import InvalidArgument
from ertacache.pipelines import angle_grid
from ertacache.pipelines.solvers import read_grid, solver_step, write_grid
from ertacache.runtime.hooks import attached
from ertacache.runtime.player import Player
from ertacache.runtime.run import Controller, Run
from ertacache.runtime.run_stats import RunStats
from ertacache.runtime.watch import Watch
from pipelines import CALL, PROMPTS, VIDEO_CALL, generate
from solver_pipelines import SCHEDULERS, SolverPipeline, linear

#: DPMSolverMultistepScheduler makes numpy arrays of tensors in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


PROMPT = "prompt 0 of class 0"


class Writer(Controller):
    """Writes a grid made of the run's own: at the start of the run, and again before the step `at`."""

    def __init__(self, change: Callable[[Tensor], Tensor], at: int | None = None) -> None:
        self.change, self.at = change, at
        self.grids: list[Tensor] = []

    def begin(self, run: Run) -> None:
        write_grid(run.scheduler, run.sigmas if self.at is not None else self.change(run.sigmas))

    def solve(self, run: Run, output: Tensor, x: Tensor) -> Tensor:
        if run.step == self.at:
            write_grid(run.scheduler, self.change(run.sigmas))
        self.grids.append(read_grid(run.scheduler))
        return output


def wan_with(scheduler: Any) -> Any:
    pipe = pipelines.wan()
    pipe.scheduler = scheduler
    return pipe


PIPES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "FLUX": (pipelines.flux, CALL),
    "Wan on UniPC": (pipelines.wan, VIDEO_CALL),
    "Wan on Euler": (lambda: wan_with(SCHEDULERS["Euler"]()), VIDEO_CALL),
    "Wan on DPM-Solver": (lambda: wan_with(SCHEDULERS["DPM-Solver"]()), VIDEO_CALL),
    "CogVideoX": (pipelines.cogvideox, VIDEO_CALL),
}


@pytest.mark.parametrize("name", PIPES)
@pytest.mark.parametrize("steps", [10, 7])  # 7 does not divide 1000: DDIM's stride misses its own timesteps
def test_an_unchanged_grid_is_the_plain_pipeline(name: str, steps: int) -> None:
    make, call = PIPES[name]
    pipe, call = make(), {**call, "num_inference_steps": steps, "output_type": "latent"}
    plain = generate(pipe, PROMPTS[:1], call)
    own = pipe.scheduler.timesteps.tolist()
    with attached(pipe, writer := Writer(lambda grid: grid)):
        assert torch.equal(generate(pipe, PROMPTS[:1], call), plain)
    assert pipe.scheduler.timesteps.tolist() == own
    assert all(torch.equal(grid, writer.grids[0]) for grid in writer.grids)
    assert torch.equal(generate(pipe, PROMPTS[:1], call), plain)


def play(pipe: SolverPipeline, steps: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return pipe([PROMPT], num_inference_steps=steps, generator=[generator], output_type="latent")[0]


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("steps", [8, 30])
def test_an_unchanged_grid_is_the_plain_solver(name: str, steps: int) -> None:
    pipe = linear(SCHEDULERS[name](), dim=3)
    plain = play(pipe, steps)
    before = {key: id(value) for key, value in vars(pipe.scheduler).items()}
    with attached(pipe, Writer(lambda grid: grid)):
        assert torch.equal(play(pipe, steps), plain)
    assert vars(pipe.scheduler).keys() == before.keys()
    if "alphas_cumprod" in before:
        assert id(pipe.scheduler.alphas_cumprod) == before["alphas_cumprod"]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_grid_changed_in_mid_run_changes_only_what_lies_ahead(name: str) -> None:
    pipe = linear(SCHEDULERS[name]())
    with attached(pipe, writer := Writer(lambda grid: stretch(grid, 3, 0.4).float(), at=3)):
        late = play(pipe)
    before, after = writer.grids[2], writer.grids[3]
    assert torch.equal(before[:4], after[:4]) and not torch.isclose(before[4:-1], after[4:-1], atol=1e-4, rtol=0).any()
    torch.testing.assert_close(after, stretch(before, 3, 0.4).float(), rtol=0, atol=2e-6)
    # The steps before step 3 are those of the plain grid either way, so both runs end at the same latent.
    with attached(pipe, Writer(lambda grid: stretch(grid, 3, 0.4).float())):
        assert torch.equal(play(pipe), late)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_what_was_written_is_what_a_watch_reads(name: str) -> None:
    pipe = linear(SCHEDULERS[name]())
    with Watch(pipe) as watch, attached(pipe, writer := Writer(lambda grid: stretch(grid, 3, 0.4).float())):
        play(pipe)
    torch.testing.assert_close(watch.executed.sigmas, writer.grids[-1], rtol=0, atol=2e-6)
    assert len(watch.executed.denoiser_calls) == 8


def spread(start: float, end: float, T: int) -> Tensor:
    """A grid of smoothly uneven intervals."""
    u = torch.linspace(0, 1, T + 1, dtype=torch.float64)
    return (start + (end - start) * (u + 0.25 * torch.sin(math.pi * u) / math.pi)).float()


def integrate(scheduler: Any, T: int, grid: Tensor, velocity: Callable[[Tensor, float], Tensor], x: Tensor) -> Tensor:
    """The latent at the end of a grid; the denoiser is told the time by the timestep, or where that is whole by σ."""
    scheduler.set_timesteps(T)
    write_grid(scheduler, grid)
    step = partial(type(scheduler).step, scheduler)
    for i, t in enumerate(scheduler.timesteps):
        time = float(t) if t.is_floating_point() else 1000 * float(scheduler.sigmas[i])
        x = solver_step(step, scheduler, i, velocity(x, time), t, x, return_dict=False)[0].double()
    return x


MEAN, SPREAD, SIZES = 0.7, 0.4, (40, 80, 160)


def slope(errors: list[float]) -> float:
    return math.log2(errors[0] / errors[-1]) / (len(errors) - 1)


def flow(x: Tensor, t: float) -> Tensor:
    """dx/dσ of x = (1 − σ) x_0 + σ noise, x_0 from a Gaussian: x = (1 − σ) mean + z √((1 − σ)² spread² + σ²)."""
    s = t / 1000
    variance = (1 - s) ** 2 * SPREAD**2 + s**2
    return -MEAN + (s - (1 - s) * SPREAD**2) / variance * (x - (1 - s) * MEAN)


def rotation(scheduler: Any, x: Tensor, t: float) -> Tensor:
    """dx/dφ of x = cos φ x_0 + sin φ noise, the same Gaussian: v-prediction at the angle of timestep t."""
    table = angle_grid._knots(scheduler).tolist()[1:]
    low = min(int(t), len(table) - 2)
    angle = table[low] + (t - low) * (table[low + 1] - table[low])
    c, s = math.cos(angle), math.sin(angle)
    return -s * MEAN + c * s * (1 - SPREAD**2) / (c**2 * SPREAD**2 + s**2) * (x - c * MEAN)


@pytest.mark.parametrize(
    ("name", "start", "end", "order"),
    [("Euler", 0.99, 0.0, 1), ("UniPC", 0.8, 0.2, 2), ("DPM-Solver", 0.8, 0.2, 2)],
)
def test_flow_solvers_converge_at_their_order(name: str, start: float, end: float, order: int) -> None:
    errors: list[float] = []
    for T in SIZES:
        z = torch.tensor([[[1.3, -0.4]]], dtype=torch.float64)
        scale = [math.sqrt((1 - s) ** 2 * SPREAD**2 + s**2) for s in (start, end)]
        found = integrate(SCHEDULERS[name](), T, spread(start, end, T), flow, (1 - start) * MEAN + z * scale[0])
        errors.append(float((found - (1 - end) * MEAN - z * scale[1]).abs().max()))
    assert slope(errors) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("name", ["DDIM", "CogVideoX's DDIM"])
def test_ddim_converges_at_order_1_in_the_angle(name: str) -> None:
    errors: list[float] = []
    for T in SIZES:
        scheduler = SCHEDULERS[name]()
        scheduler.set_timesteps(T)
        start = float(read_grid(scheduler)[0])
        z = torch.tensor([[[1.3, -0.4]]], dtype=torch.float64)
        x = math.cos(start) * MEAN + z * math.sqrt((math.cos(start) * SPREAD) ** 2 + math.sin(start) ** 2)
        found = integrate(scheduler, T, spread(start, 0.0, T), partial(rotation, scheduler), x)
        errors.append(float((found - MEAN - z * SPREAD).abs().max()))
    assert slope(errors) == pytest.approx(1, abs=0.25)


def test_wan_on_euler_starts_at_sigma_1_and_ends_at_0() -> None:
    """Its set_timesteps spaces t from 1000 to 1 and shifts that: 1 is where a flow starts, unlike under UniPC."""
    scheduler = SCHEDULERS["Euler"]()
    scheduler.set_timesteps(10)
    grid = read_grid(scheduler)
    assert grid[0] == 1.0 and grid[-1] == 0.0
    unshifted = torch.linspace(1.0, float(scheduler.sigma_min), 10)
    torch.testing.assert_close(grid[:-1], 3 * unshifted / (1 + 2 * unshifted))


@pytest.mark.parametrize("name", ["UniPC", "DPM-Solver"])
def test_whole_timesteps_are_truncated_as_the_solver_does(name: str) -> None:
    scheduler = SCHEDULERS[name]()
    scheduler.set_timesteps(4)
    grid = read_grid(scheduler)
    grid[2] = 0.7239
    view = scheduler.timesteps[1:]
    before = view.tolist()
    write_grid(scheduler, grid)
    assert view.tolist() == [before[0], 723, before[2]] and view.dtype == torch.int64


def test_grids_that_a_multistep_solver_cannot_start_with_are_refused() -> None:
    scheduler = SCHEDULERS["UniPC"]()
    scheduler.set_timesteps(3)
    with pytest.raises(InvalidArgument, match=r"sigmas\[0\] is 1.0; UniPC.* needs a grid that starts below 1"):
        write_grid(scheduler, torch.tensor([1.0, 0.6, 0.3, 0.0]))
    with pytest.raises(InvalidArgument, match=r"first two steps .* timestep 999, .* make the first interval longer"):
        write_grid(scheduler, torch.tensor([0.9999, 0.9995, 0.3, 0.0]))


def test_fractional_timesteps_lie_between_the_table() -> None:
    scheduler = SCHEDULERS["DDIM"]()
    scheduler.set_timesteps(4)
    own, table = read_grid(scheduler), angle_grid._knots(scheduler)[1:]
    grid = own.clone()
    grid[2] = 0.25 * float(table[400]) + 0.75 * float(table[401])
    write_grid(scheduler, grid)
    assert scheduler.timesteps.tolist() == pytest.approx([999, 749, 400.75, 249], abs=1e-4)
    torch.testing.assert_close(read_grid(scheduler), grid, rtol=0, atol=2e-7)


def test_a_step_that_raises_leaves_the_table_alone() -> None:
    pipe = linear(SCHEDULERS["DDIM"]())
    table = pipe.scheduler.alphas_cumprod
    with attached(pipe, Writer(lambda grid: stretch(grid, 1, 0.4).float())):
        pipe.scheduler.set_timesteps(4)
        pipe.transformer(hidden_states=torch.zeros(1, 1, 1, dtype=torch.float64), timestep=torch.ones(1))
        written = pipe.scheduler.timesteps
        with pytest.raises(TypeError, match="surprise"):
            pipe.scheduler.step(torch.zeros(1), written[0], torch.zeros(1), surprise=1)
        assert pipe.scheduler.alphas_cumprod is table and pipe.scheduler.timesteps is written
    pipe.scheduler.set_timesteps(4)
    assert pipe.scheduler.timesteps.tolist() == [999, 749, 499, 249]


def test_a_late_start_adds_noise_at_a_fractional_timestep() -> None:
    pipe = linear(SCHEDULERS["DDIM"]())
    x, noise = torch.full((2, 3), 0.3), torch.full((2, 3), -1.1)
    plain = copy.deepcopy(pipe.scheduler)
    with attached(pipe, Writer(lambda grid: stretch(grid, 1, 0.4).float())):
        pipe.scheduler.set_timesteps(4)
        t, angle = pipe.scheduler.timesteps[2], read_grid(pipe.scheduler)[2]
        assert float(t) != round(float(t))
        noised = pipe.scheduler.add_noise(original_samples=x, noise=noise, timesteps=t.expand(2))
        torch.testing.assert_close(noised, angle.cos() * x + angle.sin() * noise)
        whole = torch.tensor([400, 7])
        assert torch.equal(pipe.scheduler.add_noise(x, noise, whole), plain.add_noise(x, noise, whole))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_calibrated_grid_is_the_one_that_runs(name: str) -> None:
    pipe, texts = linear(SCHEDULERS[name](), dim=3), [f"prompt {n} of class 0" for n in range(4)]
    options: dict[str, Any] = {"schedule": "#..#.#..#", "num_inference_steps": 9, "show_progress": False}
    profile = calibrate(pipe, texts, timesteps=0.7, basis="reuse", **options)
    assert (profile.sigmas - profile.base_sigmas).abs().max() > 0.01
    final = Final(Player(profile, RunStats()))
    ends = [final_latent(pipe, controller) for controller in (final, Writer(lambda grid: profile.sigmas))]
    torch.testing.assert_close(final.sigmas, profile.sigmas, rtol=0, atol=2e-6)
    # The way there is not the same, as one predicts: but both runs are of this grid, not of the plain one.
    plain = final_latent(pipe, Controller())
    assert (ends[0] - plain).abs().max() > 1e-3 and (ends[1] - plain).abs().max() > 1e-6


def final_latent(pipe: SolverPipeline, controller: Controller) -> Tensor:
    return run_pipeline(pipe, Prompts((PROMPT,), 3), controller, {"num_inference_steps": 9}, decode=False)
