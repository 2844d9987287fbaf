import math

import pytest
import torch
from torch import Tensor

from ertacache.core.fit import RidgeSums, prompt_weights
from ertacache.errors import InvalidArgument


def problem(prompts: int = 5) -> tuple[list[Tensor], Tensor]:
    """Three features and a target they do not quite span, [B, 4, 6] each."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, prompts, 4, 6, generator=generator, dtype=torch.float64)
    noise = torch.randn(prompts, 4, 6, generator=generator, dtype=torch.float64)
    return list(features), 2 * features[0] - 0.5 * features[1] + 0.3 * noise


def columns(features: list[Tensor]) -> Tensor:
    return torch.stack([f.flatten() for f in features], 1)


def solve(features: list[Tensor], target: Tensor, ridge: float = 0.0, weights: Tensor | None = None) -> Tensor:
    sums = RidgeSums(len(features))
    sums.update(features, target, weights)
    return sums.solve(ridge)


def test_ridge_zero_is_least_squares():
    features, target = problem()
    expected = torch.linalg.lstsq(columns(features), target.flatten()[:, None]).solution[:, 0]
    torch.testing.assert_close(solve(features, target), expected, rtol=1e-12, atol=1e-12)


def test_ridge_is_least_squares_with_one_more_row_per_feature():
    """The penalty ridge · aᵀ diag(G) a is that of appending rows sqrt(ridge · G_ff) with target 0."""
    features, target = problem()
    X, y, ridge = columns(features), target.flatten(), 0.3
    rows = torch.diag((ridge * X.square().sum(0)).sqrt())
    stacked = torch.cat([X, rows]), torch.cat([y, torch.zeros(3, dtype=y.dtype)])[:, None]
    expected = torch.linalg.lstsq(*stacked).solution[:, 0]
    torch.testing.assert_close(solve(features, target, ridge), expected, rtol=1e-12, atol=1e-12)


def test_infinite_ridge_keeps_the_prior():
    features, target = problem()
    assert solve(features, target, math.inf).tolist() == [0.0, 0.0, 0.0]
    assert solve(features, target, 1e9).abs().max() < 1e-8


def test_one_feature_by_hand():
    F, y = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])  # G = 5, h = 11
    assert solve([F], y).item() == pytest.approx(11 / 5)
    assert solve([F], y, ridge=1.0).item() == pytest.approx(11 / 10)


def test_weights_scale_the_prompts():
    features, target = problem()
    weights = torch.tensor([0.5, 2.0, 0.0, 1.0, 3.0], dtype=torch.float64)
    root = weights.sqrt()[:, None, None]
    expected = solve([f * root for f in features], target * root)
    torch.testing.assert_close(solve(features, target, weights=weights), expected, rtol=1e-12, atol=1e-12)
    changed = target.clone()
    changed[2] += 100  # has no weight
    assert torch.equal(solve(features, changed, weights=weights), solve(features, target, weights=weights))


def test_batches_and_merge_do_not_matter():
    features, target = problem()
    left, right = RidgeSums(3), RidgeSums(3)
    left.update([f[:2] for f in features], target[:2])
    right.update([f[2:3] for f in features], target[2:3])
    right.update([f[3:] for f in features], target[3:])
    left.merge(right)
    torch.testing.assert_close(left.solve(0.1), solve(features, target, 0.1), rtol=1e-13, atol=1e-13)


def test_collinear_and_zero_features_take_the_smallest_solution():
    features, target = problem()
    F, zero = features[0], torch.zeros_like(features[0])
    alone = solve([F], target)[0]
    torch.testing.assert_close(solve([F, F, zero], target), torch.stack([alone / 2, alone / 2, 0 * alone]))
    nearly = F * (1 + 1e-8 * torch.rand_like(F))  # what float32 rounding leaves of an exact multiple
    assert solve([F, nearly], target).abs().max() < abs(alone)


@pytest.mark.parametrize(("scale", "used"), [(1e-4, True), (3e-5, False), (1e-9, False)])
def test_a_feature_that_is_as_good_as_zero_beside_another_gets_no_weight(scale: float, used: bool):
    F, small, target = torch.randn(3, 1, 500, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    found = solve([F, small * scale * F.norm() / small.norm()], target, 1e-3)
    assert bool(found[1]) is used
    if not used:
        torch.testing.assert_close(found[:1], solve([F], target, 1e-3), rtol=1e-12, atol=0)


def test_half_precision_is_summed_in_float64():
    features, target = problem()
    half = [f.bfloat16() for f in features]
    exact = solve([f.double() for f in half], target.bfloat16().double())
    assert torch.equal(solve(half, target.bfloat16()), exact)
    assert exact.dtype == torch.float64


def test_memory_does_not_grow_with_the_prompts():
    features, target = problem()
    sums = RidgeSums(3)
    for _ in range(4):
        sums.update(features, target)
        assert sum(x.numel() for x in vars(sums).values()) == 3 * 3 + 3


def test_prompt_weights_are_inverse_energies():
    residual = torch.tensor([[1.0, 1.0], [2.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    target = torch.tensor([[0.0, 0.0], [0.0, 1000.0], [0.0, 100.0], [0.0, 0.0]])
    weights = prompt_weights(residual, target)
    torch.testing.assert_close(weights, torch.tensor([1 / 2, 1 / 5, 1 / 0.01, 0.0], dtype=torch.float64))
    one_by_one = [prompt_weights(residual[p : p + 1], target[p : p + 1]) for p in range(4)]
    assert torch.equal(torch.cat(one_by_one), weights)


def test_prompt_weights_make_prompts_of_any_scale_count_alike():
    """Two prompts that ask for 1 and for 3: the answer is 2, though one is a thousand times louder."""
    feature = torch.tensor([[1.0, 2.0], [1000.0, 2000.0]], dtype=torch.float64)
    target = feature * torch.tensor([[1.0], [3.0]])
    plain = solve([feature], target).item()
    weights = 1 / feature.square().sum(1)
    assert plain == pytest.approx(3, rel=1e-5)
    assert solve([feature], target, weights=weights).item() == pytest.approx(2)
    torch.testing.assert_close(prompt_weights(feature, 0 * feature), weights)


def test_refusals_name_the_value_and_the_remedy():
    features, target = problem()
    with pytest.raises(InvalidArgument, match="2 features for sums over 3; pass as many"):
        RidgeSums(3).update(features[:2], target)
    for ridge in (-0.1, math.nan):
        with pytest.raises(InvalidArgument, match=f"ridge is {ridge}; use 0 for plain least squares"):
            RidgeSums(3).solve(ridge)
