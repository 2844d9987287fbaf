"""Another solver on the pipeline's own grid: exact steps, and nothing left behind."""

import copy

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from ertacache.baselines.other_solver import Adams, DPMSolver, OtherSolver, UniPC
from ertacache.errors import UnsupportedPipeline
from ertacache.evaluation.execute import execute
from ertacache.pipelines.solvers import read_grid
from method_contract import FIRST, check_contract
from pipelines import CALL, CFG_CALL, VIDEO_CALL, cogvideox, flux, wan

SOLVERS = [DPMSolver, UniPC, Adams]
ALL = [(flux, CALL, 1), (lambda: flux(False), CFG_CALL, 2), (wan, VIDEO_CALL, 2), (cogvideox, VIDEO_CALL, 1)]
IDS = ["flux", "flux-cfg", "wan", "cogvideox"]


@pytest.mark.parametrize("kind", SOLVERS)
@pytest.mark.parametrize(("build", "call", "calls"), ALL, ids=IDS)
def test_it_makes_fewer_steps_and_leaves_nothing(build, call, calls, kind):
    if kind is UniPC and build is wan:
        pytest.skip("its own solver")
    pipe = build()
    own, before = pipe.scheduler, dict(vars(pipe))
    executed = check_contract(build, kind(0.6), call)
    assert executed.denoiser_calls == [calls] * 6
    with pytest.raises(ConnectionError), kind().applied(pipe, call):
        assert pipe.scheduler is not own and type(pipe.scheduler) is type(own)
        raise ConnectionError
    assert pipe.scheduler is own and vars(pipe) == before
    assert dict(pipe.config)["scheduler"] == ("diffusers", type(own).__name__)


def test_the_grid_is_that_of_fewer_steps():
    for build, call in ((flux, CALL), (cogvideox, VIDEO_CALL)):
        few = {**call, "num_inference_steps": 6}
        plain = execute(build(), None, FIRST, few)[1]
        for kind in SOLVERS:
            assert torch.equal(execute(build(), kind(0.6), FIRST, call)[1].sigmas, plain.sigmas)


def integrated(method: OtherSolver, own, steps: int, velocity, x):
    """The final x of a toy model under the method's solver, with what it was given on the way."""
    scheduler = method.stand_in(copy.deepcopy(own))
    scheduler.set_timesteps(steps)
    path = [(x, None)]
    for t in scheduler.timesteps:
        v = velocity(t, path[-1][0])
        path.append((scheduler.step(v, t, path[-1][0], return_dict=False)[0], v))
    return scheduler, path


def flow(t, x):
    """Of one Gaussian at 2 with width 1/2: v = noise − x0, exactly."""
    sigma = t.float() / 1000
    mean, variance = 2 * (1 - sigma), (0.5 * (1 - sigma)) ** 2 + sigma**2
    return (sigma - 0.25 * (1 - sigma)) / variance * (x - mean) - 2


@pytest.mark.parametrize("own", [FlowMatchEulerDiscreteScheduler(shift=2.0), cogvideox().scheduler], ids=["σ", "angle"])
def test_adams_is_its_formula(own):
    scheduler, path = integrated(Adams(), own, 7, flow, torch.linspace(-2, 2, 9))
    grid = read_grid(scheduler)
    for n in range(7):
        h, (x, _), (following, v) = grid[n + 1] - grid[n], path[n], path[n + 1]
        slope = torch.zeros(9) if n == 0 else (v - path[n][1]) / (grid[n] - grid[n - 1])
        torch.testing.assert_close(following, x + h * v + h**2 / 2 * slope, atol=1e-5, rtol=1e-5)


def test_dpm_solver_is_its_formula():
    """Order 2 in λ = log(α/σ) on x0 = x − σ v; the first and the last step are of order 1."""
    own = FlowMatchEulerDiscreteScheduler(shift=2.0)
    scheduler, path = integrated(DPMSolver(), own, 7, flow, torch.linspace(-2, 2, 9))
    grid = scheduler.sigmas.double().clamp(max=1 - 1e-6)
    lam = ((1 - grid) / grid).log()
    clean = [path[n][0].double() - grid[n] * path[n + 1][1].double() for n in range(7)]
    for n in range(7):
        x, h = path[n][0].double(), lam[n + 1] - lam[n]
        used = clean[n]
        if 0 < n < 6:
            used = used + h / (lam[n] - lam[n - 1]) / 2 * (clean[n] - clean[n - 1])
        expected = grid[n + 1] / grid[n] * x + (1 - grid[n + 1]) * (1 - (-h).exp()) * used
        torch.testing.assert_close(path[n + 1][0].double(), expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("kind", SOLVERS)
def test_they_converge_to_the_true_solution_faster_than_euler(kind):
    start = torch.linspace(-2, 2, 9)[None]
    truth = 2 + 0.5 * start  # the flow carries quantiles to quantiles
    own = FlowMatchEulerDiscreteScheduler()
    sigmas = np.linspace(1, 0.02, 24)
    euler = copy.deepcopy(own)
    euler.set_timesteps(sigmas=sigmas)
    better = kind().stand_in(copy.deepcopy(own))
    better.set_timesteps(sigmas=sigmas)
    ends = []
    for scheduler in (euler, better):
        x = start
        for t in scheduler.timesteps:
            x = scheduler.step(flow(t, x), t, x, return_dict=False)[0]
        ends.append(float((x - truth).abs().max()))
    assert ends[1] < ends[0] / 2


@pytest.mark.parametrize("kind", [DPMSolver, UniPC])
def test_on_v_prediction_a_constant_clean_latent_is_found_at_once(kind):
    own = cogvideox().scheduler
    clean, noise = torch.full((1, 3), 0.7), torch.full((1, 3), -1.2)

    def velocity(t, x):
        alpha = own.alphas_cumprod[t]
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * clean

    final = integrated(kind(), own, 12, velocity, noise)[1][-1][0]
    torch.testing.assert_close(final, clean, atol=2e-3, rtol=0)


def test_refusals():
    pipe = wan()
    assert UniPC().refusal(pipe, VIDEO_CALL) == "UniPCMultistepScheduler is the pipeline's own solver: see fewer-steps"
    assert DPMSolver().refusal(pipe, VIDEO_CALL) is None
    pipe.scheduler = UniPCMultistepScheduler()
    reason = "nothing takes the place of UniPCMultistepScheduler: it does not run on flow sigmas"
    assert DPMSolver().refusal(pipe, VIDEO_CALL).startswith(reason)
    pipe.scheduler = EulerDiscreteScheduler()
    assert Adams().refusal(pipe, VIDEO_CALL) == (
        "nothing takes the place of EulerDiscreteScheduler, whose time grid means something else to each solver"
    )
    with pytest.raises(UnsupportedPipeline, match="nothing takes the place of EulerDiscreteScheduler"):
        Adams().applied(pipe, VIDEO_CALL)
    pipe.scheduler = DDIMScheduler(clip_sample=True)
    assert UniPC().refusal(pipe, VIDEO_CALL) == "nothing takes the place of DDIMScheduler: it clips what it integrates"
    pipe.scheduler = DDIMScheduler(clip_sample=False)
    assert UniPC().refusal(pipe, VIDEO_CALL) is None
    assert Adams().refusal(pipe, VIDEO_CALL) == "Adams-2 needs a velocity, and the model predicts epsilon"
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    for kind in SOLVERS:
        assert kind().refusal(pipe, VIDEO_CALL) == (
            "nothing takes the place of FlowMatchEulerDiscreteScheduler: it draws noise in every step"
        )
