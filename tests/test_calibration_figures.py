"""benchmarks/calibration_prompts.py, seeds.py and judged_bias.py: what they count, on few prompts and steps."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmark_scripts import ROOT, load
from ertacache.calibration.prompts import Prompts
from ertacache.pipelines.loading import load_pipeline

counts: Any = load("calibration_prompts")
seeds: Any = load("seeds")
bias: Any = load("judged_bias")

CALL: dict[str, Any] = {"num_inference_steps": 8}
RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    for script, sizes in (
        (counts, {"JUDGED": 2}),
        (seeds, {"SEEDS": 2, "CALIBRATION": 4, "JUDGED": 2}),
        (bias, {"DRAWS": 2, "CALIBRATION": 4, "FRESH": 3}),
    ):
        for name, value in sizes.items():
            monkeypatch.setattr(script, name, value)


def test_a_row_for_every_number_of_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = counts.measure("tiny-flux-base", [2.0], [4, 6], tmp_path, **CALL)
    assert [(row["prompts"], row["K"]) for row in rows] == [(4, 4), (6, 4)]
    assert 0 < rows[0]["uncached_runs"] < rows[1]["uncached_runs"]
    counts.draw(rows, tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.width == 800
    monkeypatch.setattr(counts, "row", None)  # nothing is measured twice
    assert counts.measure("tiny-flux-base", [2.0], [4, 6], tmp_path, **CALL) == rows


def test_one_seed_gives_one_profile_and_seeds_are_spread(tmp_path: Path) -> None:
    found = seeds.measure("tiny-flux-base", 2.0, tmp_path, **CALL)
    first, second = found["rows"]
    assert (first["seed"], second["seed"]) == (0, 1000) and found["byte_equal"] is True
    assert found["mean"] == round((first["psnr"] + second["psnr"]) / 2, 2)
    assert found["std"] == pytest.approx(abs(first["psnr"] - second["psnr"]) / math.sqrt(2), abs=0.01)
    assert first["psnr"] != second["psnr"]


def test_no_caption_is_drawn_twice() -> None:
    for model in ("tiny-flux-base", "tiny-wan"):
        drawn = [caption for draw in range(2) for part in bias.captions(model, draw) for caption in part]
        assert len(drawn) == len(set(drawn)) == 2 * 7


def test_the_bias_is_reported_minus_fresh(tmp_path: Path) -> None:
    found = bias.measure("tiny-flux-base", 2.0, tmp_path, **CALL)
    for row in found["rows"]:
        assert row["bias"] == pytest.approx(row["reported"] - row["fresh"], abs=1e-3)
        assert 1 <= row["judged_prompts"] < 4
        fewer = row["fewer_steps"]
        assert row["gain_bias"] == pytest.approx(row["bias"] - fewer["judged"] + fewer["fresh"], abs=1e-3)
    assert found["gain"] == bias.summary([row["gain_bias"] for row in found["rows"]])
    assert {name: found[name] for name in ("bias", "standard_error", "within")} == bias.summary(
        [row["bias"] for row in found["rows"]]
    )


def test_both_figures_are_those_of_the_profile_on_the_prompts_that_it_was_judged_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which no fit and no choice has seen, so that they are drawn as the fresh ones are."""
    found: list[Any] = []
    calibrate = bias.ertacache.calibrate
    monkeypatch.setattr(bias.ertacache, "calibrate", lambda *a, **k: found.append(calibrate(*a, **k)) or found[-1])
    rows = bias.measure("tiny-flux-base", 2.0, tmp_path, **CALL)["rows"]
    pipe = load_pipeline("tiny-flux-base")
    for draw, (row, profile) in enumerate(zip(rows, found, strict=True)):
        used, fresh = bias.drawn("tiny-flux-base", draw)
        assert (used.seed, fresh.seed) == (bias.SEED + 7 * draw, bias.SEED + 7 * draw + 4)
        judged = Prompts(used.texts[3:], used.seed + 3)
        again = bias.Fresh(pipe, judged, profile.provenance.call)
        assert row["reported"] == pytest.approx(statistics.fmean(again.psnr(profile)), abs=2e-3)
        own = profile.provenance.heldout["fewer_steps"]
        assert row["fewer_steps"]["judged"] == pytest.approx(own["psnr"]["mean"], abs=2e-3)


def test_a_bias_is_judged_by_its_own_standard_error() -> None:
    assert bias.summary([1.0, -1.0, 0.5, 0.5]) == {"bias": 0.25, "standard_error": 0.433, "within": True}
    assert bias.summary([1.0, 1.2, 0.8, 1.0])["within"] is False


@pytest.mark.parametrize("name", ["seeds", "judged_bias"])
def test_what_is_committed_is_what_its_rows_say(name: str) -> None:
    for model in json.loads((RESULTS / f"{name}.json").read_text())["models"]:
        if name == "seeds":
            assert model["byte_equal"] and len(model["rows"]) == 5
        else:
            assert len(model["rows"]) == 24
            assert bias.summary([row["bias"] for row in model["rows"]])["bias"] == model["bias"]
            assert bias.summary([row["gain_bias"] for row in model["rows"]]) == model["gain"]
