import math

import pytest
import torch
from torch import Tensor

from dummies import GaussianMixture, euler, shifted_sigmas
from ertacache.core.policy import Probe, RelativeL1, decide, l1_per_prompt, nearest_threshold
from ertacache.errors import InvalidArgument


def relative_l1(reused: Tensor, true: Tensor, reference: Tensor) -> float:
    """Eq. 12 in one go."""
    ratio = RelativeL1()
    ratio.update(reused, true, l1_per_prompt(reference))
    return ratio.value


def test_relative_l1_is_a_ratio_of_sums_not_a_mean_of_ratios():
    true = torch.zeros(2, 2, dtype=torch.float64)
    reused = torch.tensor([[1.0, -1.0], [0.0, 6.0]], dtype=torch.float64)
    reference = torch.tensor([[1.0, 0.0], [0.0, 31.0]], dtype=torch.float64)
    assert relative_l1(reused, true, reference) == 8 / 32  # the ratios are 2 and 6/31


def test_l1_per_prompt():
    x = torch.tensor([[[1.0, -2.0]], [[0.5, 0.25]]], dtype=torch.bfloat16)
    assert l1_per_prompt(x).tolist() == [3.0, 0.75]
    assert l1_per_prompt(x).dtype == torch.float64


def test_streaming_equals_one_shot_however_the_prompts_are_split():
    generator = torch.Generator().manual_seed(0)
    reused, true, reference = torch.randn(3, 6, 5, 4, generator=generator).bfloat16()
    expected = float((reused.double() - true.double()).abs().sum() / reference.double().abs().sum())
    one_by_one, first, second = RelativeL1(), RelativeL1(), RelativeL1()
    for p in range(6):
        one_by_one.update(reused[p : p + 1], true[p : p + 1], l1_per_prompt(reference[p : p + 1]))
    first.update(reused[:2], true[:2], l1_per_prompt(reference[:2]))
    second.update(reused[2:], true[2:], l1_per_prompt(reference[2:]))
    first.merge(second)
    assert one_by_one.value == pytest.approx(expected, rel=1e-14)
    assert first.value == pytest.approx(expected, rel=1e-14)


def test_half_precision_residuals_are_subtracted_exactly():
    reused, true = torch.tensor([[256.0]]).bfloat16(), torch.tensor([[0.5]]).bfloat16()
    assert relative_l1(reused, true, torch.ones(1, 1)) == 255.5  # 256 in bf16 arithmetic


def test_without_a_reference_only_a_perfect_reuse_passes():
    zero, one = torch.zeros(1, 2), torch.ones(1, 2)
    ratio = RelativeL1()
    ratio.update(zero, zero, l1_per_prompt(zero))
    assert ratio.value == 0.0
    ratio.update(one, zero, l1_per_prompt(zero))
    assert ratio.value == math.inf


def test_decide_predicts_below_the_threshold_and_never_at_the_ends():
    assert [decide(i, 4, 0.1, 0.2) for i in range(4)] == [False, True, True, False]
    assert not decide(1, 4, 0.2, 0.2)
    assert not decide(1, 4, math.nan, 0.2)
    assert not decide(1, 4, 0.0, 0.0)


def test_algorithm_2_on_a_velocity_whose_residual_error_is_known():
    """v = −x and Δσ = −1/4 from x_0 = 1: r_0 = −2, then x_1 = 1.25 and r_1 = −2.5."""
    sigmas = torch.linspace(1, 0, 5, dtype=torch.float64)
    latents, outputs = euler(lambda x, sigma: -x, torch.ones(1, 3, dtype=torch.float64), sigmas)
    residual = outputs - latents[:-1]
    value = relative_l1(residual[0], residual[1], residual[1])
    assert value == pytest.approx(0.5 / 2.5)
    assert decide(1, 4, value, 0.201) and not decide(1, 4, value, 0.2 - 1e-12)


def test_nearest_threshold_hits_and_stops():
    calls: list[float] = []

    def count(threshold: float) -> int:
        calls.append(threshold)
        return round(30 * (1 - threshold))

    best, *others = nearest_threshold(count, K=15, lo=0.0, hi=0.75)
    assert best == Probe(0.515625, 15)
    assert [best.threshold, *[probe.threshold for probe in others]] != calls  # sorted, not as tried
    assert calls == [0.375, 0.5625, 0.46875, 0.515625]


def test_nearest_threshold_takes_the_larger_K_of_two_equally_near():
    probes = nearest_threshold(lambda t: 12 if t > 0.3 else 18, K=15, lo=0.0, hi=1.0, probes=5)
    assert probes[0] == Probe(0.25, 18)
    assert len(probes) == 5
    assert probes == nearest_threshold(lambda t: 12 if t > 0.3 else 18, K=15, lo=0.0, hi=1.0, probes=5)


def test_nearest_threshold_remembers_a_near_miss_where_the_count_is_not_monotone():
    counts = {0.5: 16, 0.75: 10, 0.625: 11, 0.5625: 12}
    assert nearest_threshold(counts.__getitem__, K=15, lo=0.0, hi=1.0, probes=4)[0] == Probe(0.5, 16)


@pytest.mark.parametrize(("lo", "hi", "probes"), [(0.5, 0.5, 3), (-0.1, 1.0, 3), (0.0, 1.0, 0)])
def test_nearest_threshold_refuses_an_empty_search(lo: float, hi: float, probes: int):
    with pytest.raises(InvalidArgument, match=f"lo={lo}, hi={hi}, probes={probes}: need 0 <= lo < hi and"):
        nearest_threshold(lambda t: 1, 1, lo, hi, probes)


def test_a_larger_threshold_computes_fewer_steps_of_the_mixture():
    """Algorithm 2 from its parts, closed loop, on the exact mixture."""
    mixture, sigmas, T = GaussianMixture(), shifted_sigmas(16), 16
    x0, label = mixture.draw(8, seed=1)
    velocity = mixture.guided(label, 3.0)
    reference = euler(velocity, x0, sigmas)
    norms = [l1_per_prompt(v - x) for v, x in zip(reference.outputs, reference.latents, strict=False)]

    def mask(threshold: float) -> str:
        x, held, marks = x0, x0, ""
        for i in range(T):
            residual = velocity(x, float(sigmas[i])) - x
            ratio = RelativeL1()
            ratio.update(held, residual, norms[i])
            predict = decide(i, T, ratio.value, threshold)
            held = held if predict else residual
            marks += "." if predict else "#"
            x = x + (sigmas[i + 1] - sigmas[i]) * (x + held)
        return marks

    assert mask(0.0) == "#" * T
    assert mask(1e9) == "#" + "." * (T - 2) + "#"
    probes = nearest_threshold(lambda threshold: mask(threshold).count("#"), 8, 0.0, 2.0)
    assert abs(probes[0].computed - 8) <= 1
