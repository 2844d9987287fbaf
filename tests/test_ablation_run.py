"""The ablation: which rows there are, what they count, and the files they leave."""

import json
from pathlib import Path

import pytest
import torch

from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.prompts import Prompts
from ertacache.cli.ablation import group_name, table
from ertacache.cli.options import number_or_word
from ertacache.core.analysis import decompose
from ertacache.errors import CalibrationError, InvalidArgument
from ertacache.evaluation.ablation import Ablation
from ertacache.evaluation.ablation_run import AblationRun
from ertacache.evaluation.evaluate import Evaluation, Measured, Trial
from ertacache.runtime.played_run import PlayedRun
from ertacache_zoo import catalogue
from pipelines import CALL, CFG_CALL, PROMPTS, VIDEO_CALL, flux, wan

HELD = catalogue.heldout_prompts(2)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, object]]]:
    out = tmp_path_factory.mktemp("compare")
    comparison = AblationRun(out, HELD, model="random")
    rows = comparison.add(flux(), PROMPTS, [5], CALL, group="one branch", show_progress=False)
    rows = rows + comparison.add(flux(False), PROMPTS, [4], CFG_CALL, group="two", full=False, show_progress=False)
    comparison.report()
    return out, rows


@pytest.mark.slow
def test_all_rows_are_there(compared):
    _, rows = compared
    first = [(row["site"], row["basis"], row["stage"]) for row in rows if row["group"] == "one branch"]
    assert first[:2] == [(None, None, "no cache"), (None, None, "fewer steps")]
    for site, basis in (("output", "residual"), ("output", "reuse"), ("hidden", "residual")):
        stages = [stage for s, b, stage in first if (s, b) == (site, basis)]
        assert [stage for stage in dict.fromkeys(stages)] == ["uniform", "policy", "+ timesteps", "+ rectifier"]
    assert [stage for s, b, stage in first if b == "fitted"] == ["uniform", "policy"]


@pytest.mark.slow
def test_calls_are_those_of_the_schedule_and_of_the_budget(compared):
    _, rows = compared
    for row in rows:
        expected = row["K"] if row["stage"] != "no cache" else row["T"]
        assert row["schedule"].count("#") == expected
        contexts = 1 if row["group"] == "one branch" else 2
        assert sum(row["calls"].values()) == expected * contexts
        if row["stage"] in ("uniform", "fewer steps") and "policy's K" not in row["label"]:
            assert row["K"] == row["budget"]


@pytest.mark.slow
def test_the_uncached_row_is_perfect_and_the_others_are_not(compared):
    _, rows = compared
    for row in rows:
        assert (row["psnr"]["mean"] == 100) == (row["stage"] == "no cache")
        assert len(row["psnr"]["values"]) == len(HELD)


@pytest.mark.slow
def test_the_decomposition_ends_at_the_measured_deviation(compared):
    """Eq. 11 on the held-out run: the accumulated deviation is the deviation of the final latent."""
    _, rows = compared
    row = next(row for row in rows if row["label"] == "residual, output: uniform" and row["group"] == "one branch")
    parts = row["decomposition"]
    assert len(parts["deviation"]) == row["T"] + 1
    # latent_error is the mean log10 of squared relative deviation; both describe the same two latents.
    assert parts["deviation"][-1] > 0
    assert parts["feature_shift"][0] == parts["deviation"][0] == parts["deviation"][1] == 0


@pytest.mark.parametrize("make", [flux, wan])
def test_the_deviation_is_that_of_the_latents_under_any_solver(make, tmp_path: Path):
    """Euler adds it up as Eq. 11 does, within what a float32 latent keeps; UniPC does not, and is measured alike."""
    pipe, call = make(), CALL if make is flux else VIDEO_CALL
    calibrator = Calibrator(pipe, PROMPTS, choose=0.5, seed=0, call=call)
    trial = next(t for t in Ablation(calibrator, 5, full_reuse()).trials() if t.stage == "uniform")
    evaluation = Evaluation(pipe, Prompts(tuple(HELD), 0), call, "g", tmp_path)
    row = evaluation.row(trial)
    true, cached = evaluation._reference, evaluation._measure(trial)
    summed = decompose(true.sigmas, cached.outputs, true.outputs, trial.profile.schedule).deviation
    parts = row["decomposition"]
    assert len(parts["deviation"]) == row["T"] + 1
    rms = (cached.latents - true.latents).double().square().mean().sqrt()
    assert parts["deviation"][-1] == pytest.approx(float(rms), abs=1e-6) and rms > 1e-3
    assert (parts["deviation"] == pytest.approx(summed.tolist(), abs=2e-6)) == (make is flux)


@pytest.mark.slow
def test_the_files_are_complete(compared):
    out, rows = compared
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert lines[0]["kind"] == "header" and lines[0]["prompts"] == HELD
    assert lines[1:] == rows
    assert all((out / name).is_file() for row in rows for name in row["samples"])
    assert "fitted, evenly spaced" in (out / "report.html").read_text()


@pytest.mark.slow
def test_the_table_names_every_row(compared):
    _, rows = compared
    assert all(row["label"][:58] in table(rows) for row in rows)


def test_prompts_may_not_be_calibrated_and_measured_on(tmp_path: Path):
    with pytest.raises(InvalidArgument, match=r"1 prompt\(s\) are calibrated and measured on"):
        AblationRun(tmp_path, PROMPTS[:1]).add(flux(), PROMPTS, [5], CALL, group="g", show_progress=False)
    with pytest.raises(InvalidArgument, match="budget 11 is outside 2 to 10"):
        AblationRun(tmp_path, HELD).add(flux(), PROMPTS, [11], CALL, group="g", show_progress=False)


def test_a_plan_that_computes_more_than_it_says_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pipe = flux()
    calibrator = Calibrator(pipe, PROMPTS, choose=0.5, seed=0, call=CALL)
    trial = next(t for t in Ablation(calibrator, 5, full_reuse()).trials() if t.stage == "uniform")
    evaluation = Evaluation(pipe, Prompts(tuple(HELD), 0), CALL, "g", tmp_path)
    evaluation.row(Trial("no cache", "no cache"))
    call = PlayedRun.call

    def wasteful(self, run, context, x, compute):
        output = call(self, run, context, x, compute)
        if self._predicts:
            compute()
        return output

    monkeypatch.setattr(PlayedRun, "call", wasteful)
    with pytest.raises(CalibrationError, match="10 real denoiser calls were counted, 5 due"):
        evaluation.row(trial)


def test_a_plan_that_diverges_is_a_black_picture_with_figures_that_json_holds(tmp_path: Path):
    pipe = flux()
    evaluation = Evaluation(pipe, Prompts(tuple(HELD), 0), CALL, "g", tmp_path)
    images = torch.full((2, 3, 64, 64), 0.5)
    evaluation._reference = measured(images, torch.ones(2, 4))
    evaluation._measure = lambda trial: measured(torch.zeros(2, 3, 64, 64), torch.full((2, 4), torch.nan))
    row = evaluation.row(Trial("bad", "uniform", 5, steps=5))
    assert row["psnr"]["mean"] == pytest.approx(6.0206, abs=1e-3) and row["latent_error"] == 99.0
    assert row["decomposition"] is None and "frame_psnr" not in row


def measured(images: torch.Tensor, latents: torch.Tensor) -> Measured:
    kept = (torch.zeros(6, 2, 4), torch.zeros(5, 2, 4), torch.linspace(1, 0, 6))
    return Measured(images, latents, *kept, {"all": 5}, 1.0, 1.0, 0)


def full_reuse():
    return (("output", "residual"),)


def test_small_helpers():
    assert number_or_word("3", int) == 3
    assert number_or_word("auto", int) == "auto"
    assert group_name("a/tiny", {"true_cfg_scale": 7.0}) == "tiny, true_cfg_scale 7"
    assert group_name("tiny", {"guidance_scale": 3.5}) == "tiny, guidance_scale 3.5"
    assert group_name("tiny", {"guidance_scale": 4.0, "guidance_scale_2": 3.0}) == (
        "tiny, guidance_scale 4, guidance_scale_2 3"
    )
    assert group_name("tiny", {"guidance_scale": 3.5, "true_cfg_scale": 2.0}) == "tiny, true_cfg_scale 2"
    assert group_name("tiny", {}) == "tiny"
