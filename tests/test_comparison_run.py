"""The comparison engine on a random FLUX: what it writes, and that it can be cut off anywhere."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ertacache.baselines.ertacache import Ertacache, Fitted
from ertacache.baselines.fewer_steps import FewerSteps
from ertacache.baselines.first_block_cache import FirstBlockCache
from ertacache.baselines.t_gate import TGate
from ertacache.baselines.taylor_seer import TaylorSeer
from ertacache.baselines.uniform import Uniform
from ertacache.baselines.vde import VDE
from ertacache.calibration.deviation import deviation
from ertacache.calibration.prompts import Prompts
from ertacache.errors import InvalidArgument
from ertacache.evaluation.comparison.entrant import Entrant, entrants_at
from ertacache.evaluation.comparison.job import Job
from ertacache.evaluation.comparison.run import run_comparison
from ertacache.evaluation.execute import execute
from ertacache.evaluation.report.comparison import write_comparison_report
from ertacache.evaluation.report.embedded import open_clip
from ertacache_zoo import catalogue
from pipelines import CALL, PROMPTS, VIDEO_CALL, cogvideox, flux

HELD = tuple(catalogue.heldout_prompts(2))
JOB = Job(HELD, tuple(PROMPTS), CALL, "random", seeds=2, samples=1, costs=(0.5,))
ENTRANTS = [
    *entrants_at([FewerSteps(), Uniform(), FirstBlockCache(), TGate()], [0.5]),
    Entrant("own", Fitted(share=0.3)),
]
IDS = ["no-cache", "fewer-steps@0.5", "uniform@0.5", "first-block-cache@0.5", "own"]


def lines(folder: Path, name: str = "results.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("finished")
    return run_comparison(flux(), ENTRANTS, JOB, out, show_progress=False)


def test_one_row_per_entrant_prompt_and_seed_in_order(finished):
    header, *rows = lines(finished)
    expected = [(entrant, prompt, seed) for seed in range(2) for prompt in range(2) for entrant in IDS]
    assert [(row["entrant"], row["prompt"], row["seed"]) for row in rows] == expected
    timings = lines(finished, "timings.jsonl")
    assert [(row["entrant"], row["prompt"], row["seed"]) for row in timings] == expected
    assert header["metrics"] == ["psnr", "ssim", "latent_error"]
    assert "at least 176 x 176 pixels" in header["missing_metrics"]["ms_ssim"]


def test_the_uncached_rows_are_perfect_and_cost_everything(finished):
    for row in lines(finished)[1:]:
        if row["entrant"] == "no-cache":
            assert (row["psnr"], row["ssim"], row["cost"], row["latent_error"]) == (100, 1, 1, -99)
            assert row["denoiser_calls"] == 10 and row["block_calls"] == row["attention_calls"] == 60
        else:
            assert row["psnr"] < 100


def test_whole_steps_cost_what_the_schedule_says(finished):
    for row in lines(finished)[1:]:
        if row["entrant"] in ("fewer-steps@0.5", "uniform@0.5"):
            assert row["cost"] == 0.5 and row["denoiser_calls"] == 5 and row["block_calls"] == 30
            assert sorted(row["step_cost"]) == ([1.0] * 5 if row["steps"] == 5 else [0.0] * 5 + [1.0] * 5)
        if row["entrant"] == "own":
            assert row["denoiser_calls"] == 3


def test_only_the_first_prompts_of_the_first_seed_keep_their_picture_and_decomposition(finished):
    for row in lines(finished)[1:]:
        sampled = row["seed"] == 0 and row["prompt"] == 0
        assert (row["sample"] is not None) == sampled
        assert (row["decomposition"] is not None) == (sampled and row["steps"] == 10)
        if sampled:
            assert (finished / row["sample"]).is_file()


def test_a_method_that_cannot_run_says_why_and_has_no_rows(finished):
    entrants = {entrant["id"]: entrant for entrant in json.loads((finished / "entrants.json").read_text())["entrants"]}
    assert list(entrants) == ["no-cache", *(entrant.id for entrant in ENTRANTS)]
    assert "joint" in entrants["t-gate@0.5"]["refusal"]
    assert entrants["uniform@0.5"]["tuned_cost"] == 0.5
    assert entrants["own"]["settings"]["profile"] == {"file": "prepared/own.safetensors"}


def test_the_variant_that_is_best_on_the_calibration_prompts_takes_part(tmp_path):
    call = {**CALL, "num_inference_steps": 7}
    job = Job(HELD[:1], tuple(PROMPTS[:2]), call, "random", seeds=1, samples=0, costs=(0.5,))
    out = run_comparison(flux(), entrants_at([TaylorSeer()], [0.5]), job, tmp_path, show_progress=False)
    chosen = json.loads((out / "entrants.json").read_text())["entrants"][1]["settings"]
    pipe, prompts = flux(), Prompts(tuple(PROMPTS[:2]), 0)

    def latents(method):
        return torch.cat([execute(pipe, method, one, call)[1].latents for one in prompts.batches(1)])

    reference = latents(None)
    settings = [replace(variant, interval=chosen["interval"]) for variant in TaylorSeer().variants()]
    assert replace(TaylorSeer(), **chosen) == min(settings, key=lambda one: deviation(latents(one), reference))


def test_a_method_takes_part_where_one_of_its_variants_can(tmp_path):
    call = {**CALL, "num_inference_steps": 8}  # as many as VDE computes at the start of a run by default
    job = Job(HELD[:1], tuple(PROMPTS), call, "random", seeds=1, samples=0, costs=(0.5,))
    out = run_comparison(flux(), entrants_at([VDE()], [0.5]), job, tmp_path, show_progress=False)
    entry = json.loads((out / "entrants.json").read_text())["entrants"][1]
    assert entry["refusal"] is None and entry["settings"]["stable"] < 6


def test_a_finished_comparison_runs_nothing_again(finished):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    run_comparison(flux(), ENTRANTS, JOB, finished, show_progress=False)
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


@pytest.mark.slow
@pytest.mark.parametrize("kept", [0, 1, 7, 12])
def test_cut_off_after_any_row_it_ends_in_the_same_file(finished, tmp_path, kept):
    text = (finished / "results.jsonl").read_text().splitlines(keepends=True)
    times = (finished / "timings.jsonl").read_text().splitlines(keepends=True)
    # A kill between the two files, in the middle of a line, with nothing tuned for the entrants that come last.
    (tmp_path / "results.jsonl").write_text("".join(text[:kept]) + text[kept][:20])
    (tmp_path / "timings.jsonl").write_text("".join(times[:kept]))
    known = json.loads((finished / "entrants.json").read_text())["entrants"]
    (tmp_path / "entrants.json").write_text(json.dumps({"entrants": known[:3]}))
    prepared = tmp_path / "prepared" / "uniform@0.5.safetensors"
    prepared.parent.mkdir()
    prepared.write_bytes((finished / "prepared" / prepared.name).read_bytes())
    run_comparison(flux(), ENTRANTS, JOB, tmp_path, show_progress=False)
    assert (tmp_path / "results.jsonl").read_bytes() == (finished / "results.jsonl").read_bytes()
    assert len(lines(tmp_path, "timings.jsonl")) == len(times)


def test_another_comparison_is_refused_by_what_differs(finished):
    pipe = flux()
    with pytest.raises(InvalidArgument, match=r"holds a comparison with seeds = 2, not 1"):
        run_comparison(pipe, ENTRANTS, replace(JOB, seeds=1), finished, show_progress=False)
    with pytest.raises(InvalidArgument, match=r"other methods \(row 2 is 'fewer-steps@0.5', not 'uniform@0.5'\)"):
        run_comparison(pipe, ENTRANTS[1:], JOB, finished, show_progress=False)
    with pytest.raises(
        InvalidArgument, match=r"holds uniform at cost 0\.5 under the name 'uniform@0.5', not fewer-steps"
    ):
        run_comparison(pipe, [Entrant("uniform@0.5", FewerSteps())], JOB, finished, show_progress=False)


def test_bad_jobs_are_refused():
    with pytest.raises(InvalidArgument, match="1 prompt\\(s\\) are calibrated and measured on"):
        replace(JOB, prompts=(PROMPTS[0], *HELD))
    with pytest.raises(InvalidArgument, match="give at least one of each"):
        replace(JOB, prompts=())
    with pytest.raises(InvalidArgument, match="seeds is 0"):
        replace(JOB, seeds=0)
    with pytest.raises(InvalidArgument, match="no num_inference_steps"):
        replace(JOB, call={})


def test_bad_entrants_are_refused(tmp_path):
    with pytest.raises(InvalidArgument, match=r"cost is 1\.5; choose shares"):
        entrants_at([Uniform()], [1.5])
    with pytest.raises(InvalidArgument, match=r"match_cost is 0\.5, 0\.5; give each share once"):
        entrants_at([Uniform()], [0.5, 0.5])
    with pytest.raises(InvalidArgument, match="two entrants have one id"):
        run_comparison(flux(), entrants_at([Uniform(), Uniform()], [0.5]), JOB, tmp_path, show_progress=False)


def test_metrics_are_chosen_by_name(tmp_path):
    job = replace(JOB, prompts=HELD[:1], seeds=1)
    with pytest.raises(InvalidArgument, match="ms_ssim cannot be measured: needs images of at least"):
        run_comparison(flux(), [], job, tmp_path, metrics=["psnr", "ms_ssim"], show_progress=False)
    run_comparison(flux(), [], job, tmp_path, metrics=["psnr"], show_progress=False)
    assert "ssim" not in lines(tmp_path)[1]


def test_videos_are_compared_and_kept_as_clips(tmp_path):
    job = Job(HELD[:1], tuple(PROMPTS), VIDEO_CALL, samples=1, costs=(0.5,))
    entrants = entrants_at([Uniform(), Ertacache(), FirstBlockCache()], [0.5])
    run_comparison(cogvideox(), entrants, job, tmp_path, show_progress=False)
    header, *rows = lines(tmp_path)
    assert header["video"] and "flicker" in header["metrics"]
    assert [row["entrant"] for row in rows] == ["no-cache", "uniform@0.5", "ertacache@0.5", "first-block-cache@0.5"]
    assert all((tmp_path / row["sample"]).stat().st_size > 0 and row["sample"].endswith(".webp") for row in rows)
    for row in rows:
        assert row["decomposition"] is None  # Eq. 11 is Euler's
        assert sum(row["frame_psnr"]) / len(row["frame_psnr"]) == pytest.approx(row["psnr"], abs=1e-3)
        assert len(open_clip(tmp_path / row["sample"], "sample", 9)) == len(row["frame_psnr"]) == 9
    page = write_comparison_report(tmp_path).read_text()
    assert page.count('class="loop pixels"') == 4 and 'aria-label="PSNR of each frame; highest: ' in page


@pytest.mark.slow
@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_file(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(catalogue.heldout_prompts(3)))
    texts = tmp_path / "calibration.txt"
    texts.write_text("\n".join(catalogue.calibration_prompts(3)))
    command = [
        sys.executable, "-c", "from ertacache.cli.app import main; main()", "compare", "--model", "tiny-flux",
        "--methods",
        "fewer-steps,uniform,teacache", "--match-cost", ".5", "--num-inference-steps", "8", "--samples", "1",
        "--prompts", str(prompts), "--calibration-prompts", str(texts), "--json",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    process = subprocess.Popen([*command, "--out", str(killed)], **quiet)
    while process.poll() is None and not (killed / "samples").is_dir():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "report.html").exists(), "it was done before it could be killed"
    for out in (killed, undisturbed):
        subprocess.run([*command, "--out", str(out)], check=True, **quiet)
    assert (killed / "results.jsonl").read_bytes() == (undisturbed / "results.jsonl").read_bytes()
    assert len((killed / "timings.jsonl").read_text().splitlines()) == 3 * 4
    assert (killed / "report.html").is_file()
