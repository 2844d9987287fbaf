"""Corrections of quantised outputs: the table, its estimators against closed forms, and where they harm."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ertacache.core.compensation import Compensation
from ertacache.core.compensation_fit import CompensationSums, Estimator, Sharing, compensation
from ertacache.errors import CalibrationError, InvalidArgument, PredictorInvalid

ESTIMATORS: tuple[Estimator, ...] = ("bias", "gain", "ptqd-gain", "ptqd", "affine")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def summed(o: Tensor, q: Tensor, axis: int = 1, weights: Tensor | None = None) -> CompensationSums:
    sums = CompensationSums(axis)
    sums.update(o, q, weights)
    return sums


def table(gain: Any, previous: Any, bias: Any) -> Compensation:
    return Compensation(*(torch.tensor(one, dtype=torch.float32) for one in (gain, previous, bias)))


@pytest.mark.parametrize("axis", [1, 2, -1])
def test_a_step_is_the_formula_on_the_channels_of_its_axis(axis: int) -> None:
    found = table([[1.0, 2.0, 3.0]] * 2, [[0.0, 0.0, 0.0], [0.5, -1.0, 0.0]], [[0.0, 0.25, 4.0]] * 2)
    outputs = random(2, 5, 3, 3, 3).float()
    shape = [1, 1, 1, 1]
    shape[axis] = 3
    gain, previous, bias = (one[1].view(shape) for one in (found.gain, found.previous, found.bias))
    expected = outputs[0] * gain + outputs[1] * previous + bias
    assert torch.equal(found.apply(1, outputs[0], outputs[1], axis), expected)


def test_a_step_that_does_nothing_returns_the_very_output() -> None:
    output, identity = random(2, 3, 4), Compensation.identity(3, 3)
    assert identity.apply(1, output, None, 1) is output and identity.is_identity(2)
    assert identity.correction(0, output.shape, 1) is None and (identity.T, identity.channels) == (3, 3)
    for n in range(3):
        rows = [[[1.0]], [[0.0]], [[0.0]]]
        rows[n] = [[0.5]]
        changed = [[[base[0][0]], row[0]] for base, row in zip([[[1.0]], [[0.0]], [[0.0]]], rows, strict=True)]
        one = table(*changed)
        assert one.is_identity(0) and not one.is_identity(1)
        assert [one.reads_previous(0), one.reads_previous(1)] == [False, n == 1]


def test_shared_coefficients_are_numbers_and_half_precision_is_computed_in_float32() -> None:
    found = table([[1.0], [0.3]], [[0.0], [0.7]], [[0.0], [0.1]])
    step = found.correction(1, (2, 3, 4), 1)
    assert step is not None and isinstance(step.gain, float) and isinstance(step.previous, float)
    outputs = random(2, 2, 3, 4).bfloat16()
    expected = outputs[0].float() * step.gain + outputs[1].float() * step.previous + step.bias
    assert torch.equal(found.apply(1, outputs[0], outputs[1], 1), expected.bfloat16())
    assert found.apply(1, outputs[0].double(), outputs[1].double(), 1).dtype == torch.float64


ONE, ZERO = [[1.0], [1.0]], [[0.0], [0.0]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: table([1.0], [0.0], [0.0]), r"gain has shape \(1,\); give \[T, C\]"),
        (lambda: Compensation.identity(0), r"gain has shape \(0, 1\); give \[T, C\]"),
        (lambda: table(ONE, [[0.0]], ZERO), r"previous has shape \(1, 1\) where \(2, 1\) fits; reshape it"),
        (lambda: table([[math.nan], [1.0]], ZERO, ZERO), "gain holds NaN or infinite coefficients"),
        (lambda: table(ONE, ZERO, [[math.inf], [0.0]]), "bias holds NaN or infinite coefficients"),
        (lambda: table(ONE, ZERO, [[0.0], [-2e4]]), r"bias holds -2e\+04 at step 1, beyond ±10000"),
        (lambda: table(ONE, [[0.1], [0.0]], ZERO), "previous has coefficients at step 0, which has no step before it"),
        (lambda: Compensation(*[torch.ones(2, 1).double()] * 3), r"gain is torch.float64 on cpu; give table.float\(\)"),
    ],
)
def test_tables_that_cannot_run_are_refused(make: Any, message: str) -> None:
    with pytest.raises(PredictorInvalid, match=message):
        make()


def test_outputs_that_do_not_fit_are_refused() -> None:
    channels = Compensation.identity(2, 3)
    found = Compensation(channels.gain * 2, channels.previous, channels.bias)
    for axis in (1, 5):
        with pytest.raises(PredictorInvalid, match=rf"3 channels and axis {axis} of an output \(2, 4, 5\) has not"):
            found.apply(0, random(2, 4, 5), None, axis)
    before = table(ONE, [[0.0], [0.5]], ZERO)
    with pytest.raises(PredictorInvalid, match="reads the output of the step before, which was not kept"):
        before.apply(1, random(2, 4, 5), None, 1)


def test_a_known_gain_is_recovered_by_every_form_of_it() -> None:
    K = torch.tensor([0.1, -0.2, 0.3, 0.0], dtype=torch.float64)
    q = random(6, 4, 50)
    o = q * (1 - K[:, None])
    for estimator in ("gain", "affine"):
        gain, bias = summed(o, q).solve(estimator)
        assert torch.allclose(gain, 1 - K, atol=1e-12) and torch.allclose(bias, torch.zeros(4).double(), atol=1e-12)
    # On the exact output the slope is 1 / (1 − K) − 1, and one below 0 is clipped.
    for estimator in ("ptqd", "ptqd-gain"):
        gain, _ = summed(o, q).solve(estimator)
        assert torch.allclose(gain, (1 - K).clamp_max(1), atol=1e-12)


def test_a_known_line_is_recovered_with_its_bias() -> None:
    o = random(6, 3, 40)
    k, b = torch.tensor([0.1, 0.5, 0.0]).double()[:, None], torch.tensor([1.0, -2.0, 0.5]).double()[:, None]
    q = (1 + k) * o + b
    for estimator in ("affine", "ptqd"):
        gain, bias = summed(o, q).solve(estimator)
        assert torch.allclose(q * gain[:, None] + bias[:, None], o, atol=1e-12)
    assert torch.allclose(summed(o, o + b).solve("bias")[1], -b[:, 0], atol=1e-12)


@pytest.mark.parametrize("sharing", ["scalar", "channel"])
def test_each_estimator_is_its_closed_form(sharing: Sharing) -> None:
    o = random(5, 3, 7) + 0.4
    q = o * 1.1 + 0.3 * random(5, 3, 7, seed=1) + 0.2
    rows = [(o[:, c].flatten(), q[:, c].flatten()) for c in range(3)] if sharing == "channel" else [(o, q)]
    pairs = [(a.flatten(), b.flatten()) for a, b in rows]
    by_hand: dict[str, Any] = {
        "bias": [(1.0, float((a - b).mean())) for a, b in pairs],
        "gain": [(float(1 - ((b - a) * b).sum() / (b * b).sum()), 0.0) for a, b in pairs],
        "ptqd-gain": [(float(1 / (1 + ((b - a) * a).sum() / (a * a).sum())), 0.0) for a, b in pairs],
        "affine": [],
    }
    for a, b in pairs:
        slope = float(((b - b.mean()) * (a - a.mean())).sum() / (b - b.mean()).square().sum())
        by_hand["affine"].append((slope, float(a.mean() - slope * b.mean())))
    for estimator, expected in by_hand.items():
        gain, bias = summed(o, q).solve(estimator, sharing)  # type: ignore[arg-type]
        assert gain.tolist() == pytest.approx([one[0] for one in expected], rel=1e-10)
        assert bias.tolist() == pytest.approx([one[1] for one in expected], abs=1e-10)
    slopes = [
        float(((b - a - (b - a).mean()) * (a - a.mean())).sum() / (a - a.mean()).square().sum()) for a, b in pairs
    ]
    gain, bias = summed(o, q).solve("ptqd", sharing)
    gains = [1 / (1 + max(k, 0.0)) for k in slopes] * (3 // len(slopes))
    assert gain.tolist() == pytest.approx(gains, rel=1e-10)
    expected = [float((o[:, c] - gains[c] * q[:, c]).mean()) for c in range(3)]
    assert bias.tolist() == pytest.approx(expected, abs=1e-10)


def test_independent_noise_pulls_the_gain_on_the_quantised_output_and_not_ptqds() -> None:
    """var(o) = 1, var(e) = 1/4: K tends to 1/4 / (1 + 1/4) = 0.2, and k to 0."""
    o, noise = random(64, 2, 4000), 0.5 * random(64, 2, 4000, seed=1)
    sums = summed(o, o + noise)
    K, k = 1 - sums.solve("gain")[0], 1 / sums.solve("ptqd-gain")[0] - 1
    assert K.tolist() == pytest.approx([0.2, 0.2], abs=2e-3)
    assert k.tolist() == pytest.approx([0.0, 0.0], abs=2e-3)
    assert sums.solve("affine")[0].tolist() == pytest.approx([0.8, 0.8], abs=2e-3)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("sharing", ["scalar", "channel"])
def test_an_exact_output_is_left_as_it_is_and_so_is_one_of_zeros(estimator: Estimator, sharing: Sharing) -> None:
    for o in (random(3, 2, 5), torch.zeros(3, 2, 5), torch.full((3, 2, 5), 0.1)):
        assert compensation([summed(o, o)], estimator, sharing).is_identity(0)


def test_ridge_shrinks_slopes_toward_the_identity() -> None:
    o = random(4, 2, 30)
    sums = summed(o, 1.25 * o)
    assert (1 - sums.solve("gain", ridge=1.0)[0]).tolist() == pytest.approx([0.1, 0.1])
    assert (1 / sums.solve("ptqd-gain", ridge=1.0)[0] - 1).tolist() == pytest.approx([0.125, 0.125])
    gains = [float(sums.solve("affine", "scalar", ridge)[0][0]) for ridge in (0.0, 1.0, 1e9)]
    assert gains == pytest.approx([0.8, 0.9, 1.0])
    for ridge in (-1.0, math.nan):
        with pytest.raises(InvalidArgument, match=f"ridge is {ridge}; use 0 for plain least squares"):
            sums.solve("gain", ridge=ridge)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_sums_do_not_depend_on_how_prompts_are_split(estimator: Estimator) -> None:
    o, q, w = random(5, 3, 4, 2), random(5, 3, 4, 2, seed=1) + 0.2, torch.tensor([1.0, 0.5, 2.0, 0.0, 3.0])
    whole, parts, rest = summed(o, q, -3, w), CompensationSums(1), CompensationSums(1)
    parts.update(o[:2], q[:2], w[:2])
    rest.update(o[2:], q[2:], w[2:])
    parts.merge(rest)
    parts.merge(CompensationSums(1))
    again = CompensationSums.from_state(1, parts.state())
    # A weight is a number of prompts: 2 counts twice, 0 not at all.
    doubled = summed(o[[2, 2]], q[[2, 2]])
    for a, b in ((whole, again), (doubled, summed(o[2:3], q[2:3], weights=torch.tensor([2.0])))):
        for one, other in zip(a.solve(estimator), b.solve(estimator), strict=True):
            assert torch.allclose(one, other, atol=1e-13)


def test_sums_refuse_what_does_not_belong_together() -> None:
    sums = summed(random(2, 3, 4), random(2, 3, 4))
    with pytest.raises(InvalidArgument, match=r"outputs \(2, 3, 5\) and exact ones \(2, 3, 4\); give the same prompts"):
        sums.update(random(2, 3, 4), random(2, 3, 5))
    with pytest.raises(InvalidArgument, match=r"weights have shape \(3,\); give \[2\], one per prompt"):
        sums.update(random(2, 3, 4), random(2, 3, 4), torch.ones(3))
    with pytest.raises(InvalidArgument, match="outputs of 5 channels after 3; calibrate all prompts on one model"):
        sums.update(random(2, 5, 4), random(2, 5, 4))
    for axis in (0, 3, -3):
        with pytest.raises(InvalidArgument, match=rf"axis={axis} is no axis of a latent \(2, 3, 4\); use 1 to 2"):
            CompensationSums(axis).update(random(2, 3, 4), random(2, 3, 4))
    for value in (math.nan, math.inf):
        with pytest.raises(CalibrationError, match="a quantised or an exact output holds NaN or infinity"):
            sums.update(random(2, 3, 4), torch.full((2, 3, 4), value))
    with pytest.raises(CalibrationError, match="have seen no prompts; calibrate with at least one"):
        CompensationSums(1).solve("bias")
    with pytest.raises(InvalidArgument, match="estimator 'mean' with sharing 'channel'; choose one of bias, gain"):
        sums.solve("mean")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="with sharing 'element'; choose"):
        sums.solve("bias", "element")  # type: ignore[arg-type]


def test_the_previous_term_is_what_the_solver_makes_of_the_error_before() -> None:
    A, B, K = [0.9, 0.8, 0.7], [-0.1, -0.2, 0.0], [0.1, 0.2, 0.3]
    start = table([[1 - one] for one in K], [[0.0]] * 3, [[0.0]] * 3)
    found = start.with_previous(A, B, 0.5)
    q = random(3, 2, 4)
    C = B[1] * K[1] * q[1] + 0.5 * A[1] * B[0] * K[0] * q[0]
    assert torch.allclose(found.apply(1, q[1], q[0], 1), q[1] - C / B[1], atol=1e-7)
    # Where no output moves the step, and at the first one, the current term alone is left.
    for i in (0, 2):
        assert not found.reads_previous(i) and torch.equal(found.gain[i], start.gain[i])
    assert torch.equal(start.with_previous(A, B, 0.0).previous, torch.zeros(3, 1))


def test_the_previous_term_carries_a_bias_on() -> None:
    A, B = [1.0, 0.5], [2.0, 4.0]
    start = table([[1.0, 1.0]] * 2, [[0.0, 0.0]] * 2, [[-0.5, 0.25]] * 2)
    found = start.with_previous(A, B, 1.0)
    # δ of step 0 is −B bias; half of it, over B of step 1, is a quarter of the bias once more.
    assert found.bias.tolist() == [[-0.5, 0.25], [-0.625, 0.3125]] and not found.previous.any()


@pytest.mark.parametrize("channels", [1, 3])
def test_the_previous_term_is_taken_out_with_its_bias(channels: int) -> None:
    """But for the bias where the step before has a bias alone, which tells nothing of what was carried on."""
    gain, bias = (random(5, channels, seed=seed).float() for seed in (1, 2))
    gain[2], bias[3] = 1.0, 0.0  # what step 2 carries on
    start = Compensation(gain, torch.zeros_like(gain), bias)
    A, B = [0.9, 0.8, 0.7, 0.6, 0.5], [-0.1, -0.2, -0.3, -0.4, 0.0]
    full, alone = start.with_previous(A, B, 0.75), start.with_previous(A, B, 0.75).without_previous()
    assert not torch.equal(full.bias[1:3], bias[1:3]) and not alone.previous.any()
    assert torch.equal(alone.gain, gain)
    torch.testing.assert_close(alone.bias[[0, 1, 2, 4]], bias[[0, 1, 2, 4]], rtol=0, atol=1e-6)
    assert torch.equal(alone.bias[3], full.bias[3])
    # A term that carries no error of the step before on says nothing of its bias.
    free = table([[2.0, 3.0]] * 2, [[0.0, 0.0], [0.5, 0.5]], [[1.0, 1.0]] * 2).without_previous()
    assert free.bias.tolist() == [[1.0, 1.0]] * 2 and not free.previous.any()


def test_the_previous_term_refuses_weights_and_tables_that_do_not_fit() -> None:
    start = Compensation.identity(2)
    for weight in (-0.1, 1.5, math.nan):
        with pytest.raises(InvalidArgument, match=rf"the weight of the previous step is {weight}; give 0"):
            start.with_previous([1.0, 1.0], [1.0, 1.0], weight)
    with pytest.raises(InvalidArgument, match="1 scales and 2 slopes for 2 steps; give one each"):
        start.with_previous([1.0], [1.0, 1.0], 0.5)
    with pytest.raises(PredictorInvalid, match="reads the step before already; start from one with previous = 0"):
        table(ONE, [[0.0], [0.5]], ZERO).with_previous([1.0, 1.0], [1.0, 1.0], 0.5)
