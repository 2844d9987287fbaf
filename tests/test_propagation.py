"""Solver steps as x' = A x + B o against diffusers' own, and how errors add up, exactly and with what is left out."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor

from ertacache.core.propagation import (
    AffineStep,
    contributions,
    ddim_steps,
    dpm_solver_2m_steps,
    euler_steps,
    finite_difference,
    flow_euler_steps,
    propagated,
    windowed,
)
from ertacache.errors import InvalidArgument

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
T = 8


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def walked(steps: list[AffineStep], x: Tensor, outputs: Tensor) -> list[Tensor]:
    """The latents of the formula, with the history of clean latents."""
    latents, history = [x], torch.zeros_like(x)
    for step, output in zip(steps, outputs, strict=True):
        x = latents[-1]
        latents.append(step.A * x + step.B * output + step.H * history)
        history = step.a * x + step.b * output
    return latents


def check(scheduler: Any, steps: list[AffineStep], tolerance: float, scale: float = 1.0) -> None:
    """`steps` leads to the latents of the scheduler, on outputs that have nothing to do with them."""
    outputs, x = random(len(steps), 2, 3, 4), scale * random(2, 3, 4, seed=1)
    found = walked(steps, x, outputs)
    for i, t in enumerate(scheduler.timesteps):
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)
        x = scheduler.step(outputs[i], t, x, return_dict=False)[0]
        size = float(found[i + 1].abs().max())
        assert float((found[i + 1] - x).abs().max()) < tolerance * max(size, 1.0)


def alphas_of(scheduler: Any) -> list[float]:
    return [float(scheduler.alphas_cumprod[t]) for t in scheduler.timesteps] + [float(scheduler.final_alpha_cumprod)]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("end", [True, False])
def test_ddim(prediction: Any, end: bool) -> None:
    scheduler = DDIMScheduler(prediction_type=prediction, clip_sample=False, set_alpha_to_one=end)
    # Its table is float32; as float64 it steps in float64 throughout.
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = torch.as_tensor(scheduler.final_alpha_cumprod).double()
    scheduler.set_timesteps(T)
    check(scheduler, ddim_steps(alphas_of(scheduler), prediction), 1e-10)


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_ddim_from_pure_noise(prediction: Any) -> None:
    scheduler = DDIMScheduler(
        prediction_type=prediction, clip_sample=False, timestep_spacing="trailing", rescale_betas_zero_snr=True
    )
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = torch.as_tensor(scheduler.final_alpha_cumprod).double()
    scheduler.set_timesteps(T)
    scheduler.alphas_cumprod[-1] = 0.0
    check(scheduler, ddim_steps(alphas_of(scheduler), prediction), 1e-10)


def test_flow_matching_euler() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(T)
    steps = flow_euler_steps(scheduler.sigmas.tolist())
    check(scheduler, steps, 1e-6)  # it steps in float32
    deltas = scheduler.sigmas.double().diff().tolist()
    assert [step.A for step in steps] == pytest.approx([1] * T, abs=1e-12)
    assert [step.B for step in steps] == pytest.approx(deltas, abs=1e-12)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_euler_of_k_diffusion(prediction: Any) -> None:
    scheduler = EulerDiscreteScheduler(prediction_type=prediction)
    scheduler.set_timesteps(T)
    steps = euler_steps(scheduler.sigmas.tolist(), prediction)
    check(scheduler, steps, 1e-5, float(scheduler.sigmas[0]))
    if prediction == "epsilon":
        assert [step.A for step in steps] == pytest.approx([1] * T, abs=1e-12)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_dpm_solver_of_the_second_order(prediction: Any) -> None:
    scheduler = DPMSolverMultistepScheduler(prediction_type=prediction, use_karras_sigmas=True)
    scheduler.set_timesteps(T)
    sigmas = scheduler.sigmas.double()
    alphas = 1 / (sigmas**2 + 1).sqrt()
    steps = dpm_solver_2m_steps(alphas.tolist(), (sigmas * alphas).tolist(), prediction)
    check(scheduler, steps, 1e-4)
    assert [step.H != 0 for step in steps] == [False, *[True] * (T - 2), False]


def test_dpm_solver_on_a_flow_that_ends_above_zero() -> None:
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, lower_order_final=False,
        final_sigmas_type="sigma_min",
    )  # fmt: skip
    scheduler.set_timesteps(T)
    sigmas = scheduler.sigmas.double()
    sigmas[-1] = 0.02
    scheduler.sigmas = sigmas.float()
    steps = dpm_solver_2m_steps((1 - sigmas).tolist(), sigmas.tolist(), "flow_prediction")
    check(scheduler, steps, 1e-4)
    assert steps[-1].H != 0


GRID = torch.linspace(0.98, 0.02, T + 1).tolist()
SOLVERS: dict[str, list[AffineStep]] = {
    "DDIM": ddim_steps([1 - one for one in GRID], "epsilon"),
    "flow": flow_euler_steps(GRID),
    "DPM-Solver++": dpm_solver_2m_steps([1 - one for one in GRID], GRID, "flow_prediction"),
}


class Toy:
    """A nonlinear denoiser o = 2 W tanh(x / 2) + t b, or a linear one, and a quantised one that errs by a tenth."""

    def __init__(self, linear: bool = False) -> None:
        self.W, self.b, self.linear = 0.4 * random(5, 5, seed=3), random(5, seed=4), linear

    def exact(self, i: int, x: Tensor) -> Tensor:
        return (x if self.linear else 2 * torch.tanh(x / 2)) @ self.W.T + GRID[i] * self.b

    def quantised(self, i: int, x: Tensor) -> Tensor:
        return (10 * self.exact(i, x)).round() / 10 * 1.02

    def run(self, steps: list[AffineStep], denoiser: Callable[[int, Tensor], Tensor]) -> tuple[list[Tensor], Tensor]:
        """The latents and the outputs."""
        latents, outputs, history = [random(3, 5, seed=5)], list[Tensor](), torch.zeros(3, 5, dtype=torch.float64)
        for i, step in enumerate(steps):
            x, output = latents[-1], denoiser(i, latents[-1])
            outputs.append(output)
            latents.append(step.A * x + step.B * output + step.H * history)
            history = step.a * x + step.b * output
        return latents, torch.stack(outputs)

    def both(self, steps: list[AffineStep]) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """The exact latents, the deviations, the total errors, and the errors on one and the same input."""
        latents, outputs = self.run(steps, self.exact)
        off, quantised = self.run(steps, self.quantised)
        deviations = [b - a for a, b in zip(latents, off, strict=True)]
        same = [out - self.exact(i, x) for i, (out, x) in enumerate(zip(quantised, off[:-1], strict=True))]
        return latents, deviations, list(quantised - outputs), same


@pytest.mark.parametrize("name", SOLVERS)
def test_total_errors_are_exact_step_by_step_and_in_the_closed_form(name: str) -> None:
    steps, toy = SOLVERS[name], Toy()
    _, deviations, total, _ = toy.both(steps)
    found = propagated(steps, total)
    assert max(float((a - b).abs().max()) for a, b in zip(found, deviations, strict=True)) < 1e-10
    parts = contributions(steps, total)
    assert len(parts) == T and float((sum(parts) - deviations[-1]).abs().max()) < 1e-10


@pytest.mark.parametrize("name", SOLVERS)
def test_the_answer_of_the_denoiser_makes_the_errors_of_one_input_exact(name: str) -> None:
    steps, toy = SOLVERS[name], Toy()
    latents, deviations, _, same = toy.both(steps)
    answer = lambda i, delta: toy.exact(i, latents[i] + delta) - toy.exact(i, latents[i])  # noqa: E731
    found = propagated(steps, same, answer)
    assert max(float((a - b).abs().max()) for a, b in zip(found, deviations, strict=True)) < 1e-10


@pytest.mark.parametrize("name", SOLVERS)
def test_a_measured_jacobian_is_exact_for_a_linear_denoiser_and_its_products_are_ordered(name: str) -> None:
    steps, toy = SOLVERS[name], Toy(linear=True)
    latents, deviations, _, same = toy.both(steps)
    measured = finite_difference(toy.exact, latents, 1e-4)
    assert float((propagated(steps, same, measured)[-1] - deviations[-1]).abs().max()) < 1e-10
    parts = contributions(steps, same, measured)
    assert float((sum(parts) - deviations[-1]).abs().max()) < 1e-10
    if name != "DPM-Solver++":  # the products by hand: later steps to the left
        matrices = [step.A * torch.eye(5).double() + step.B * toy.W for step in steps]
        for k, part in enumerate(parts):
            product = torch.eye(5).double()
            for matrix in matrices[k + 1 :]:
                product = matrix @ product
            assert torch.allclose(part, steps[k].B * same[k] @ product.T, atol=1e-10)


#: Share of the last deviation that is missed: with J = 0, with the window of 1 and J = 0, with J by differences.
PRICES = {"DDIM": (0.2574, 0.9424, 0.0091), "flow": (0.2495, 0.9061, 0.0007), "DPM-Solver++": (0.3096, 0.7140, 0.0008)}


@pytest.mark.parametrize("name", SOLVERS)
def test_what_it_costs_to_drop_the_jacobian_and_all_but_the_window(name: str) -> None:
    steps, toy = SOLVERS[name], Toy()
    latents, deviations, _, same = toy.both(steps)

    def missed(found: Tensor) -> float:
        return float((found - deviations[-1]).norm() / deviations[-1].norm())

    measured = finite_difference(toy.exact, latents, 1e-4)
    found = [propagated(steps, same), windowed(steps, same), propagated(steps, same, measured)]
    assert [missed(one[-1]) for one in found] == pytest.approx(PRICES[name], abs=5e-4)


def test_the_window_of_one_is_the_current_error_and_that_of_the_step_before() -> None:
    steps, errors = SOLVERS["DDIM"], list(random(T, 2, 3))
    found = windowed(steps, errors)
    assert torch.equal(found[1], steps[0].B * errors[0])
    for i in range(1, T):
        expected = steps[i].B * errors[i] + steps[i].A * steps[i - 1].B * errors[i - 1]
        assert torch.allclose(found[i + 1], expected, atol=1e-14)
    assert torch.equal(windowed(steps, errors, 0)[3], steps[2].B * errors[2])
    assert torch.allclose(windowed(steps, errors, T)[-1], propagated(steps, errors)[-1], atol=1e-14)


def test_ddims_sum_telescopes() -> None:
    alphas, errors = [1 - one for one in GRID], list(random(T, 2, 3))
    parts = contributions(SOLVERS["DDIM"], errors)
    for k, part in enumerate(parts):
        expected = math.sqrt(alphas[-1] / alphas[k + 1]) * SOLVERS["DDIM"][k].B * errors[k]
        assert torch.allclose(part, expected, atol=1e-12)


def test_no_deviation_has_no_answer() -> None:
    along = finite_difference(Toy().exact, [random(3, 5)], 1e-4)
    assert torch.equal(along(0, torch.zeros(3, 5)), torch.zeros(3, 5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ddim_steps([0.1, 1.2], "epsilon"), r"alphas are \[0.1, 1.2\]; give ᾱ of each step and of the end"),
        (lambda: ddim_steps([0.5], "epsilon"), r"1 signals and 1 noises; give \[T\+1\] of both"),
        (lambda: ddim_steps([0.1, math.nan], "epsilon"), "alphas are .*nan"),
        (lambda: ddim_steps([1.0, 0.5], "epsilon"), r"noises are \[0.0, .*give σ of each step, above 0"),
        (lambda: ddim_steps([0.0, 0.5], "epsilon"), "says nothing where the signal is 0"),
        (lambda: ddim_steps([0.2, 0.5], "x0"), "prediction is 'x0'; choose one of epsilon, v_prediction, sample, flow"),
        (lambda: flow_euler_steps([1.0, 0.0, 0.5]), "noises are .*above 0"),
        (lambda: flow_euler_steps([1.0, -0.5]), "noises are .*above 0"),
        (lambda: euler_steps([math.inf, 1.0], "epsilon"), "noises are .*above 0"),
        (lambda: dpm_solver_2m_steps([0.1, 0.2], [0.9, 0.8, 0.7], "sample"), "2 signals and 3 noises"),
        (lambda: propagated(SOLVERS["flow"], [torch.zeros(2)]), "1 errors for 8 steps; give one for each"),
        (lambda: contributions([], []), "0 errors for 0 steps"),
        (lambda: windowed(SOLVERS["flow"], [torch.zeros(2)] * T, -1), "window is -1; give the number of steps"),
        (lambda: finite_difference(Toy().exact, [], 0.0), "size is 0.0; give a small share"),
        (lambda: finite_difference(Toy().exact, [], math.nan), "size is nan; give a small share"),
    ],
)
def test_bad_input_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        make()
