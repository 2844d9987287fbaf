"""How a solver carries the errors of a quantised or cached denoiser on: its step as x' = A x + B o, and their sum.

With δ the deviation of the latent and e the error that the denoiser makes on one and the same input,

    δ_{i+1} = (A_i + B_i J_i) δ_i + B_i e_i          J_i the Jacobian of the denoiser, exactly of a linear one
    δ_T     = Σ_k [Π_{j>k} (A_j + B_j J_j)] B_k e_k    ordered products, later steps to the left

With total errors E_i = õ_i(x̃_i) − o_i(x_i), which hold what the denoiser makes of the deviation, both are exact for any
denoiser with J = 0.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ertacache.core.precision import widen
from ertacache.errors import InvalidArgument

#: What the denoiser gives: the noise, the velocity along the angle of x = α x0 + σ ε, the clean latent, or ε − x0.
Prediction = Literal["epsilon", "v_prediction", "sample", "flow_prediction"]
#: J_i applied to a deviation, or how the denoiser answers to one: step and deviation [B, *] to a tensor of that shape.
Jacobian = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class AffineStep:
    """x' = A x + B o + H h.

    Attributes:
        A, B: of the latent and of what the solver receives, o.
        H: of the clean latent that the step before estimated, h = a x + b o there; 0 for a solver without a history.
        a, b: how this step estimates the clean latent, which the next one's H weighs.
    """

    A: float
    B: float
    H: float = 0.0
    a: float = 0.0
    b: float = 0.0


def ddim_steps(alphas: Sequence[float], prediction: Prediction) -> list[AffineStep]:
    """DDIM without noise (eta = 0).

    Args:
        alphas: ᾱ [T+1] where each step begins, below 1, and where the last one ends.

    Raises:
        InvalidArgument: fewer than two, one out of range, an unknown prediction, or one of ε where ᾱ is 0.
    """
    levels = [float(alpha) for alpha in alphas]
    if not all(0 <= alpha <= 1 for alpha in levels):
        raise InvalidArgument(f"alphas are {levels}; give ᾱ of each step and of the end, 0 to 1")
    return _steps([math.sqrt(one) for one in levels], [math.sqrt(1 - one) for one in levels], prediction, order=1)


def flow_euler_steps(sigmas: Sequence[float]) -> list[AffineStep]:
    """Flow matching by Euler: x' = x + Δσ v.

    Args:
        sigmas: [T+1], above 0 but for the last.

    Raises:
        InvalidArgument: fewer than two, or one out of range.
    """
    levels = [float(sigma) for sigma in sigmas]
    return _steps([1 - sigma for sigma in levels], levels, "flow_prediction", order=1)


def euler_steps(sigmas: Sequence[float], prediction: Prediction) -> list[AffineStep]:
    """Euler of k-diffusion, on x = x0 + σ ε, the denoiser being given x / √(σ² + 1).

    Args:
        sigmas: [T+1], above 0 but for the last.

    Raises:
        InvalidArgument: as `flow_euler_steps`, or an unknown prediction.
    """
    return _steps([1.0] * len(sigmas), [float(sigma) for sigma in sigmas], prediction, order=1)


def dpm_solver_2m_steps(signals: Sequence[float], noises: Sequence[float], prediction: Prediction) -> list[AffineStep]:
    """DPM-Solver++ (2M), midpoint; the first step is of order 1, and so is the last one where the noise ends at 0.

    Args:
        signals, noises: α and σ [T+1] of x = α x0 + σ ε; noises above 0 but for the last.

    Raises:
        InvalidArgument: as `ddim_steps`.
    """
    return _steps([float(alpha) for alpha in signals], [float(sigma) for sigma in noises], prediction, order=2)


def _steps(alpha: Sequence[float], sigma: Sequence[float], prediction: Prediction, order: int) -> list[AffineStep]:
    """Every one of these solvers steps to (σ'/σ) x + (α' − α σ'/σ) D, D the clean latent as the step estimates it."""
    if len(alpha) != len(sigma) or len(sigma) < 2:
        raise InvalidArgument(f"{len(alpha)} signals and {len(sigma)} noises; give [T+1] of both, T 1 or more")
    if not all(one > 0 and math.isfinite(one) for one in sigma[:-1]) or not 0 <= sigma[-1] < math.inf:
        raise InvalidArgument(f"noises are {list(sigma)}; give σ of each step, above 0, and of the end")
    steps, before_h = list[AffineStep](), math.inf
    for i in range(len(sigma) - 1):
        keep = sigma[i + 1] / sigma[i]
        a, b = clean_latent(alpha[i], sigma[i], prediction)
        now, before = alpha[i + 1] - alpha[i] * keep, 0.0
        # Log of the signal-to-noise ratio, by which the second order extrapolates.
        ends = alpha[i] > 0 and alpha[i + 1] > 0 and sigma[i + 1] > 0
        h = math.log(alpha[i + 1] / sigma[i + 1]) - math.log(alpha[i] / sigma[i]) if ends else math.inf
        if order == 2 and i > 0 and math.isfinite(h):
            before = -now * h / (2 * before_h)
        steps.append(AffineStep(keep + (now - before) * a, (now - before) * b, before, a, b))
        before_h = h
    return steps


def clean_latent(alpha: float, sigma: float, prediction: Prediction) -> tuple[float, float]:
    """(a, b) of x0 = a x + b o, for x = alpha x0 + sigma ε, what the denoiser gives being o.

    Raises:
        InvalidArgument: an unknown prediction, or one of ε where alpha is 0.
    """
    match prediction:
        case "sample":
            return 0.0, 1.0
        case "flow_prediction":
            return 1.0, -sigma
        case "v_prediction":  # of the angle, whose latent is x / √(α² + σ²)
            square = alpha * alpha + sigma * sigma
            return alpha / square, -sigma / math.sqrt(square)
        case "epsilon":
            if alpha == 0:
                raise InvalidArgument("a prediction of epsilon says nothing where the signal is 0; begin below it")
            return 1 / alpha, -sigma / alpha
        case _:
            raise InvalidArgument(f"prediction is {prediction!r}; choose one of {', '.join(get_args(Prediction))}")


def propagated(steps: Sequence[AffineStep], errors: Sequence[Tensor], jacobian: Jacobian | None = None) -> list[Tensor]:
    """The deviations of the latent [T+1], of which the first is 0, step by step.

    Args:
        steps: T of them.
        errors: [B, *] each: total errors with `jacobian` None, else the errors on one and the same input.
        jacobian: what the denoiser's output changes by where the latent deviates: J δ, or o(x + δ) − o(x) itself, with
            which it is exact for any denoiser.

    Raises:
        InvalidArgument: not one error per step.
    """
    _check_errors(steps, errors)
    deviations, history = [torch.zeros_like(widen(errors[0]))], torch.zeros_like(widen(errors[0]))
    for i, (step, error) in enumerate(zip(steps, errors, strict=True)):
        delta = deviations[-1]
        total = widen(error) if jacobian is None else widen(error) + jacobian(i, delta)
        deviations.append(step.A * delta + step.B * total + step.H * history)
        history = step.a * delta + step.b * total
    return deviations


def contributions(
    steps: Sequence[AffineStep], errors: Sequence[Tensor], jacobian: Jacobian | None = None
) -> list[Tensor]:
    """What the error of each step is at the end of the run [T], by the closed form: their sum is the last deviation.

    Args:
        steps, errors: as `propagated`.
        jacobian: J δ, linear in δ; None for J = 0.

    Raises:
        InvalidArgument: as `propagated`.
    """
    _check_errors(steps, errors)
    return [
        propagated(steps[k:], [error, *[torch.zeros_like(error)] * (len(steps) - k - 1)], _shifted(jacobian, k))[-1]
        for k, error in enumerate(errors)
    ]


def windowed(steps: Sequence[AffineStep], errors: Sequence[Tensor], window: int = 1) -> list[Tensor]:
    """The deviations [T+1] with J = 0 and only the errors of the current step and the `window` before it.

    Window 1 is δ_{i+1} ≈ B_i e_i + A_i B_{i−1} e_{i−1}, the form of which TCEC makes its correction.

    Raises:
        InvalidArgument: as `propagated`, or a negative window.
    """
    _check_errors(steps, errors)
    if window < 0:
        raise InvalidArgument(f"window is {window}; give the number of steps before the current one, 0 or more")
    found = [torch.zeros_like(widen(errors[0]))]
    for i in range(len(steps)):
        start = max(0, i - window)
        found.append(propagated(steps[start : i + 1], errors[start : i + 1])[-1])
    return found


def finite_difference(denoiser: Callable[[int, Tensor], Tensor], latents: Sequence[Tensor], size: float) -> Jacobian:
    """J δ by central differences along δ: (o(x + s δ) − o(x − s δ)) / 2s, with two calls of the denoiser for each.

    Args:
        denoiser: step and latent [B, *] to what the solver receives.
        latents: x_i of every step, of the run in full precision.
        size: s ‖δ‖ over ‖x‖, such as 1e-4 in float64 and 1e-2 in float32.

    Raises:
        InvalidArgument: a size that is not above 0.
    """
    if not (size > 0 and math.isfinite(size)):
        raise InvalidArgument(f"size is {size}; give a small share of the latent, such as 1e-2 in float32")

    def along(i: int, delta: Tensor) -> Tensor:
        x, norm = latents[i], float(delta.square().sum().sqrt())
        if norm == 0:
            return torch.zeros_like(delta)
        s = size * float(x.square().sum().sqrt()) / norm
        return (denoiser(i, x + s * delta) - denoiser(i, x - s * delta)) / (2 * s)

    return along


def _shifted(jacobian: Jacobian | None, k: int) -> Jacobian | None:
    return None if jacobian is None else lambda i, delta: jacobian(i + k, delta)


def _check_errors(steps: Sequence[AffineStep], errors: Sequence[Tensor]) -> None:
    if len(steps) != len(errors) or not steps:
        raise InvalidArgument(f"{len(errors)} errors for {len(steps)} steps; give one for each, and one step or more")
