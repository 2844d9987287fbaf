"""What every order of two models loses by the end of a run, priced from recorded runs: none is made for an order.

On the latents x_i of the large model's run, e_i = v_small(x_i) − v_large(x_i) is what step i loses where the small
model makes it. With J_i the response of a model to a deviation δ of the latent, both being taken to respond alike,

    δ_{i+1} = step_i(δ_i, J_i δ_i + m_i e_i),    m_i = 1 where the small model makes step i, else 0

and step_i the solver's own step, which is linear. So δ_T is linear in m, δ_T = Σ_i m_i c_i, and one matrix per prompt,
G = c cᵀ / ‖x_T‖², prices all orders: mᵀ G m is the relative squared deviation of the final latent.

J is measured by finite differences along runs in which the small model takes over at step p ("probes"): there J δ is
exactly v_small(y_i) − v_small(x_i), y_i the probe's latents. What stands at right angles to all probes is scaled as the
probes are on average. So the price of a probe's own switch is exact for any model, and so is that of the last step.
"""

import copy
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ertacache.core.precision import widen
from ertacache.errors import UnsupportedPipeline

#: log10 of a deviation that is none.
NONE = -99.0
#: Deviations of probes whose normalised Gram matrix has smaller eigenvalues than this are one deviation.
_ALIKE = 1e-8
#: How far a step of twice the input may be from twice the step, as float32 rounds.
_LINEAR = 1e-4


class LinearSolver:
    """The linear part of a solver: its own steps, played on deviations.

    Args:
        scheduler: after `set_timesteps`, before its first step; it is copied.
        options: numbers that the pipeline gives `step`.

    Raises:
        UnsupportedPipeline: its steps are not linear: they draw noise, clip, or threshold.
    """

    def __init__(self, scheduler: Any, options: Mapping[str, float]) -> None:
        self._begun, self._options = copy.deepcopy(scheduler), dict(options)
        for name, value in vars(self._begun).items():
            if isinstance(value, Tensor):
                setattr(self._begun, name, value.cpu())
        self.T = len(self._begun.timesteps)
        self._check()

    def deviations(self, errors: Tensor, probes: "Probes | None" = None) -> Tensor:
        """What the error of each step has become at the end of the run [T, *].

        Args:
            errors: [T, *] of each step, on one and the same input.
            probes: how the models respond to a deviation; None for not at all.
        """
        found, scheduler = torch.zeros_like(errors), copy.deepcopy(self._begun)
        for i in range(self.T):
            given = torch.zeros_like(errors) if probes is None else probes.response(i, found)
            given[i] += errors[i]
            found = self._step(scheduler, i, given, found)
        return found

    def _step(self, scheduler: Any, i: int, output: Tensor, x: Tensor) -> Tensor:
        # The class's own methods: the scheduler may carry wrapped ones, which belong to a run.
        kind, t = type(scheduler), scheduler.timesteps[i]
        if hasattr(kind, "scale_model_input"):
            kind.scale_model_input(scheduler, x, t)  # some look there for their place in the grid
        return kind.step(scheduler, output, t, x, return_dict=False, **self._options)[0]

    def _check(self) -> None:
        """Steps of nothing are nothing, and of 1000 times as much 1000 times as large."""
        ramp = torch.linspace(-1, 1, 4 * self.T).view(self.T, 1, 2, 2)
        played = [self.deviations(scale * ramp) for scale in (0.0, 1.0, 1000.0)]
        off = (played[2] - 1000 * played[1]).norm()
        if played[0].any() or not off <= _LINEAR * 1000 * played[1].norm():
            raise UnsupportedPipeline(
                f"the steps of {type(self._begun).__name__} are not linear here: they draw noise, clip or threshold, "
                "and no switch can be priced; use a deterministic solver without clip_sample and thresholding, such as "
                "FlowMatchEulerDiscreteScheduler or DPMSolverMultistepScheduler"
            )


class Probes:
    """How the small model responds to a deviation of the latent, by steps.

    Args:
        deviations: [P, T, *] of the probes' latents from the large model's, before every step.
        responses: [P, T, *] what the small model's output changes by.
    """

    def __init__(self, deviations: Tensor, responses: Tensor) -> None:
        self._shape = deviations.shape[2:]
        self._deviations, self._responses = deviations.flatten(2).double(), responses.flatten(2).double()

    def response(self, i: int, delta: Tensor) -> Tensor:
        """J_i δ for deviations [N, *], linear in them."""
        known = [n for n, one in enumerate(self._deviations[:, i]) if one.any()]
        if not known:
            return torch.zeros_like(delta)
        seen, answers = self._deviations[known, i], self._responses[known, i]
        norms = seen.norm(dim=1, keepdim=True)
        seen, answers = seen / norms, answers / norms
        along = torch.linalg.pinv(seen @ seen.T, hermitian=True, rtol=_ALIKE) @ seen
        shares = delta.flatten(1).double() @ along.T
        scale = (seen * answers).sum(1).mean()
        found = shares @ answers + scale * (delta.flatten(1).double() - shares @ seen)
        return found.to(delta.dtype).view(len(delta), *self._shape)


def gram(solver: LinearSolver, errors: Tensor, probes: Probes, final: Tensor) -> Tensor:
    """G [T, T] float64 of one sample.

    Args:
        errors: [T, *] of the small model on the large one's latents. final: [*] the large model's last latent.
    """
    parts = solver.deviations(widen(errors), probes).flatten(1).double()
    return parts @ parts.T / widen(final).double().square().sum()


def price(grams: Tensor, small: Sequence[Sequence[int]]) -> list[float]:
    """log10 of the relative squared deviation of the final latent, a mean over prompts; -99 of the large model alone.

    Args:
        grams: [N, T, T] of each prompt.
        small: orders of T entries, 1 where the small model makes the step.
    """
    m = torch.tensor([list(one) for one in small], dtype=torch.float64)
    squares = torch.einsum("ot,ntu,ou->on", m, grams, m)
    return squares.clamp_min(0).log10().clamp_min(NONE).mean(1).tolist()


def switched(T: int, s: int) -> tuple[int, ...]:
    """The order in which the small model takes over at step s."""
    return (0,) * s + (1,) * (T - s)


def switch_of(models: Sequence[int]) -> int | None:
    """Where the small model takes over for good; None where an order is more than that."""
    s = sum(model == 0 for model in models)
    return s if tuple(models) == switched(len(models), s) else None


def best_block(grams: Tensor, n: int) -> tuple[int, ...]:
    """The best order with all n steps of the large model in one piece."""
    T = grams.shape[-1]
    orders = [(1,) * a + (0,) * n + (1,) * (T - a - n) for a in range(T - n + 1)]
    return _cheapest(grams, orders)


def best_subset(grams: Tensor, n: int) -> tuple[int, ...]:
    """An order with n steps of the large model, from the best piece on by exchanges of two steps while one gains."""
    best = best_block(grams, n)
    while True:
        places = [[i for i, one in enumerate(best) if one == kind] for kind in (0, 1)]
        orders = [best]
        for a, b in itertools.product(*places):
            other = list(best)
            other[a], other[b] = 1, 0
            orders.append(tuple(other))
        found = _cheapest(grams, orders)
        if found == best:
            return best
        best = found


def _cheapest(grams: Tensor, orders: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The first of the orders with the lowest price."""
    prices = price(grams, orders)
    return orders[prices.index(min(prices))]
