"""The commands on pipelines that make clips: a Wan and, for the demo, one that stands for a bundled model."""

import json
import runpy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ertacache.cli import demo
from ertacache.profile.profile import Profile
from ertacache_zoo import catalogue
from pipelines import CALL, PROMPTS, VIDEO_CALL, flux, wan
from test_cli import fails, invoke


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    wan().save_pretrained(folder)
    (folder / "call.json").write_text(json.dumps(VIDEO_CALL))
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    (folder / "heldout.txt").write_text("a small red ring\na large cyan cross\n")
    return folder


@pytest.fixture(scope="module")
def profile(model: Path) -> Path:
    path = model / "profile.safetensors"
    invoke("calibrate", model, "--out", path, "--prompts", model / "prompts.txt", "--compute-steps", 5,
           "--schedule", "uniform", "--basis", "residual", "--num-frames", 5, "--json")  # fmt: skip
    return path


def test_a_profile_of_clips_generates_clips(model: Path, profile: Path, tmp_path: Path):
    assert Profile.load(profile).provenance.call["num_frames"] == 5
    given = ("generate", model, "--prompt", PROMPTS[0], "--num-frames", 5)
    facts = invoke(*given, "--profile", profile, "--out", tmp_path / "clip.gif", "--json")
    assert facts["computed"] == {"cond": 5, "uncond": 5} and facts["predicted"] == {"cond": 5, "uncond": 5}
    with Image.open(tmp_path / "clip.gif") as image:
        assert (image.n_frames, image.size, image.info["duration"]) == (5, (32, 32), 60)  # Wan's 16 per second
    invoke(*given, "--out", tmp_path / "clip.webp", "--fps", 10)
    with Image.open(tmp_path / "clip.webp") as image:
        image.load()
        assert (image.n_frames, image.info["duration"]) == (5, 100)
    assert f"{tmp_path / 'clip.mp4'}: denoising" in invoke(*given, "--out", tmp_path / "clip.mp4")
    assert (tmp_path / "clip.mp4").read_bytes()[4:8] == b"ftyp"


def test_the_default_file_is_of_the_right_kind(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    given = ("generate", model, "--prompt", PROMPTS[0], "--num-inference-steps", 2, "--json")
    assert invoke(*given)["image"] == "clip.mp4"
    assert invoke(*given, "--num-frames", 1)["image"] == "image.png"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "image.png"]


def test_a_file_of_the_wrong_kind_is_refused_before_anything_runs(model: Path, tmp_path: Path, monkeypatch, capsys):
    given = ("generate", model, "--prompt", PROMPTS[0], "--out")
    text = fails(monkeypatch, capsys, *given, tmp_path / "x.png")
    assert "x.png would hold one picture, and this is a clip; name a .mp4 or .gif file" in text
    assert "fps is 99; choose frames per second above 0" in fails(
        monkeypatch, capsys, *given, tmp_path / "x.gif", "--fps", 99
    )
    flux().save_pretrained(tmp_path / "flux")
    (tmp_path / "flux" / "call.json").write_text(json.dumps(CALL))
    text = fails(monkeypatch, capsys, "generate", tmp_path / "flux", "--prompt", "x", "--out", tmp_path / "x.mp4")
    assert "x.mp4 would hold a clip, and this is one picture; name a .png file" in text
    assert not list(tmp_path.glob("x.*"))


@pytest.mark.slow
def test_the_ablation_of_clips_has_its_figures_and_report(model: Path, tmp_path: Path):
    given = ("--prompts", model / "heldout.txt", "--calibration-prompts", model / "prompts.txt", "--budgets", 5)
    result = invoke("ablation", model, *given, "--no-full", "--out", tmp_path, "--json")
    _, *rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [row["label"] for row in rows] == [row["label"] for row in result["rows"]]
    assert {row["group"] for row in rows} == {f"{model.name}, guidance_scale 5"}
    for row in rows:
        assert len(row["frame_psnr"]) == 9 and len(row["psnr"]["values"]) == len(row["flicker"]["values"]) == 2
        assert sum(row["frame_psnr"]) / 9 == pytest.approx(row["psnr"]["mean"], abs=1e-3)
        assert all(name.endswith(".webp") and (tmp_path / name).is_file() for name in row["samples"])
    page = Path(result["report"]).read_text()
    assert page.count('class="loop pixels"') == sum(len(row["samples"]) for row in rows) == 2 * len(rows)
    assert "Quality of each frame" in page


@pytest.mark.slow
def test_the_demo_of_a_video_model_writes_clips(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(model, tmp_path / "model")
    asked: list[tuple[int, str]] = []

    def prompts(n: int, name: str) -> list[str]:
        asked.append((n, name))
        return [f"{'held out' if len(asked) > 1 else 'calibrated'} {number}" for number in range(n)]

    monkeypatch.setattr(catalogue, "folder", lambda name: tmp_path / "model")
    monkeypatch.setattr(catalogue, "calibration_prompts", prompts)
    monkeypatch.setattr(catalogue, "heldout_prompts", prompts)
    monkeypatch.setitem(demo._SIZES, "tiny-wan", replace(demo.of_clips(5), calibration=4, prompts=2))
    result: dict[str, Any] = demo.run_demo("tiny-wan", tmp_path / "out")
    assert asked == [(4, "tiny-wan"), (2, "tiny-wan")]
    loaded = Profile.load(result["profile"])
    assert (loaded.schedule.K, loaded.schedule.T, loaded.site) == (5, 10, "guided")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    clips = {f"{name}.{kind}" for name in ("uncached", "ertacache") for kind in ("mp4", "gif")}
    assert names == {"profile.safetensors", "results.jsonl", "report.html", "samples", *clips}
    with Image.open(tmp_path / "out" / "ertacache.gif") as image:
        assert (image.n_frames, image.info["duration"]) == (9, 120)  # bundled models play at 8 per second
    assert "fitted, guided: uniform" in result["text"] and "demo took" in result["text"]


def test_every_bundled_model_has_a_demo_and_those_of_clips_are_small():
    assert demo._SIZES.keys() == set(catalogue.NAMES)
    sizes = [demo._SIZES[name] for name in catalogue.VIDEO_NAMES]
    assert [(size.budget, size.prompts, size.kinds) for size in sizes] == [(b, 4, ("mp4", "gif")) for b in (23, 31, 19)]


def test_the_ablation_of_the_video_models_is_at_the_budgets_of_the_paper():
    script = Path(__file__).parent.parent / "benchmarks" / "ablation.py"
    videos = runpy.run_path(str(script))["VIDEOS"]
    assert (videos.folder, videos.title) == ("ablation-video", "tiny-wan and tiny-cogvideox and tiny-open-sora")
    assert videos.jobs == [(0, 23), (0, 12), (1, 31), (1, 17), (2, 19), (2, 12)] and videos.prompts == 16
