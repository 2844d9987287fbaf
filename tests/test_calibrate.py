"""`calibrate` on an exactly known denoiser: what was fitted is what is run, and what is chosen is the best measured."""

import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from by_hand import ByHand, Found
from dummies import LinearDenoiser
from dummy_pipeline import PROMPTS, DummyPipeline, linear_pipeline, mixture_pipeline, untimed
from ertacache.calibration.calibrate import calibrate
from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.candidates import HISTORIES, STRENGTHS, evaluate
from ertacache.calibration.method import Method
from ertacache.calibration.pipeline_run import Final, run_pipeline
from ertacache.calibration.prompts import Prompts
from ertacache.core.schedule import Schedule
from ertacache.errors import CalibrationError
from ertacache.metrics import PairedMetrics
from ertacache.profile.profile import Profile
from ertacache.runtime.player import Player
from ertacache.runtime.run import Controller
from ertacache.runtime.run_stats import RunStats

#: Few judged prompts, which is said.
pytestmark = pytest.mark.filterwarnings("ignore:.*judged prompts cannot tell")

T, W = 14, 7.0
MASK = "#..#.#...#.#.#"
CALL: dict[str, Any] = {"num_inference_steps": T, "guidance_scale": W}
MANY = [f"prompt {n} of class {n % 4}" for n in range(32)]


def calibrated(pipe: DummyPipeline | None = None, prompts: list[str] = PROMPTS, **options: Any) -> Profile:
    return calibrate(pipe or mixture_pipeline(), prompts, **{"seed": 5, "show_progress": False, **CALL, **options})


def by_hand(**choices: Any) -> Found:
    return ByHand(PROMPTS[:6], 5, T, W, mixture_pipeline().transformer.mixture).run(MASK, **choices)


def play(profile: Profile | None, texts: list[str], seed: int, call: dict[str, Any] = CALL) -> tuple[Tensor, Tensor]:
    """Final latents [N, *] and images under a profile, or of the uncached run."""
    final = Final(Player(profile, RunStats()) if profile else Controller())
    images = run_pipeline(mixture_pipeline(), Prompts(tuple(texts), seed), final, call)
    return final.latents, images


def measured(profile: Profile) -> float:
    """Mean log10 of the relative squared deviation of the held-out prompts' final latents."""
    latents, reference = (play(p, PROMPTS[6:], 5 + 6)[0].double().flatten(1) for p in (profile, None))
    return float(((latents - reference).square().sum(1) / reference.square().sum(1)).log10().mean())


OUTPUT = {"site": "output", "targets": ("cond", "uncond")}
RUNS: dict[str, dict[str, Any]] = {
    "residual": {"basis": "residual"},
    "reuse": {"basis": "reuse"},
    "residual, output, grid": {"basis": "residual", "timesteps": 0.3, **OUTPUT},
    "residual, guided, grid": {"basis": "residual", "timesteps": 0.3},
    "reuse, output, channel": {"basis": "reuse", "rectifier": "channel", **OUTPUT},
    "residual, output, element": {"basis": "residual", "rectifier": "element", **OUTPUT},
    "residual, output, sigmoid": {"basis": "residual", "rectifier": "channel", "activation": "sigmoid", **OUTPUT},
    "residual, guided, sigmoid": {"basis": "residual", "rectifier": "scalar", "activation": "sigmoid"},
    "fitted 1": {"basis": "fitted", "history": 1, "aim": "step"},
    "fitted 3": {"basis": "fitted", "history": 3, "aim": "step"},
    "trajectory 1": {"basis": "fitted", "history": 1, "aim": "trajectory"},
    "trajectory 3": {"basis": "fitted", "history": 3, "aim": "trajectory"},
    "fitted, output": {"basis": "fitted", "history": 2, **OUTPUT},
    "fitted, output, all": {"basis": "fitted", "history": 2, "timesteps": 0.5, "rectifier": "channel", **OUTPUT},
    "fitted, grid, scalar": {"basis": "fitted", "history": 2, "timesteps": "paper", "rectifier": "scalar"},
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_what_was_fitted_is_what_is_run(name: str):
    """On the calibration prompts the finished profile ends where the closed loop that fitted it ended."""
    choices = dict(RUNS[name])
    targets = choices.pop("targets", ("guided",))
    profile = calibrated(schedule=MASK, **{"site": "guided", **choices})
    strength = choices.get("timesteps", 0.0)
    grid = None
    if strength and choices["basis"] != "fitted" and targets != ("guided",):
        # Reuse at each call is reuse of the guided output: its grid is that of the solver's own input.
        grid, strength = by_hand(residual=choices["basis"] != "reuse", strength=strength).grid, 0.0
    found = by_hand(
        targets=targets,
        residual=choices["basis"] != "reuse",
        levels=choices["history"] if choices["basis"] == "fitted" else 0,
        ridge=1e-3,
        aim=choices.get("aim", "step"),
        rectifier=choices.get("rectifier"),
        sigmoid=choices.get("activation") == "sigmoid",
        strength=1.0 if strength == "paper" else strength,
        grid=grid,
    )
    latents, _ = play(profile, PROMPTS[:6], 5)
    torch.testing.assert_close(latents, found.latents.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(profile.sigmas, found.grid.float(), rtol=1e-6, atol=1e-6)
    assert torch.equal(profile.sigmas[[0, -1]], profile.base_sigmas[[0, -1]])
    assert str(profile.schedule) == MASK
    assert measured(profile) == pytest.approx(profile.provenance.heldout["latent_log10_error"], abs=1e-3)


def test_the_table_holds_the_fit_and_the_folded_rectifier():
    profile = calibrated(schedule=MASK, basis="fitted", history=2, rectifier="channel")
    found = by_hand(levels=2, ridge=1e-3, rectifier="channel")
    assert profile.site == "guided" and profile.rectifier is None and profile.predictor.coef_shape == (1, 4)
    for i, computed in enumerate(profile.schedule.computed):
        row = torch.zeros(2, 1, 4)
        if not computed:
            weights = [*found.weights[i, "guided"].tolist(), 0.0][:2]
            keep = 1 - found.kappa[i, "guided"]
            row = torch.stack([(1 + weights[0]) * keep, weights[1] * keep]).float()
            torch.testing.assert_close(profile.predictor.d[i, 0], keep.float())
            torch.testing.assert_close(profile.predictor.b[i, 0], -found.beta[i, "guided"].float())
        torch.testing.assert_close(profile.predictor.a[i, 0, 0], row)


def test_the_sigmoid_stays_a_table_of_its_own():
    profile = calibrated(schedule=MASK, rectifier="scalar", activation="sigmoid", basis="reuse")
    found = by_hand(targets=("cond", "uncond"), residual=False, rectifier="scalar", sigmoid=True)
    assert profile.rectifier is not None and profile.rectifier.activation == "sigmoid"
    for i, target in found.kappa:
        m = profile.predictor.targets.index(target)
        torch.testing.assert_close(profile.rectifier.kappa[i, m].double(), found.kappa[i, target], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(profile.rectifier.beta[i, m].double(), found.beta[i, target], rtol=1e-6, atol=1e-6)
    assert profile.predictor.a.unique().tolist() == [0.0, 1.0]


def test_schedules_are_what_was_asked_for():
    assert calibrated(schedule="uniform", compute_steps=5).schedule == Schedule.uniform(T, 5)
    assert calibrated(compute_steps=5, effort="fast").schedule == Schedule.uniform(T, 5)
    assert calibrated(schedule=Schedule.uniform(T, 6), compute_steps=6).schedule == Schedule.uniform(T, 6)
    by_lambda = calibrated(threshold=0.3)
    hand = ByHand(PROMPTS[:6], 5, T, W, mixture_pipeline().transformer.mixture)
    assert str(by_lambda.schedule) == hand.threshold(0.3, True)
    assert by_lambda.provenance.method["threshold"] == 0.3
    nearest = calibrated(compute_steps=by_lambda.schedule.K, schedule="policy")
    assert nearest.schedule.K == by_lambda.schedule.K == nearest.provenance.heldout["K"]
    assert str(nearest.schedule) == hand.threshold(nearest.provenance.method["threshold"], True)


def test_held_out_prompts_never_enter_a_fit():
    """Other prompts in the held-out part change the figures and nothing else."""
    other = [*PROMPTS[:6], "another one of class 0", "and one more of class 0"]
    options: dict[str, Any] = {"compute_steps": 6, "basis": "fitted", "timesteps": 0.3, "rectifier": "channel"}
    profiles = [calibrated(prompts=prompts, **options) for prompts in (PROMPTS, other)]
    first, second = profiles
    assert first.schedule == second.schedule and torch.equal(first.sigmas, second.sigmas)
    for table in ("a", "b", "d"):
        assert torch.equal(getattr(first.predictor, table), getattr(second.predictor, table))
    assert first.provenance.heldout != second.provenance.heldout
    assert first.provenance.prompt_hash != second.provenance.prompt_hash
    assert first.provenance.holdout_count == 2 and first.provenance.prompt_count == 6


def test_the_held_out_figures_are_those_of_the_held_out_prompts():
    profile = calibrated(schedule=MASK, basis="fitted")
    heldout, K = profile.provenance.heldout, profile.schedule.K
    assert (heldout["prompts"], heldout["K"]) == (2, K)
    plain, call = play(None, PROMPTS[6:], 5 + 6)[1], {**CALL, "num_inference_steps": K}
    values: dict[str, list[float]] = {}
    for kind, images in (
        ("plan", play(profile, PROMPTS[6:], 5 + 6)[1]),
        ("fewer", play(None, PROMPTS[6:], 5 + 6, call)[1]),
    ):
        metrics = PairedMetrics()
        metrics.update(images, plain)
        figures = heldout if kind == "plan" else heldout["fewer_steps"]
        for name, part in metrics.compute().items():
            low, high = sorted(part["values"])
            spread = {
                "mean": part["mean"],
                "std": part["std"],
                "standard_error": part["std"] / 2**0.5,
                "p10": low + (high - low) / 10,
                "worst": low,
            }
            assert figures[name] == pytest.approx(spread, rel=1e-4)
        values[kind] = metrics.compute()["psnr"]["values"]
    first, second = (ours - theirs for ours, theirs in zip(values["plan"], values["fewer"], strict=True))
    gain = {"mean": (first + second) / 2, "standard_error": abs(first - second) / 2}
    assert heldout["gain"] == pytest.approx(gain, rel=1e-3)
    assert heldout["fewer_steps"]["steps"] == K and heldout["wins"] is (gain["mean"] > 0)


def test_a_plan_of_all_steps_has_nothing_to_be_compared_with():
    figures = {
        name: {"mean": value, "std": 0.0, "standard_error": 0.0, "p10": value, "worst": value}
        for name, value in (("psnr", 100.0), ("ssim", 1.0))
    }
    assert calibrated(schedule="#" * T).provenance.heldout == {
        **figures, "prompts": 2, "latent_log10_error": -99.0, "K": T, "reuse": figures,
    }  # fmt: skip


def test_automatic_choices_take_the_simplest_of_the_best_on_the_prompts_that_choose():
    options: dict[str, Any] = {"schedule": MASK, "basis": "fitted"}
    chosen = calibrated(history="auto", aim="auto", timesteps="auto", **options).provenance
    run = Calibrator(mixture_pipeline(), PROMPTS, choose=0.2, judge=0.2, seed=5, call=CALL)
    assert [len(part.texts) for part in run.parts] == [4, 2, 2]
    schedule = Schedule.from_mask(MASK)
    keys = [
        (levels, branches, aim, strength)
        for levels, branches in HISTORIES
        for aim, strengths in (("step", STRENGTHS), ("trajectory", (0.0,)))
        for strength in strengths
    ]
    assert len(keys) == 30 and len(chosen.heldout["chosen_on"]["candidates"]) == 30
    results: dict[Any, list[float]] = {}
    for levels, branches, aim, strength in keys:
        method = Method("fitted", "guided", schedule, levels, branches=branches, ridge=1e-3, aim=aim, strength=strength)
        results[levels, branches, aim, strength] = evaluate(run, method).evidence
    facts = chosen.method
    found = (facts["levels"], facts["branches"], facts["aim"], facts["strength"])
    best = min(results, key=lambda key: statistics.fmean(results[key]))
    apart = [one - other for one, other in zip(results[found], results[best], strict=True)]
    assert statistics.fmean(apart) <= statistics.stdev(apart) / len(apart) ** 0.5
    (row,) = [row for row in chosen.heldout["chosen_on"]["candidates"] if row["chosen"]]
    assert row["latent_log10_error"] == pytest.approx(statistics.fmean(results[found][:2]), abs=1e-9)
    assert row["K"] == chosen.heldout["K"] == 6 and chosen.heldout["chosen_on"]["prompts"] == 2


def test_fitted_beats_residual_reuse_where_guidance_is_strong():
    options: dict[str, Any] = {"schedule": "uniform", "compute_steps": 6, "num_inference_steps": 30}
    residual = calibrated(prompts=MANY, basis="residual", **options).provenance.heldout
    fitted = calibrated(prompts=MANY, basis="fitted", history="auto", aim="auto", **options).provenance.heldout
    assert fitted["psnr"]["mean"] > residual["psnr"]["mean"] + 3
    assert fitted["latent_log10_error"] < residual["latent_log10_error"] - 0.6


def test_a_rectified_linear_denoiser_loses_nothing():
    """v = a x + c per channel: the error of a reused output is affine in it, on every prompt."""
    denoiser = LinearDenoiser(torch.diag(torch.tensor([0.5, -0.8]).double()), torch.tensor([0.3, -0.6]).double())
    pipe = linear_pipeline(denoiser.A, denoiser.c)
    options: dict[str, Any] = {"schedule": MASK, "basis": "reuse", "num_inference_steps": T, "show_progress": False}
    plain = calibrate(pipe, PROMPTS, **options)
    exact = calibrate(pipe, PROMPTS, rectifier="channel", **options)
    assert plain.provenance.contexts == ("cond",) and plain.provenance.guidance_weight is None
    assert plain.provenance.heldout["latent_log10_error"] > -5
    assert exact.provenance.heldout["latent_log10_error"] < -11


def test_calls_without_a_cache_context_are_named_by_their_order():
    profile = calibrated(mixture_pipeline(named=False), schedule=MASK, basis="fitted", history=1)
    assert profile.provenance.contexts == ("call0", "call1")
    assert profile.provenance.guidance_weight == pytest.approx(W, rel=1e-4)
    assert torch.equal(profile.predictor.a, calibrated(schedule=MASK, basis="fitted", history=1).predictor.a)


def test_two_calibrations_give_the_same_bytes_but_for_the_time_they_took(tmp_path: Path):
    options: dict[str, Any] = {"compute_steps": 6, "basis": "fitted", "history": "auto", "rectifier": "channel"}
    profile = calibrated(**options)
    first, second = untimed(profile), untimed(calibrated(**options))
    assert first.to_bytes() == second.to_bytes()
    assert Profile.load(profile.save(tmp_path / "p.safetensors")) == profile
    assert untimed(calibrated(**{**options, "rectifier": "scalar"})) != first


@pytest.mark.parametrize(
    "options",
    [{"compute_steps": 6, "effort": "fast"}, {"schedule": MASK, "method": "ertacache", "timesteps": 0.3}],
    ids=str,
)
def test_the_batch_size_changes_nothing_beyond_rounding(options: dict[str, Any]):
    whole, single = (calibrated(batch_size=size, **options) for size in (None, 1))
    for table in ("a", "b", "d"):
        torch.testing.assert_close(
            getattr(single.predictor, table), getattr(whole.predictor, table), rtol=1e-6, atol=1e-6
        )
    torch.testing.assert_close(single.sigmas, whole.sigmas, rtol=1e-6, atol=1e-6)
    for name in ("psnr", "ssim"):
        assert single.provenance.heldout[name] == pytest.approx(whole.provenance.heldout[name], rel=1e-5)


def test_runs_that_end_in_nan_give_no_profile():
    pipe = mixture_pipeline()
    exact = pipe.transformer.mixture.velocity

    def velocity(x: Tensor, sigma: float, label: Tensor | None = None) -> Tensor:
        broken = torch.zeros(len(x)) if label is None else torch.where(label == 3, math.nan, 0.0)
        return exact(x, sigma, label) + broken[:, None]

    pipe.transformer.mixture.velocity = velocity
    prompts = ["a of class 0", "b of class 1", "c of class 2", "d of class 3"]
    with pytest.raises(CalibrationError, match=r"judged runs end in NaN or infinity with schedule #.*compute more"):
        calibrated(pipe, prompts, schedule=MASK)
    with pytest.raises(CalibrationError, match=r"uncached run ends in NaN or infinity.*wider dtype"):
        calibrated(pipe, prompts[::-1], schedule=MASK)


def test_short_runs_are_warned_about():
    with pytest.warns(UserWarning, match="7 steps leave caching little to save"):
        calibrated(schedule="#.#.#.#", num_inference_steps=7)
