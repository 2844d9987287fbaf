import math

import pytest
import torch
from torch import Tensor

from dummies import LinearDenoiser, cached_euler, euler, shifted_sigmas
from ertacache.core.history import History
from ertacache.core.predictor import Predictor
from ertacache.core.schedule import Schedule
from ertacache.errors import PredictorInvalid, ScheduleInvalid

SIGMAS = shifted_sigmas(4)
SCHEDULE = Schedule.from_mask("#..#")
DENOISER = LinearDenoiser(
    torch.tensor([[-0.4, 0.9], [-0.7, 0.2]], dtype=torch.float64), torch.tensor([0.5, -1.0]).double()
)
X0 = torch.tensor([[1.0, 2.0], [-3.0, 0.5]], dtype=torch.float64)

LAYOUTS = {  # one latent without its batch axis -> its per-channel coefficient
    "packed [N, C]": ((5, 4), (1, 4)),
    "image [C, H, W]": ((4, 3, 2), (4, 1, 1)),
    "video [C, F, H, W]": ((4, 2, 3, 2), (4, 1, 1, 1)),
    "video [F, C, H, W]": ((2, 4, 3, 2), (1, 4, 1, 1)),
}
GRANULARITIES = ("scalar", "channel", "element")


def coef_shape(layout: str, granularity: str) -> tuple[int, ...]:
    latent, channel = LAYOUTS[layout]
    return {"scalar": (), "channel": channel, "element": latent}[granularity]


def dyadic(*shape: int, seed: int = 0) -> Tensor:
    """Random multiples of 1/16 in [-2, 2): exact in bf16, float16 and float32 alike."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-32, 32, shape, generator=generator).float() / 16


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-13, atol=1e-13)


def test_residual_reuse_is_a_scaling_by_one_plus_dsigma_after_an_euler_step():
    outputs = cached_euler(DENOISER, X0, SIGMAS, SCHEDULE, Predictor.residual_reuse(SCHEDULE, ["cond"])).outputs
    growth = 1 + SIGMAS.diff()
    v = DENOISER(X0, 1.0)
    close(outputs[1], growth[0] * v)
    close(outputs[2], growth[0] * growth[1] * v)


def test_reuse_on_the_linear_denoiser_follows_its_closed_form():
    """Predicted stretches are polynomials in v_0; a computed step multiplies by I + Δσ A and adds Δσ σ c."""
    d, v = SIGMAS.diff(), DENOISER(X0, 1.0)
    before_last = {
        "plain": X0 + (d[0] + d[1] + d[2]) * v,
        "residual": X0 + ((1 + d[0]) * (1 + d[1]) * (1 + d[2]) - 1) * v,
    }
    predictors = {
        "plain": Predictor.plain_reuse(SCHEDULE, ["cond"]),
        "residual": Predictor.residual_reuse(SCHEDULE, ["cond"]),
    }
    for name, x3 in before_last.items():
        run = cached_euler(DENOISER, X0, SIGMAS, SCHEDULE, predictors[name])
        close(run.latents[3], x3)
        close(run.latents[4], x3 @ DENOISER.propagator(SIGMAS, 3, 4).T + d[3] * SIGMAS[3] * DENOISER.c)


def test_extrapolation_is_exact_for_a_velocity_linear_in_sigma():
    drift = LinearDenoiser(torch.zeros(2, 2, dtype=torch.float64), DENOISER.c)
    sigmas = torch.tensor([1.0, 0.75, 0.5, 0.125, 0.0], dtype=torch.float64)  # α exact in float32
    schedule = Schedule.from_mask("##..")
    predictor = Predictor.extrapolation(schedule, ["cond"], sigmas)
    run, reference = cached_euler(drift, X0, sigmas, schedule, predictor), euler(drift, X0, sigmas)
    close(run.latents, reference.latents)
    assert predictor.a[2].tolist() == [[[2.0, -1.0]]]
    assert predictor.a[3].tolist() == [[[3.5, -2.5]]]


def test_extrapolation_repeats_while_only_one_output_exists():
    predictor = Predictor.extrapolation(Schedule.from_mask("#.#."), ["cond"], SIGMAS)
    assert predictor.a[1].tolist() == [[[1.0, 0.0]]]
    assert predictor.needed_levels(1) == 1


def test_extrapolation_uses_the_last_two_computed_steps():
    sigmas = shifted_sigmas(5)
    predictor = Predictor.extrapolation(Schedule.from_mask("##.#."), ["cond"], sigmas)
    alpha = float((sigmas[4] - sigmas[3]) / (sigmas[3] - sigmas[1]))
    torch.testing.assert_close(predictor.a[4].flatten(), torch.tensor([1 + alpha, -alpha]))


def test_contexts_are_predicted_each_from_itself():
    predictor = Predictor.residual_reuse(Schedule.from_mask("#."), ["cond", "uncond"])
    cond, uncond = predictor.terms(1, "cond"), predictor.terms(1, "uncond")
    assert (cond.a, cond.d, cond.b) == ((("cond", 0, 1.0),), 1.0, None)
    assert (uncond.a, uncond.d, uncond.b) == ((("uncond", 0, 1.0),), 1.0, None)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_formula_p_for_every_layout_and_granularity(layout: str, granularity: str):
    """Two contexts, two levels, d and b at once, against the formula written out."""
    latent, coef = LAYOUTS[layout][0], coef_shape(layout, granularity)
    a, d, b = dyadic(3, 1, 2, 2, *coef), dyadic(3, 1, *coef, seed=1), dyadic(3, 1, *coef, seed=2)
    v = dyadic(2, 2, 3, *latent, seed=3).double()  # [level, context, batch, ...]
    x, x1 = dyadic(2, 3, *latent, seed=4).double()
    history = History(levels=2)
    for level in (1, 0):  # oldest first
        for c, context in enumerate(("cond", "uncond")):
            history.push(context, v[level, c], x1 if level == 0 else x1 + 7)
    prediction = Predictor(("guided",), ("cond", "uncond"), a, d, b).terms(2, "guided")(history, x)
    expected = d[2, 0] * (x - x1) + b[2, 0]
    for level in range(2):
        for c in range(2):
            expected = expected + a[2, 0, c, level] * v[level, c]
    assert torch.equal(prediction, expected)


@pytest.mark.parametrize(("dtype", "half_ulp"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_half_precision_history_is_computed_in_float32(dtype: torch.dtype, half_ulp: float):
    """2.3 v_1 − 1.3 v_2 cancels: rounding in between would show, rounding once at the end does not."""
    a = torch.tensor([2.3, -1.3]).expand(2, 1, 1, 2).contiguous()
    predictor = Predictor(("cond",), ("cond",), a, torch.full((2, 1), 0.7), torch.full((2, 1), 0.1))
    generator = torch.Generator().manual_seed(0)
    v1, v2, x, x1 = torch.randn(4, 2, 64, 16, generator=generator).to(dtype)
    history = History(levels=2)
    history.push("cond", v2)
    history.push("cond", v1, x1)
    prediction = predictor.terms(1, "cond")(history, x)
    weights = [float(w) for w in (*a[1, 0, 0], predictor.d[1, 0], predictor.b[1, 0])]
    exact = weights[0] * v1.double() + weights[1] * v2.double()
    exact = exact + weights[2] * (x.double() - x1.double()) + weights[3]
    bound = half_ulp * exact.abs() + 1e-6
    assert prediction.dtype == dtype
    assert ((prediction.double() - exact).abs() <= bound).all()
    rough = 2.3 * v1 - 1.3 * v2 + 0.7 * (x - x1) + 0.1
    assert ((rough.double() - exact).abs() > bound).float().mean() > 0.2


def test_the_result_has_the_dtype_of_the_newest_output():
    terms = Predictor.residual_reuse(Schedule.from_mask("#."), ["cond"]).terms(1, "cond")
    history = History(levels=1)
    history.push("cond", torch.ones(1, 4, dtype=torch.bfloat16), torch.zeros(1, 4))
    assert terms(history, torch.ones(1, 4)).dtype == torch.bfloat16


def test_terms_drop_zeros_and_turn_scalars_into_floats():
    a, d, b = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1), torch.zeros(2, 1)
    a[1, 0, 1, 1] = -0.5
    b[1, 0] = 0.25
    terms = Predictor(("guided",), ("cond", "uncond"), a, d, b).terms(1, "guided")
    assert (terms.a, terms.d, terms.b) == ((("uncond", 1, -0.5),), None, 0.25)
    per_channel = Predictor(("v",), ("v",), torch.ones(1, 1, 1, 1, 4), *torch.ones(2, 1, 1, 4)).terms(0, "v")
    for coefficient in (per_channel.a[0][2], per_channel.d, per_channel.b):
        assert isinstance(coefficient, Tensor)
        assert coefficient.dtype == torch.float32 and coefficient.shape == (4,)
    nothing = Predictor(("guided",), ("cond", "uncond"), a, d, b).terms(0, "guided")
    history = History(levels=1)
    history.push("cond", torch.ones(1, 3))
    assert torch.equal(nothing(history, torch.ones(1, 3)), torch.zeros(1, 3))


@pytest.mark.parametrize("rectifier", GRANULARITIES)
@pytest.mark.parametrize("own", GRANULARITIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rectified_is_the_prediction_followed_by_the_rectifier(layout: str, own: str, rectifier: str):
    latent, coef, other = LAYOUTS[layout][0], coef_shape(layout, own), coef_shape(layout, rectifier)
    a, d, b = dyadic(2, 1, 1, 2, *coef), dyadic(2, 1, *coef, seed=1), dyadic(2, 1, *coef, seed=2)
    kappa, beta = dyadic(2, 1, *other, seed=3), dyadic(2, 1, *other, seed=4)
    predictor = Predictor(("cond",), ("cond",), a, d, b)
    v1, v2, x, x1 = dyadic(4, 3, *latent, seed=5).double()
    history = History(levels=2)
    history.push("cond", v2)
    history.push("cond", v1, x1)
    v = predictor.terms(1, "cond")(history, x)
    folded = predictor.rectified(kappa, beta)
    assert torch.equal(folded.terms(1, "cond")(history, x), v - (kappa[1, 0] * v + beta[1, 0]))
    assert folded.coef_shape == torch.broadcast_shapes(coef, other)


def test_rectified_aligns_coefficients_of_unlike_rank_from_the_right():
    """A coefficient (4,) and one (5, 4) meet as broadcasting would have them."""
    a, d = dyadic(2, 1, 1, 1, 4), dyadic(2, 1, 4, seed=1)
    kappa, beta = dyadic(2, 1, 5, 4, seed=2), dyadic(2, 1, 4, seed=3)
    folded = Predictor(("cond",), ("cond",), a, d, d).rectified(kappa, beta)
    assert torch.equal(folded.a[1, 0, 0, 0], a[1, 0, 0, 0] * (1 - kappa[1, 0]))
    assert torch.equal(folded.b[1, 0], d[1, 0] * (1 - kappa[1, 0]) - beta[1, 0])


def test_needed_levels_counts_how_far_back_a_step_reaches():
    a, d = torch.zeros(4, 1, 2, 3, 1, 4), torch.zeros(4, 1, 1, 4)
    a[1, 0, 0, 0, 0, 3] = 1.0
    a[2, 0, 1, 2, 0, 0] = 1.0
    d[3, 0, 0, 1] = 1.0
    predictor = Predictor(("guided",), ("cond", "uncond"), a, d, torch.zeros_like(d))
    assert [predictor.needed_levels(i) for i in range(4)] == [0, 1, 3, 1]


def test_for_schedule_accepts_its_own_schedule_and_refuses_others():
    schedule = Schedule.from_mask("##.#.")
    predictor = Predictor.extrapolation(schedule, ["cond"], shifted_sigmas(5))
    predictor.for_schedule(schedule)
    with pytest.raises(PredictorInvalid, match="has 5 steps and the schedule 4; calibrate for 4"):
        predictor.for_schedule(SCHEDULE)
    with pytest.raises(PredictorInvalid, match=r"step 2 of '###\.\.' is computed, yet has coefficients; set"):
        predictor.for_schedule(Schedule.from_mask("###.."))
    with pytest.raises(ScheduleInvalid, match=r"step 2 .* needs the last 2 computed steps and has 1; compute"):
        predictor.for_schedule(Schedule.from_mask("#..#."))


def test_a_coefficient_may_be_as_large_as_the_cap():
    assert table(a=A + 10000, b=ROW - 10000).a.max() == 10000


A, ROW = torch.zeros(2, 1, 1, 1), torch.zeros(2, 1)


def table(a: Tensor = A, d: Tensor = ROW, b: Tensor = ROW, targets=("v",), sources=("c",)) -> Predictor:
    return Predictor(targets, sources, a, d, b)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: table(targets=()), r"targets are \(\); give one or more"),
        (lambda: table(sources=("c", "c")), r"sources are \('c', 'c'\); give .* each once"),
        (lambda: table(a=A[0]), r"a has shape \(1, 1, 1\); give \[T, targets"),
        (lambda: table(a=A[:0]), r"a has shape \(0, 1, 1, 1\); give \[T, targets"),
        (lambda: table(sources=("c", "u")), r"a has shape .* where \(2, 1, 2, 1\) fits"),
        (lambda: table(d=ROW[:1]), r"d has shape \(1, 1\) where \(2, 1\) fits"),
        (lambda: table(b=ROW[0]), r"b has shape \(1,\) where \(2, 1\) fits"),
        (lambda: table(d=ROW.double()), r"d is torch.float64 on cpu; give table\.float\(\)\.cpu\(\)"),
        (lambda: table(d=ROW.to("meta")), r"d is torch.float32 on meta; give table\.float\(\)\.cpu\(\)"),
        (lambda: table(a=A * math.nan), "a holds NaN or infinite .* with a ridge"),
        (lambda: table(b=ROW + math.inf), "b holds NaN or infinite"),
        (lambda: table(a=A + 10001), r"a holds 1e\+04 at step 0, beyond ±10000, .*; fit it again with a larger ridge"),
        (lambda: table(d=ROW - 1e30), r"d holds -1e\+30 at step 0, beyond ±10000"),
        (lambda: table().terms(0, "u"), r"'u' .* targets are \('v',\)"),
        (lambda: table().rectified(ROW[:1], ROW), r"kappa .* \(1, 1\); start .* \[T, targets\] = \(2, 1\)"),
        (lambda: table().rectified(ROW, ROW.T), r"beta .* \(1, 2\); start .* \[T, targets\] = \(2, 1\)"),
        (
            lambda: table().rectified(torch.zeros(2, 1, 1, 4), torch.zeros(2, 1, 1, 3)),
            r"\[\(\), \(1, 4\), \(1, 3\)\] do not broadcast; fit all on one",
        ),
        (lambda: Predictor.plain_reuse(SCHEDULE, []), r"targets are \(\); give"),
        (lambda: Predictor.extrapolation(SCHEDULE, ["c"], SIGMAS[:4]), r"\(4,\); give \[T\+1\] = \[5\]"),
        (lambda: Predictor.extrapolation(Schedule.from_mask("##.."), ["c"], torch.ones(5)), "a holds NaN"),
    ],
)
def test_refusals_name_the_value_and_the_remedy(build, message: str):
    with pytest.raises(PredictorInvalid, match=message):
        build()
