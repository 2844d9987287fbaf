"""A small model as the predictor on skipped steps: exact where it is the large one, counted, tied to its profile."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import benchmark_scripts
import ertacache
from assisted import ALL, CALL, FEW_PROMPTS, MASK, SEED, Plan, T, W, calibrated, drawn, method, other
from by_hand import ByHand
from dummy_pipeline import PROMPTS, MixtureModule, NamedMixtureModule, mixture_pipeline, untimed
from ertacache.calibration import recorder
from ertacache.calibration.assisted import spread_over, trades
from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.method import Method
from ertacache.calibration.prompts import Prompts
from ertacache.calibration.small_share import share_of_small
from ertacache.core.schedule import Schedule
from ertacache.errors import ProfileMismatch
from ertacache.profile.profile import Profile
from ertacache.runtime.small_model import SmallModel
from ertacache.runtime.watch import Watch
from pipelines import CFG_CALL, VIDEO_CALL, cogvideox, flux, generate
from pipelines import PROMPTS as TEXTS

pytestmark = FEW_PROMPTS


def test_a_small_model_that_is_the_large_one_predicts_exactly() -> None:
    pipe = mixture_pipeline()
    small, plain = copy.deepcopy(pipe.transformer), drawn(pipe)
    profile = calibrated(pipe, small)
    row = {name: profile.predictor.a[list(ALL), 0, s] for s, name in enumerate(profile.predictor.sources)}
    assert set(row) == {"guided", "direction", "small"} and not profile.predictor.d.any()
    torch.testing.assert_close(row["small"][:, 0], torch.ones(len(ALL)), rtol=0, atol=1e-5)
    assert max(float(row[name].abs().max()) for name in ("guided", "direction")) < 1e-5
    for module in (pipe.transformer, small):
        module.made.sizes.clear()
    with ertacache.apply(pipe, profile, predictor=small) as stats:
        found = drawn(pipe)
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-6 * float(plain.abs().max()))
    computed = MASK.count("#")
    assert len(pipe.transformer.made.sizes) == 2 * computed and len(small.made.sizes) == 2 * len(ALL)
    assert stats.computed == dict.fromkeys(("cond", "uncond"), computed)
    assert stats.small == stats.predicted == dict.fromkeys(("cond", "uncond"), len(ALL))
    assert profile.small_steps == ALL and profile.counted_steps == T  # both models count alike


@pytest.mark.parametrize("make", [lambda: flux(guidance_embeds=False, seed=5), cogvideox], ids=["flux", "cogvideox"])
def test_so_do_those_of_real_pipelines(make: Callable[[], Any]) -> None:
    """Two calls in a step, and one with both branches in its batch."""
    pipe = make()
    call = {**(CFG_CALL if hasattr(pipe, "text_encoder_2") else VIDEO_CALL), "num_inference_steps": 8}
    small, plain = copy.deepcopy(pipe.transformer), generate(pipe, TEXTS[3:], call, output_type="latent")
    how = method((1, 2, 4, 6), "#..#.#.#")
    profile = ertacache.calibrate(pipe, TEXTS[:3], method=how, predictor=small, show_progress=False, **call)
    assert profile.provenance.small_model["share"] == 1.0
    with ertacache.apply(pipe, profile, predictor=small) as stats:
        found = generate(pipe, TEXTS[3:], call, output_type="latent")
    assert float((found - plain).norm()) < 1e-4 * float(plain.norm())
    assert set(stats.small.values()) == set(stats.computed.values()) == {4}


def brute_force(large: ByHand, small: ByHand, how: Method) -> dict[int, Tensor]:
    """The weights of every predicted step, each by least squares on all rows written out."""
    _, xs, gs = large.uncached()
    final = large.step(xs[-1], large.T - 1, gs[-1], large.sigmas)
    goals, x = [*xs[1:], final], large.x0
    outputs, directions, weights, kept = list[Tensor](), list[Tensor](), dict[int, Tensor](), large.x0
    for i, mark in enumerate(MASK):
        if mark == "#":
            made = large.call(x, large.sigmas[i])
            g, kept = made["guided"], x
            outputs, directions = [g, *outputs][: how.levels], [made["cond"] - made["uncond"], *directions][:2]
        else:
            helps = i in how.small
            answer = small.call(x, large.sigmas[i])["guided"]
            base = answer if helps else outputs[0] + (x.float() - kept.float()).double()
            features = [*outputs, *directions, *([answer] if helps else [])]
            aim = (goals[i].double() - x.double()) / (large.sigmas[i + 1] - large.sigmas[i]).double()
            left, rows = aim - base, torch.stack([f.flatten(1) for f in features], 2)
            energy = left.flatten(1).square().sum(1) + 1e-6 * aim.flatten(1).square().sum(1)
            scaled = (rows / energy.sqrt()[:, None, None]).flatten(0, 1)
            size = scaled.square().sum(0)
            used = size > 1e-9 * size.max()  # the branches have nothing apart where there is noise alone
            rows = torch.cat([scaled[:, used], torch.diag((how.ridge * size[used]).sqrt())])
            wanted = torch.cat([(left.flatten(1) / energy.sqrt()[:, None]).flatten(), torch.zeros(int(used.sum()))])
            weights[i] = torch.zeros(len(features), dtype=torch.float64)
            weights[i][used] = torch.linalg.lstsq(rows, wanted[:, None].double()).solution[:, 0]
            g = base + sum(float(w) * f for w, f in zip(weights[i], features, strict=True))
        x = large.step(x, i, g, large.sigmas)
    return weights


@pytest.mark.parametrize("steps", [ALL, (2, 6, 8)], ids=["every predicted step", "some"])
def test_the_fit_is_least_squares_with_the_small_model_as_one_more_feature(steps: tuple[int, ...]) -> None:
    pipe, small, how = mixture_pipeline(), other(), method(steps)
    options: dict[str, Any] = {"choose": 0.25, "seed": SEED, "call": CALL}
    solved = Calibrator(pipe, PROMPTS, small=SmallModel(pipe, small), **options).solve(how)
    hands = [ByHand(PROMPTS[:6], SEED, T, W, model.mixture) for model in (pipe.transformer, small)]
    expected = brute_force(*hands, how)
    assert {i for i, _ in solved.weights} == set(expected)
    for i, weights in expected.items():
        torch.testing.assert_close(solved.weights[i, "guided"], weights, rtol=1e-3, atol=1e-4)
    assert small.made.sizes == [6] * 2 * len(steps) + [1]  # one pass of all prompts, and a call whose cost was counted


def test_what_it_costs_is_counted() -> None:
    large = flux(guidance_embeds=False, seed=0)
    call = {**CFG_CALL, "num_inference_steps": 2}
    light = copy.copy(large)
    light.transformer = copy.deepcopy(large.transformer)
    del light.transformer.transformer_blocks[1:]
    counted: list[int] = []
    for pipe in (large, light):
        with Watch(pipe, flops=True) as watch:
            generate(pipe, TEXTS[:1], call, output_type="latent")
        counted.append(watch.executed.flops[0])
    share = share_of_small(large, Prompts(TEXTS[:1], 0), call, SmallModel(large, light))
    assert share == pytest.approx(counted[1] / counted[0], rel=1e-12) and 0.1 < share < 1


def test_trades_cost_no_more_than_the_steps_they_stand_for() -> None:
    assert trades(30, 6, 0.25, 9) == [(5, 4), (4, 8), (3, 12), (2, 16)]
    assert trades(30, 10, 0.05, 9) == [(9, 20), (8, 22)]  # every predicted step has a call then
    assert trades(30, 15, 0.25, 4) == [(14, 4), (13, 8), (11, 16), (10, 20)]
    assert trades(30, 15, 1.5, 9)[:2] == [(13, 1), (12, 2)] and trades(30, 2, 0.1, 9) == []
    schedule = Schedule.from_mask("#....#...#")
    assert spread_over(schedule, 2) == (2, 7) and spread_over(schedule, 99) == (1, 2, 3, 4, 6, 7, 8)


@pytest.mark.parametrize("effort", ["fast", "balanced"])
def test_the_search_takes_it_where_it_is_better_and_leaves_it_where_not(
    effort: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "share_of_small", lambda *_: 0.125)
    pipe = mixture_pipeline()
    options: dict[str, Any] = {"effort": effort, "compute_steps": 5, "show_progress": False, "seed": SEED, **CALL}

    def found(small: nn.Module) -> Profile:
        return ertacache.calibrate(pipe, PROMPTS, predictor=small, **options)

    good, useless = found(copy.deepcopy(pipe.transformer)), found(Zero(pipe.transformer))
    assert good.small_steps and good.schedule.K < 5 and good.counted_steps <= 5
    assert good.provenance.heldout["counted_steps"] == good.counted_steps
    assert good.provenance.heldout["fewer_steps"]["steps"] == int(good.counted_steps + 1e-9)
    names = [row["name"] for row in good.provenance.heldout["chosen_on"]["candidates"]]
    assert any("of the small model" in name for name in names)
    assert "small model: NamedMixtureModule at" in good.summary()
    assert not useless.small_steps and not useless.provenance.small_model and useless.schedule.K == 5
    assert untimed(found(copy.deepcopy(pipe.transformer))) == untimed(good)


class Zero(NamedMixtureModule):
    """Says nothing, at a cost."""

    def __init__(self, large: MixtureModule) -> None:
        super().__init__(large.mixture)

    def forward(self, hidden_states: Tensor, **given: Any) -> tuple[Tensor]:
        return (torch.zeros_like(hidden_states),)


def test_nothing_is_left_behind(assisted_plan: Plan) -> None:
    pipe, small, profile = assisted_plan
    parts: tuple[Any, ...] = (pipe.scheduler, pipe.transformer, small)
    plain, before = drawn(pipe), [set(vars(part)) for part in parts]
    with pytest.raises(KeyError, match="on purpose"), ertacache.apply(pipe, profile, predictor=small):
        drawn(pipe)
        raise KeyError("on purpose")
    assert [set(vars(part)) for part in parts] == before and torch.equal(drawn(pipe), plain)
    ertacache.enable(pipe, profile, predictor=small)
    assisted = drawn(pipe)
    ertacache.disable(pipe)
    assert torch.equal(drawn(pipe), plain) and not torch.equal(assisted, plain)


def test_a_late_start_asks_for_it_where_steps_are_predicted(assisted_plan: Plan) -> None:
    pipe, small, profile = assisted_plan
    pipe.start = 4  # a predicted step, and the first of this run: computed, as nothing is held
    small.made.sizes.clear()
    try:
        with ertacache.apply(pipe, profile, predictor=small) as stats:
            assert drawn(pipe).isfinite().all()
    finally:
        pipe.start = 0
    late = [i for i in ALL if i > 4]
    asked = len(small.made.sizes) // 2
    assert stats.small["cond"] == asked == stats.predicted["cond"] and 0 < asked <= len(late)


def test_another_call_is_computed_without_it(assisted_plan: Plan) -> None:
    pipe, small, profile = assisted_plan
    plain = drawn(pipe, num_inference_steps=9)
    small.made.sizes.clear()
    with ertacache.apply(pipe, profile, predictor=small, on_mismatch="compute") as stats:
        assert torch.equal(drawn(pipe, num_inference_steps=9), plain)
    assert not small.made.sizes and not stats.small and stats.reason is not None
    with ertacache.apply(pipe, profile, predictor=small, retarget=True):
        with pytest.raises(ProfileMismatch, match="predictor: a profile that predicts from a small model is not retar"):
            drawn(pipe, num_inference_steps=9)


def test_the_table_of_the_benchmark() -> None:
    script = benchmark_scripts.load("small_predictor")
    rows = {
        "without": {"cost": 6.0, "psnr": [30.0, 32.0]}, "with": {"cost": 5.75, "psnr": [31.0, 33.0]},
        "alone": {"cost": 9.0, "psnr": [20.0, 20.0]},
    }  # fmt: skip
    found = {"T": 30, "budgets": {"6": {"K": 6, "rows": rows}}}
    last = script.table(found).splitlines()[-1]
    assert last == "| 6 of 30 | 31.0 ± 1.0 | 32.0 ± 1.0 | - | - | 20.0 ± 0.0 (cost 9.0) | - |"
    assert script.gains(found) == "6 of 30: +1.00 ± 0.00 dB"
