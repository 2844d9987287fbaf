"""The number of calibration prompts against quality, on a small random pipeline."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import ertacache
from ertacache.calibration.pipeline_run import call_pipeline
from ertacache.calibration.prompts import Prompts
from ertacache.errors import InvalidArgument
from ertacache.evaluation.reproduce import figure5
from ertacache.evaluation.reproduce import request as requests
from ertacache.evaluation.reproduce.figure5 import Sweep, run_figure, sweep_of
from ertacache.evaluation.reproduce.figure5_plot import draw
from ertacache.evaluation.reproduce.request import Ready, Request
from ertacache.evaluation.reproduce.settings import COGVIDEOX, FLUX, TINY, WAN, Setting
from ertacache.metrics import psnr
from ertacache.profile.profile import Profile
from pipelines import CALL, PROMPTS, flux

HELD = ("a small red ring at the top left", "a large cyan cross at the top right", "a small blue circle at the top")


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    monkeypatch.setattr(figure5, "SIZES", (2, 4, 8))
    return Sweep(flux(), CALL, HELD, 50, tuple(PROMPTS), tmp_path / "out", None, 6, model="random")


@pytest.fixture
def calibrations(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Arguments of every calibration, which runs all the same."""
    calls: list[dict[str, Any]] = []
    real = ertacache.calibrate

    def watched(pipe: Any, prompts: Any, **arguments: Any) -> Profile:
        calls.append({"prompts": len(prompts), **arguments})
        return real(pipe, prompts, **arguments)

    monkeypatch.setattr("ertacache.calibration.calibrate.calibrate", watched)
    return calls


def test_all_sizes_share_one_schedule_and_are_measured_against_the_uncached_run(
    sweep: Sweep, calibrations: list[dict[str, Any]]
):
    result = sweep.run(["psnr", "ssim"], show_progress=False)
    assert result["sizes"] == [2, 4]
    assert [(call["prompts"], call.get("rectifier"), call.get("timesteps")) for call in calibrations] == [
        (4, "none", "none"), (2, None, "auto"), (4, None, "auto"),  # None: what method="ertacache" has
    ]  # fmt: skip
    assert calibrations[0]["compute_steps"] == 6
    assert {call["schedule"] for call in calibrations[1:]} == {result["schedule"]}
    assert (result["K"], result["T"]) == (result["schedule"].count("#"), 10)
    profile = Profile.load(sweep.out / "prompts-4.safetensors")
    assert str(profile.schedule) == result["schedule"] and profile.provenance.method["rectifier"] == "channel"
    prompts = Prompts(HELD, 50)
    reference = call_pipeline(sweep.pipe, prompts, CALL)
    with ertacache.apply(sweep.pipe, profile):
        images = call_pipeline(sweep.pipe, prompts, CALL)
    row = result["rows"][1]
    assert row["psnr"]["values"] == pytest.approx(psnr(images, reference).tolist(), abs=1e-4)
    assert row["prompts"] == 4 and row["psnr"]["mean"] == pytest.approx(sum(row["psnr"]["values"]) / 3)
    assert not list(sweep.out.glob("*.checkpoint"))


def test_an_interrupted_figure_goes_on_where_it_stopped(sweep: Sweep, calibrations: list[dict[str, Any]]):
    sweep = replace(sweep, timesteps="none")
    whole = sweep.run(["psnr"], show_progress=False)
    kept = (sweep.out / "prompts-4.json").read_bytes()
    (sweep.out / "prompts-4.json").unlink()
    calibrations.clear()
    assert sweep.run(["psnr"], show_progress=False) == whole
    assert [call["prompts"] for call in calibrations] == [4]
    assert (sweep.out / "prompts-4.json").read_bytes() == kept
    calibrations.clear()
    assert sweep.run(["psnr"], show_progress=False) == whole and calibrations == []
    with pytest.raises(InvalidArgument, match=r"out holds a figure of other settings; choose another folder with --ou"):
        replace(sweep, seed=51).run(["psnr"], show_progress=False)
    with pytest.raises(InvalidArgument, match=r"holds a figure of other settings"):
        sweep.run(["psnr", "ssim"], show_progress=False)


def test_the_uncached_run_is_made_once_for_all_sizes(sweep: Sweep, monkeypatch: pytest.MonkeyPatch):
    in_batches = replace(sweep, batch_size=2, timesteps="none")
    calls: list[int] = []

    def watched(pipe: Any, prompts: Prompts, call: dict[str, Any], **options: Any) -> Any:
        if not options:  # the others are a calibration's
            calls.append(prompts.seed)
        return call_pipeline(pipe, prompts, call, **options)

    monkeypatch.setattr("ertacache.calibration.pipeline_run.call_pipeline", watched)
    in_batches.run(["psnr"], show_progress=False)
    # Two batches; each uncached with the first size, and with a profile for both sizes.
    assert sorted(calls) == [50] * 3 + [52] * 3
    assert sorted(path.name for path in (sweep.out / "references").iterdir()) == ["50.safetensors", "52.safetensors"]


def test_one_calibration_prompt_is_too_few(sweep: Sweep):
    with pytest.raises(InvalidArgument, match=r"1 calibration prompt\(s\) given; give at least 2"):
        replace(sweep, calibration_prompts=("a",)).run(["psnr"])


def ready(setting: Setting, by: Any, steps: int) -> Ready:
    return Ready(setting, None, {"num_inference_steps": steps}, ("a",), ("b", "c"), 1, by, 0)


@pytest.mark.parametrize(
    "setting, by, steps, threshold, K, timesteps",
    [
        (FLUX, "threshold", 30, 0.6, 16, "auto"),
        (WAN, "threshold", 50, 0.08, 23, "auto"),
        (COGVIDEOX, "threshold", 50, 0.3, 17, "auto"),
        (TINY[0], "steps", 30, None, 16, "auto"),
        (TINY[2], "steps", 50, None, 23, "auto"),
    ],
)
def test_the_schedule_is_that_of_the_papers_full_method(
    setting: Setting, by: Any, steps: int, threshold: float | None, K: int, timesteps: str, tmp_path: Path
):
    found = sweep_of(Request("figure5", setting.model, tmp_path, site="hidden"), ready(setting, by, steps))
    assert (found.threshold, found.steps, found.timesteps, found.site) == (threshold, K, timesteps, "hidden")
    assert (found.out, found.batch_size, found.model) == (tmp_path, 1, setting.model)


def test_the_figure_is_drawn_written_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(figure5, "SIZES", (2, 3))
    monkeypatch.setattr(requests, "load", lambda setting, device, dtype, offload: flux())
    monkeypatch.setattr(requests, "call_arguments", lambda source, overrides: dict(CALL))
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS[:3]))
    request = Request("figure5", "tiny-flux", tmp_path / "out", count=2, calibration_prompts=tmp_path / "prompts.txt")
    document = run_figure(request)
    assert json.loads((tmp_path / "out" / "figure5.json").read_text())["rows"] == document["rows"]
    assert document["K"] <= 7 and "clip_image" in document["missing_metrics"]
    assert "clip_image is not measured" in document["text"] and "Its values are in a picture only" in document["text"]
    first = next(line for line in document["text"].splitlines() if line.split()[:1] == ["2"])
    assert f"{document['rows'][0]['psnr']['mean']:.4f} ±" in first
    png, svg = map(Path, document["pictures"])
    assert png.read_bytes().startswith(b"\x89PNG") and svg.read_text().startswith("<?xml")


def test_the_plot_has_one_panel_for_each_metric():
    value = {"mean": 0.5, "std": 0.1, "values": [0.4, 0.6]}
    rows = [{"prompts": n, "psnr": value, "clip_image": value} for n in (2, 5)]
    document = {"model": "m", "K": 5, "T": 10, "sizes": [2, 5], "rows": rows}
    assert [axes.get_title(loc="left") for axes in draw(document).axes] == ["PSNR (dB)", "CLIP, image to image"]


def test_references_are_the_uncached_pictures(sweep: Sweep):
    prompts = Prompts(HELD, 50)
    first, again = sweep._reference(prompts, CALL), sweep._reference(prompts, CALL)
    assert torch.equal(first, call_pipeline(sweep.pipe, prompts, CALL)) and torch.equal(first, again)
