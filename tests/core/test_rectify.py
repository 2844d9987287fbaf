import math

import pytest
import torch
from torch import Tensor

from ertacache.core.rectify import Affine, AffineSums, Granularity
from ertacache.errors import CalibrationError, InvalidArgument

LAYOUTS = {  # latent with its batch axis, channel axis, shape of a per-channel coefficient
    "packed [B, N, C]": ((6, 5, 4), -1, (1, 4)),
    "image [B, C, H, W]": ((6, 4, 3, 2), 1, (4, 1, 1)),
    "video [B, C, F, H, W]": ((6, 4, 2, 3, 2), 1, (4, 1, 1, 1)),
    "video [B, F, C, H, W]": ((6, 2, 4, 3, 2), -3, (1, 4, 1, 1)),
}
GRANULARITIES: tuple[Granularity, ...] = ("scalar", "channel", "element")


def pair(*shape: int) -> tuple[Tensor, Tensor]:
    """A prediction away from zero mean and an error that is partly affine in it."""
    generator = torch.Generator().manual_seed(0)
    v, noise = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    v = v + 0.7
    return v, 0.3 * v - 0.2 + 0.5 * noise


def fit(v: Tensor, e: Tensor, granularity: Granularity = "scalar", axis: int = 1, ridge: float = 0.0) -> Affine:
    sums = AffineSums(granularity, axis)
    sums.update(v, e)
    return sums.solve(ridge)


def lstsq_line(v: Tensor, e: Tensor) -> tuple[float, float]:
    design = torch.stack([v.flatten(), torch.ones_like(v).flatten()], 1)
    kappa, beta = torch.linalg.lstsq(design, e.flatten()[:, None]).solution[:, 0].tolist()
    return kappa, beta


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_line_is_least_squares_over_whatever_shares_it(layout: str, granularity: Granularity):
    shape, axis, channel_coef = LAYOUTS[layout]
    v, e = pair(*shape)
    affine = fit(v, e, granularity, axis)
    expected_shape = {"scalar": (), "channel": channel_coef, "element": shape[1:]}[granularity]
    assert affine.kappa.shape == affine.beta.shape == expected_shape
    owner = torch.arange(affine.kappa.numel()).reshape(expected_shape).expand(shape)
    lines = [lstsq_line(v[owner == j], e[owner == j]) for j in range(affine.kappa.numel())]
    expected = torch.tensor(lines, dtype=torch.float64)
    torch.testing.assert_close(affine.kappa.flatten(), expected[:, 0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(affine.beta.flatten(), expected[:, 1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_line_does_not_depend_on_how_prompts_are_split(granularity: Granularity):
    v, e = pair(6, 4, 3, 2)
    whole = fit(v, e, granularity)
    one_by_one, first, second = (AffineSums(granularity, 1) for _ in range(3))
    for p in range(6):
        one_by_one.update(v[p : p + 1], e[p : p + 1])
    first.update(v[:4], e[:4])
    second.update(v[4:], e[4:])
    first.merge(second)
    for affine in (one_by_one.solve(), first.solve()):
        torch.testing.assert_close(affine.kappa, whole.kappa, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(affine.beta, whole.beta, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("granularity", "coefficients"), [("scalar", 1), ("channel", 4), ("element", 24)])
def test_memory_does_not_grow_with_the_prompts(granularity: Granularity, coefficients: int):
    sums = AffineSums(granularity, 1)
    for _ in range(5):
        sums.update(*pair(3, 4, 3, 2))
        state = sums.state()
        assert set(state) == {"n", "v", "e", "vv", "ve"}
        assert sum(x.numel() for x in state.values()) == 1 + 4 * coefficients
        assert sum(x.untyped_storage().nbytes() for x in state.values()) == 8 * (1 + 4 * coefficients)


def test_a_fit_continues_from_its_state():
    v, e = pair(6, 4, 3)
    sums = AffineSums("channel", 1)
    assert sums.state() == {}
    sums.update(v[:3], e[:3])
    state = sums.state()
    resumed = AffineSums.from_state("channel", 1, state)
    for s in (sums, resumed):
        s.update(v[3:], e[3:])
    assert torch.equal(resumed.solve().kappa, sums.solve().kappa)
    assert torch.equal(resumed.solve().beta, sums.solve().beta)
    assert state["n"] == 9 and sums.state()["n"] == 18


def test_merge_with_sums_that_saw_nothing():
    v, e = pair(6, 4, 3)
    empty, full = AffineSums("channel", 1), AffineSums("channel", 1)
    full.update(v, e)
    full.merge(empty)
    empty.merge(full)
    assert torch.equal(empty.solve().kappa, full.solve().kappa)
    empty.update(v, e)  # must not reach into what it merged from
    assert full.state()["n"] == 18


def test_the_printed_B_is_not_the_least_squares_line():
    """Erratum of Eq. 21 and 35: K = 4 S_vε/S_vv already holds the 4, so B = 4(ε̄ − 1/2) − K v̄, not − 4K v̄.

    With the printed B the linearised model (K v + B)/4 + 1/2 does not even have the right mean.
    """
    v, e = pair(40, 4)
    affine = fit(v, e)
    K, B = affine.paper()
    kappa, beta = lstsq_line(v, e)
    printed = 4 * (e.mean() - 0.5) - 4 * K * v.mean()
    ours, theirs = ((K * v + b) / 4 + 0.5 for b in (B, printed))

    torch.testing.assert_close(ours, kappa * v + beta)
    torch.testing.assert_close(B, 4 * (e.mean() - 0.5) - K * v.mean())
    torch.testing.assert_close(ours.mean(), e.mean())
    torch.testing.assert_close((theirs - ours).mean(), -3 * affine.kappa * v.mean())
    loss, printed_loss = ((e - model).square().mean() for model in (ours, theirs))
    torch.testing.assert_close(printed_loss - loss, (3 * affine.kappa * v.mean()).square())
    assert printed_loss > 1.5 * loss


def test_the_sigmoid_subtracts_sigmoid_of_minus_two_where_the_error_is_zero():
    v, _ = pair(6, 4)
    affine = fit(v, torch.zeros_like(v))
    K, B = affine.paper()
    assert K.item() == 0 and B.item() == -2
    assert torch.equal(affine.apply(v), v)
    sigmoid = 1 / (1 + math.exp(2))
    torch.testing.assert_close(affine.apply_sigmoid(v), v - sigmoid, rtol=1e-15, atol=1e-15)


def test_the_sigmoid_cannot_represent_a_negative_error():
    v, _ = pair(6, 4)
    affine = fit(v, torch.full_like(v, -0.3))
    torch.testing.assert_close(affine.apply(v), v + 0.3)
    assert (affine.apply_sigmoid(v) < v).all()


def test_the_sigmoid_form_is_algorithm_1_line_17():
    v, e = pair(6, 4)
    affine = fit(v, e)
    K, B = (float(x) for x in affine.paper())
    torch.testing.assert_close(affine.apply_sigmoid(v), v - 1 / (1 + torch.exp(-(K * v + B))))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_apply_computes_in_float32_and_keeps_the_dtype(dtype: torch.dtype):
    v = pair(8, 4)[0].to(dtype)
    affine = Affine(torch.tensor(0.9371).double(), torch.tensor(0.01337).double())
    exact = v.double() - (0.9371 * v.double() + 0.01337)
    half_ulp = torch.finfo(dtype).eps / 2
    assert affine.apply(v).dtype == dtype
    assert ((affine.apply(v).double() - exact).abs() <= half_ulp * exact.abs() + 1e-6).all()
    assert affine.apply_sigmoid(v).dtype == dtype


def test_where_the_prediction_does_not_vary_the_mean_error_is_removed():
    v = torch.full((3, 2, 4), 0.1, dtype=torch.float64)
    v[:, 1] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    e = torch.tensor([0.3, 0.1, 0.2, 0.4], dtype=torch.float64).expand(3, 2, 4)
    affine = fit(v, e, "channel")
    assert affine.kappa[0].item() == 0
    assert affine.beta[0].item() == pytest.approx(0.25)
    assert affine.kappa[1].item() == pytest.approx(0.04)


def test_ridge_limits_and_its_unit():
    v, e = pair(6, 4, 3)
    plain = fit(v, e)
    assert fit(v, e, ridge=1.0).kappa.item() == pytest.approx(plain.kappa.item() / 2)  # one variance added
    infinite = fit(v, e, "element", ridge=math.inf)
    assert torch.equal(infinite.kappa, torch.zeros(4, 3).double())
    torch.testing.assert_close(infinite.beta, e.mean(0))
    variance = v.var(0, correction=0)
    covariance = (v * e).mean(0) - v.mean(0) * e.mean(0)
    expected = covariance / (variance + 0.5 * variance.mean())
    torch.testing.assert_close(fit(v, e, "element", ridge=0.5).kappa, expected)


def test_one_prompt_per_element_needs_a_ridge():
    v, e = pair(1, 4, 3)
    with pytest.raises(CalibrationError, match=r"one prompt .* 2 prompts or more, give a ridge, or use"):
        fit(v, e, "element")
    affine = fit(v, e, "element", ridge=0.1)
    assert torch.equal(affine.kappa, torch.zeros(4, 3).double())
    torch.testing.assert_close(affine.beta, e[0])
    assert fit(v, e, "channel").kappa.shape == (4, 1)


def test_refusals_name_the_value_and_the_remedy():
    v, e = pair(2, 4, 3)
    with pytest.raises(CalibrationError, match="has seen no prompts; calibrate with at least one"):
        AffineSums("scalar", 1).solve()
    for ridge in (-1.0, math.nan):
        with pytest.raises(InvalidArgument, match=f"ridge is {ridge}; use 0"):
            fit(v, e, ridge=ridge)
    for axis in (0, 3, -3, -4):
        with pytest.raises(InvalidArgument, match=rf"channel_axis={axis} .* \(2, 4, 3\); use 1 to 2"):
            fit(v, e, "channel", axis)
    sums = AffineSums("element", 1)
    sums.update(v, e)
    with pytest.raises(InvalidArgument, match=r"shape \(4, 2\) after \(4, 3\); calibrate .* one latent size"):
        sums.update(v[..., :2], e[..., :2])
