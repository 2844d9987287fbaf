"""The damped step and its shrinkage against brute force, and the way to a known optimum."""

import pytest
import torch
from torch import Tensor

from ertacache.core.levenberg_marquardt import Linearised, cross_validated
from ertacache.errors import InvalidArgument

N, D, n = 7, 40, 4


def problem(seed: int = 0) -> tuple[Tensor, list[Tensor]]:
    """Residuals [N, 5, 8] of sizes far apart, and n derivatives."""
    g = torch.Generator().manual_seed(seed)
    sizes = torch.logspace(-2, 2, N, dtype=torch.float64).view(N, 1, 1)
    draw = lambda: sizes * torch.randn(N, 5, 8, generator=g, dtype=torch.float64)  # noqa: E731
    return draw(), [draw() for _ in range(n)]


def objective(residual: Tensor, jacobian: list[Tensor], change: Tensor) -> Tensor:
    """Mean log error, written out; a thousandth of the first error counts as none."""
    left = residual + sum(a * J for a, J in zip(change, jacobian, strict=True))
    energy = residual.flatten(1).square().sum(1)
    return torch.log(left.flatten(1).square().sum(1) + 1e-3 * energy).mean()


def test_the_sums_say_every_prompts_error():
    residual, jacobian = problem()
    change = torch.tensor([0.3, -0.2, 0.05, 1.0], dtype=torch.float64)
    left = residual + sum(a * J for a, J in zip(change, jacobian, strict=True))
    model = Linearised.of(residual, jacobian)
    torch.testing.assert_close(model.errors(change), left.flatten(1).square().sum(1))
    before = residual.flatten(1).square().sum(1)
    floor = 1e-3 * before
    torch.testing.assert_close(model.gain(change), torch.log((model.errors(change) + floor) / (before + floor)))
    scale = torch.stack([(J.flatten(1).square().sum(1) / before).mean() for J in jacobian]) / (1 + 1e-3)
    torch.testing.assert_close(model.scale, scale)


def test_prompts_join_and_part():
    residual, jacobian = problem()
    whole = Linearised.of(residual, jacobian)
    parts = [Linearised.of(residual[a:b], [J[a:b] for J in jacobian]) for a, b in ((0, 3), (3, N))]
    joined = Linearised.joined(parts)
    chosen = whole.part(torch.tensor([5, 1]))
    for name in ("energy", "moment", "gram"):
        torch.testing.assert_close(getattr(joined, name), getattr(whole, name))
        assert torch.equal(getattr(chosen, name), getattr(whole, name)[[5, 1]])


def test_a_prompt_may_have_several_rows():
    """Both branches through the solver, one after the other, are one prompt's."""
    residual, jacobian = problem()
    whole = Linearised.of(
        residual[:6].unflatten(0, (2, 3)).transpose(0, 1).flatten(1),
        [J[:6].unflatten(0, (2, 3)).transpose(0, 1).flatten(1) for J in jacobian],
    )
    rows = Linearised.of(residual[:6], [J[:6] for J in jacobian], prompts=3)
    for name in ("energy", "moment", "gram"):
        torch.testing.assert_close(getattr(rows, name), getattr(whole, name))


def test_one_prompt_is_damped_least_squares():
    """Of one prompt the minimiser of the log is that of the error, whose penalty the reweighting scales."""
    residual, jacobian = problem()
    rows = torch.stack([J[0].flatten() for J in jacobian], 1)
    model = Linearised.of(residual[:1], [J[:1] for J in jacobian])
    change = model.step(1e-9)
    torch.testing.assert_close(change, torch.linalg.lstsq(rows, -residual[0].flatten()).solution, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("damping", [0.01, 1.0])
@pytest.mark.parametrize("offset", [None, torch.tensor([0.5, -0.5, 1.0, 0.0], dtype=torch.float64)], ids=["0", "away"])
def test_the_step_is_the_minimum_of_the_objective(damping: float, offset: Tensor | None):
    residual, jacobian = problem()
    model = Linearised.of(residual, jacobian)
    change = model.step(damping, offset).requires_grad_()
    away = change if offset is None else change + offset
    value = objective(residual, jacobian, change) + damping * (model.scale * away.square()).sum()
    (gradient,) = torch.autograd.grad(value, change)
    assert float(gradient.abs().max()) < 1e-5
    if offset is None:
        assert float(value.detach()) < float(objective(residual, jacobian, torch.zeros(n)))


def test_much_damping_goes_back_to_where_it_shrinks_to():
    offset = torch.tensor([0.5, -0.5, 1.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(Linearised.of(*problem()).step(1e9, offset), -offset, rtol=1e-6, atol=1e-6)


def test_rounds_lead_to_the_optimum_of_a_problem_that_is_not_linear():
    """A · tanh(W θ) at θ* leaves nothing: a few steps of finite differences get there."""
    g = torch.Generator().manual_seed(1)
    A, W = (torch.randn(N, D, n, generator=g, dtype=torch.float64) for _ in range(2))
    best = torch.tensor([0.4, -0.3, 0.2, 0.1], dtype=torch.float64)
    made = lambda theta: torch.einsum("pdn,pdn->pd", A, torch.tanh(W * theta))  # noqa: E731
    theta, h = torch.zeros(n, dtype=torch.float64), 1e-6
    errors = []
    for _ in range(12):
        end = made(theta)
        columns = [(made(theta + h * unit) - end) / h for unit in torch.eye(n, dtype=torch.float64)]
        model = Linearised.of(end - made(best), columns)
        errors.append(float(model.energy.sum()))
        theta = theta + model.step(1e-3)
    assert errors[-1] < 1e-8 * errors[0]
    torch.testing.assert_close(theta, best, rtol=1e-4, atol=1e-4)


def test_the_damping_is_the_one_that_serves_prompts_left_out():
    residual, jacobian = problem()
    model, dampings, folds = Linearised.of(residual, jacobian), [10.0, 0.1, 0.001], 3
    told = {}
    for damping in dampings:
        gains = []
        for k in range(folds):
            kept = [p for p in range(N) if p % folds != k]
            part = Linearised.of(residual[kept], [J[kept] for J in jacobian])
            change = part.step(damping, scale=model.scale)
            gains += [float(model.gain(change)[p]) for p in range(N) if p % folds == k]
        told[damping] = sum(gains) / N
    found, mean = cross_validated(model, dampings, folds)
    assert found == min(told, key=told.__getitem__)
    assert mean == pytest.approx(told[found])
    assert told[10.0] < told[0.001]  # derivatives that have nothing to do with the residual: shrink


def test_what_is_refused():
    residual, jacobian = problem()
    model = Linearised.of(residual, jacobian)
    with pytest.raises(InvalidArgument, match=r"residuals are \[7, 5, 8\]; give each derivative the same shape"):
        Linearised.of(residual, [jacobian[0][:3]])
    with pytest.raises(InvalidArgument, match="holds NaN or infinity; take smaller differences"):
        Linearised.of(residual, [jacobian[0] / 0])
    for damping in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InvalidArgument, match=f"damping is {damping}; use a positive number"):
            model.step(damping)
    for dampings, folds in (([], 2), ([1.0], 1), ([1.0], 8)):
        with pytest.raises(InvalidArgument, match=f"{folds} folds of 7 prompts and {len(dampings)} dampings"):
            cross_validated(model, dampings, folds)
