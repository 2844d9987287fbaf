"""Caching without calibration: the schedule, the damped line, its profile, and what was measured of it."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import ertacache.runtime.apply as ertacache
from benchmark_scripts import ROOT
from by_hand import ByHand
from cached import T, calls_per_step, latents, profile
from dummy_pipeline import PROMPTS, mixture_pipeline
from ertacache.calibration.pipeline_run import Final, run_pipeline
from ertacache.calibration.prompts import Prompts
from ertacache.core.history import History
from ertacache.core.predictor import Predictor
from ertacache.core.schedule import Schedule
from ertacache.errors import InvalidArgument
from ertacache.runtime.even_run import EvenPlayer
from ertacache.runtime.hooks import attachment_of
from ertacache.runtime.run_stats import RunStats
from ertacache.runtime.uncalibrated import (
    LIMIT,
    DampedLine,
    check_speedup,
    damping,
    nothing_measured,
    nothing_to_save,
    schedule_for,
)
from profile_maker import FACTS

RESULTS = ROOT / "benchmarks" / "results" / "uncalibrated.json"
#: Uneven, with differences that are exact in binary.
GRID = torch.tensor([1.0, 0.875, 0.75, 0.625, 0.5, 0.25, 0.125, 0.0])
ENTRANTS = ("fewer steps", "reuse", "residual reuse", "order 1", "damped line")


def facts(**changes: Any) -> dict[str, Any]:
    """What a run knows once its first step is done."""
    names = ("model_class", "model_config_hash", "scheduler_class", "scheduler_config_hash", "contexts")
    return {name: FACTS[name] for name in (*names, "latent_shape", "channel_axis", "dtype")} | changes


@pytest.mark.parametrize("speedup", [0, -2.0, 1, 1.0, True, "2", None, math.nan, math.inf, -math.inf, [2.0]])
def test_what_is_no_speedup_is_refused_with_its_value(speedup: Any) -> None:
    with pytest.raises(InvalidArgument) as error:
        check_speedup(speedup)
    assert str(error.value).startswith(f"speedup is {speedup!r}; give a number above 1, such as 2.0")
    with pytest.raises(InvalidArgument, match="give a number above 1"):
        schedule_for(30, speedup) if isinstance(speedup, float) else check_speedup(speedup)


@pytest.mark.parametrize(
    ("T", "speedup", "mask"),
    [
        (10, 2, "#.#.#..#.#"),
        (10, 3.0, "#...#....#"),
        (4, 2.0, "#..#"),
        (10, 5.0, "#........#"),
        (7, 1.4, "#.###.#"),
    ],
)
def test_the_schedule_is_evenly_spaced(T: int, speedup: float, mask: str) -> None:
    assert str(schedule_for(T, speedup)) == mask
    assert schedule_for(T, speedup) == Schedule.uniform(T, round(T / speedup))


def test_the_schedule_of_a_hand_made_case_and_of_two_denoisers() -> None:
    assert str(schedule_for(7, 7 / 3)) == "#..#..#"
    assert str(schedule_for(7, 7 / 3, boundaries=(2, 5))) == "#.##.##"


@pytest.mark.parametrize(("T", "speedup"), [(30, 1e9), (30, 15.001), (4, 2.5), (5, 3.0)])
def test_a_speedup_beyond_half_of_the_steps_is_refused_in_the_run(T: int, speedup: float) -> None:
    with pytest.raises(InvalidArgument) as error:
        schedule_for(T, speedup)
    assert str(error.value) == (
        f"speedup={speedup:g} of {T} steps would compute fewer than 2, and the first and the last step are computed; "
        f"ask for {T / 2:g} at most, or use more steps"
    )


@pytest.mark.parametrize("T", [1, 2, 3])
@pytest.mark.parametrize("speedup", [1.01, 2.0, 1e9])
def test_few_steps_are_computed_and_say_why(T: int, speedup: float) -> None:
    assert schedule_for(T, speedup) == Schedule.all_computed(T)
    assert nothing_to_save(T, speedup) == (
        f"a run of {T} steps has nothing to save: the first and the last step are computed"
    )


def test_a_speedup_that_saves_no_step_says_which_would() -> None:
    assert schedule_for(30, 1.01) == Schedule.all_computed(30)
    assert nothing_to_save(30, 1.01) == "speedup=1.01 of 30 steps computes all of them; ask for 1.03 or more"
    assert schedule_for(30, 30 / 29).K == 29
    assert nothing_to_save(30, 2.0) is None


def test_the_damping_of_hand_made_outputs() -> None:
    older = torch.tensor([[3.0, 4.0]])  # of norm 5
    newest = older + torch.tensor([[0.6, 0.8]])  # changed by a fifth
    for ahead, m in ((0.5, 1.0), (1.0, LIMIT - 0.2), (2.0, LIMIT - 0.4), (5.0, LIMIT - 1.0), (6.0, 0.0), (50.0, 0.0)):
        assert float(damping(newest, older, ahead)) == pytest.approx(min(m, 1.0), abs=1e-6)
    assert float(damping(older, older, 3.0)) == 1.0  # nothing changes: the line is the last output
    assert float(damping(newest, older, 2.0, limit=0.0)) == 0.0
    assert float(damping(newest, older, 2.0, limit=math.inf)) == 1.0


def test_the_damping_at_its_two_ends_is_exact() -> None:
    older, changed = torch.tensor([[4.0, 0.0]]), torch.tensor([[5.0, 0.0]])  # by exactly a quarter
    assert float(damping(changed, older, 1.0, limit=1.25)) == 1.0
    assert float(damping(changed, older, 1.0, limit=0.25)) == 0.0
    assert float(damping(changed, older, 1.0, limit=0.75)) == 0.5


def test_a_damping_that_cannot_be_told_repeats_the_last_output() -> None:
    zero, one = torch.zeros(1, 2), torch.ones(1, 2)
    for newest, older in ((zero, zero), (one, zero), (one * math.nan, one), (one, one * math.nan), (one, one / 0)):
        assert float(damping(newest, older, 1.0)) == 0.0


def test_each_entry_of_a_batch_is_damped_by_itself() -> None:
    older = torch.tensor([[[4.0, 0.0]], [[4.0, 0.0]], [[0.0, 0.0]]])
    newest = torch.tensor([[[5.0, 0.0]], [[8.0, 0.0]], [[1.0, 0.0]]])
    m = damping(newest, older, 1.0, limit=1.25)
    assert m.shape == (3, 1, 1) and m.flatten().tolist() == [1.0, 0.25, 0.0]
    line = DampedLine(GRID, Schedule.from_mask("#.#.#.#"), limit=1.25)
    both = line(3, (2, 0), (newest, older))
    for n in range(3):
        assert torch.equal(both[n : n + 1], line(3, (2, 0), (newest[n : n + 1], older[n : n + 1])))


def test_the_prediction_by_hand() -> None:
    """#..#..#: step 4 from steps 3 and 0, and step 2 of a late start from 1 and 0."""
    schedule = Schedule.from_mask("#..#..#")
    older, newest = torch.tensor([[4.0, 0.0]]), torch.tensor([[4.5, 0.0]])  # changed by an eighth
    line = DampedLine(GRID, schedule, limit=0.625)
    # (σ4 − σ3)/(σ3 − σ0) = 1/3; to the next computed step, 6, 4/3 of the gap: m = 5/8 − 1/8 · 4/3.
    m = 0.625 - 0.125 * 4 / 3
    assert line(4, (3, 0), (newest, older)).tolist() == [[pytest.approx(4.5 + m / 3 * 0.5), 0.0]]
    # From 1 and 0: step 2 is as far again, step 3 twice as far: m = 5/8 − 1/4.
    assert line(2, (1, 0), (newest, older)).tolist() == [[4.5 + 0.375 * 0.5, 0.0]]
    # Nothing comes after the last step but the end of the grid.
    assert line(6, (5, 4), (newest, older)).tolist() == [[4.5 + (0.625 - 0.125) * 0.5 * 0.5, 0.0]]
    assert line(2, (1,), (newest,)) is newest


def test_without_a_limit_it_is_the_line_of_the_table_and_at_zero_plain_reuse() -> None:
    schedule = Schedule.from_mask("#..#..#")
    table = Predictor.extrapolation(schedule, ("guided",), GRID)
    history, outputs = History(2), [torch.randn(2, 3, generator=torch.Generator().manual_seed(n)) for n in range(2)]
    for output in reversed(outputs):
        history.push("guided", output)
    for i in (4, 5):
        wanted = table.terms(i, "guided")(history, outputs[0])
        assert torch.allclose(DampedLine(GRID, schedule, math.inf)(i, (3, 0), outputs), wanted, rtol=0, atol=1e-6)
        assert torch.equal(DampedLine(GRID, schedule, 0.0)(i, (3, 0), outputs), outputs[0])


def test_it_computes_in_float32_and_returns_the_dtype_of_the_outputs() -> None:
    schedule = Schedule.from_mask("#..#..#")
    pair = [torch.randn(1, 64, generator=torch.Generator().manual_seed(n)).bfloat16() for n in range(2)]
    line = DampedLine(GRID, schedule)
    assert torch.equal(line(4, (3, 0), pair), line(4, (3, 0), [x.float() for x in pair]).bfloat16())
    assert line(4, (3, 0), [x.double() for x in pair]).dtype == torch.float64


def test_it_says_how_to_calibrate() -> None:
    text = nothing_measured(Schedule.uniform(30, 15))
    assert text.startswith("computed 15 of 30 steps without calibration: nothing was measured on this pipeline")
    assert "ertacache.calibrate(pipe, prompts, compute_steps=15, num_inference_steps=30)" in text


def by_hand(hand: ByHand, mask: str, limit: float) -> Tensor:
    """The run in one loop, an entry at a time."""
    finals = list[Tensor]()
    sigmas = [float(sigma) for sigma in hand.sigmas]
    for n in range(len(hand.label)):
        one = ByHand(PROMPTS[n : n + 1], 5 + n, hand.T, hand.w, hand.mixture)
        x, kept = one.x0, list[tuple[float, Tensor]]()
        for i, mark in enumerate(mask):
            if mark == "#":
                g = one.call(x, one.sigmas[i])["guided"]
                kept.insert(0, (sigmas[i], g))
            elif len(kept) == 1:
                g = kept[0][1]
            else:
                (s1, v1), (s2, v2) = kept[:2]
                s = float((v1 - v2).norm() / v2.norm()) * (sigmas[mask.index("#", i)] - s1) / (s1 - s2)
                m = min(max(limit - s, 0.0), 1.0)
                g = v1 + m * (sigmas[i] - s1) / (s1 - s2) * (v1 - v2)
            x = one.step(x, i, g, one.sigmas)
        finals.append(x)
    return torch.cat(finals)


@pytest.mark.parametrize(("speedup", "w"), [(2.0, 1.5), (3.0, 1.5), (2.0, 7.0), (3.0, 7.0)])
def test_a_run_is_the_one_by_hand(speedup: float, w: float) -> None:
    T = 20
    pipe: Any = mixture_pipeline()
    hand = ByHand(PROMPTS[:3], 5, T, w, pipe.transformer.mixture)
    call = {"num_inference_steps": T, "guidance_scale": w}

    def run(texts: list[str], seed: int) -> Tensor:
        final = Final(EvenPlayer(speedup, RunStats()))
        run_pipeline(pipe, Prompts(tuple(texts), seed), final, call, decode=False)
        return final.latents

    latents = run(PROMPTS[:3], 5)
    wanted: Callable[[float], Tensor] = lambda limit: by_hand(hand, str(schedule_for(T, speedup)), limit)  # noqa: E731
    assert torch.allclose(latents, wanted(LIMIT).float(), rtol=0, atol=2e-5)
    # It is neither plain reuse nor the whole line, and a batch changes no entry.
    assert min(float((latents - wanted(limit)).abs().max()) for limit in (0.0, math.inf)) > 1e-3
    assert torch.allclose(latents[1:2], run(PROMPTS[1:2], 6), rtol=0, atol=1e-5)


def test_one_line_computes_what_it_says(flux_cfg: Any) -> None:
    plain = latents(flux_cfg)
    with ertacache.apply(flux_cfg, speedup=2.0) as stats:
        assert calls_per_step(flux_cfg) == [2 * (mark == "#") for mark in str(schedule_for(T, 2.0))]
        assert (stats.runs, stats.computed, stats.predicted) == (1, {"cond": 5, "uncond": 5}, {"cond": 5, "uncond": 5})
        assert (stats.reason, stats.advice) == (None, nothing_measured(schedule_for(T, 2.0)))
        assert stats.extra_bytes == 2 * plain.nbytes
        assert calls_per_step(flux_cfg, num_inference_steps=3) == [2, 2, 2]  # a warm-up
        assert (stats.reason, stats.advice) == (nothing_to_save(3, 2.0), None)
    with (
        ertacache.apply(flux_cfg, speedup=7.0),
        pytest.raises(InvalidArgument, match=r"speedup=7 of 10 .* ask for 5 at"),
    ):
        latents(flux_cfg)
    assert torch.equal(latents(flux_cfg), plain)


def test_a_profile_or_a_speedup_but_one_of_them(flux: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"neither of profile and speedup is given; pass a profile, or speedup=2"):
        ertacache.enable(flux)
    with pytest.raises(InvalidArgument, match=r"both of profile and speedup is given"):
        ertacache.enable(flux, profile(flux, "guided"), speedup=2.0)
    with pytest.raises(InvalidArgument, match=r"speedup is 1.0; give a number above 1"):
        ertacache.enable(flux, speedup=1.0)
    assert attachment_of(flux) is None


def test_the_limit_is_the_best_of_those_tried_on_calibration_prompts() -> None:
    choice = json.loads(RESULTS.read_text())["choice"]
    assert max(choice["mean"], key=choice["mean"].get) == str(LIMIT)
    for limit, mean in choice["mean"].items():
        values = [row["psnr"][limit] for row in choice["rows"]]
        assert mean == pytest.approx(sum(values) / len(values), abs=1e-3)
    assert {row["model"] for row in choice["rows"]} == {"tiny-flux", "tiny-flux-base"}


def test_the_page_shows_the_committed_figures() -> None:
    page = (ROOT / "docs" / "uncalibrated.md").read_text()
    rows = json.loads(RESULTS.read_text())["rows"]
    assert len(rows) == 16
    for row in rows:
        cells = [f"{row[name]['psnr']['mean']:.1f} ± {row[name]['psnr']['standard_error']:.1f}" for name in ENTRANTS]
        start = f"| {row['model']} | {row['guidance']:g} | {row['K']} of {row['T']} | "
        assert start + " | ".join(cells) + " |" in page
        best = max(row[name]["psnr"]["mean"] for name in ENTRANTS)
        assert best - row["damped line"]["psnr"]["mean"] <= row["damped line"]["psnr"]["standard_error"]  # so it says


@pytest.mark.parametrize(
    ("model", "weight", "T", "K", "entrant"),
    [
        ("tiny-flux", 10, 30, 15, "fitted@0.5"),
        ("tiny-flux", 10, 30, 10, "fitted@0.33"),
        ("tiny-flux-base", 7, 30, 15, "fitted@0.5"),
        ("tiny-flux-base", 7, 30, 10, "fitted@0.33"),
        ("tiny-wan", 5, 50, 25, "fitted@0.5"),
        ("tiny-cogvideox", 6, 50, 25, "fitted@0.5"),
    ],
)
def test_the_page_shows_what_a_calibrated_profile_reached(model: str, weight: int, T: int, K: int, entrant: str):
    """On the prompts of the row, which are the first of the comparison's."""
    wanted = {"model": model, "guidance": weight, "T": T, "K": K}
    (row,) = [row for row in json.loads(RESULTS.read_text())["rows"] if wanted.items() <= row.items()]
    lines = (RESULTS.parent / "compare" / model / "results.jsonl").read_text().splitlines()
    header, *compared = map(json.loads, lines)
    call = header["call"]
    assert call.get("true_cfg_scale", call.get("guidance_scale")) == weight and call["num_inference_steps"] == T
    values = [line["psnr"] for line in compared if line["entrant"] == entrant and line["prompt"] < row["prompts"]]
    assert len(values) == row["prompts"]
    cells = f"{row['damped line']['psnr']['mean']:.1f} | {sum(values) / len(values):.1f}"
    assert f"| {model} | {weight} | {K} of {T} | {cells} |" in (ROOT / "docs" / "uncalibrated.md").read_text()
