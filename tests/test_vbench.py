"""Runs of VBench, with a script in place of its environment's Python; nothing is downloaded."""

import json
import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ertacache.cli import vbench as vbench_cli
from ertacache.errors import InvalidArgument, MissingExtra, VBenchFailed
from ertacache.evaluation.vbench import run as vbench
from ertacache.evaluation.vbench.scores import MODES, video_name
from fake_python import Fake
from test_vbench_scores import RAW


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake(tmp_path, monkeypatch)


def run(fake: Fake, videos: Path, **options: Any) -> dict[str, Any]:
    return vbench.run(videos, fake.folder / "results.json", folder=fake.environment, **options)


def test_a_run_scores_every_dimension_and_writes_the_totals(fake: Fake, videos: Path):
    fake.set_up()
    fake.behave(score=RAW)
    result = run(fake, videos)
    assert fake.jobs() == ["check", *MODES["standard"]]
    assert json.loads((fake.folder / "results.json").read_text()) == result
    assert {name: row["score"] for name, row in result["dimensions"].items()} == RAW
    assert result["dimensions"]["scene"] == {"score": 0.4111, "videos": 3, "missing": 0, "normalised": 0.5}
    assert result["total"] == pytest.approx((4 * 7 / 13 + 5.45 / 9) / 5)
    assert (result["vbench"], result["mode"], result["videos"]) == ("0.1.5", "standard", str(videos))
    part = json.loads((fake.folder / "results.json.parts" / "scene.json").read_text())
    assert part["per_video"] == [["scene", 0.4111]]


def test_how_the_worker_is_called(fake: Fake, videos: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
        monkeypatch.setenv(name, "main")
    monkeypatch.setenv("VBENCH_CACHE_DIR", "/checkpoints")
    fake.set_up()
    run(fake, videos, mode="custom", dimensions=["imaging_quality", "dynamic_degree", "imaging_quality"], device="cpu")
    check, first, second = fake.entries()
    worker = str(Path(vbench.__file__).with_name("worker.py"))
    common = ["-u", worker, str(videos), "custom", "cpu"]
    assert check["argv"] == [*common, "check", "imaging_quality", "dynamic_degree"]
    assert first["argv"][:-1] == [*common, "score", "imaging_quality"]
    assert second["argv"][:-1] == [*common, "score", "dynamic_degree"]
    for entry in fake.entries():
        assert entry["exe"] == str(fake.environment / "bin" / "python")
        assert not {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"} & entry["env"].keys()
        assert entry["env"]["VBENCH_CACHE_DIR"] == "/checkpoints"


def test_a_killed_run_goes_on_without_repeating_a_dimension(fake: Fake, videos: Path):
    fake.set_up()
    names = ["scene", "color", "human_action"]
    fake.behave(kill="color", score={"scene": 0.25})
    code = (
        "import sys; from pathlib import Path; from ertacache.evaluation.vbench.run import run; "
        "videos, out, folder, *names ="
        "sys.argv[1:]; run(Path(videos), Path(out), dimensions=names, folder=Path(folder))"
    )
    arguments = [str(videos), str(fake.folder / "results.json"), str(fake.environment), *names]
    killed = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert fake.jobs() == ["check", "scene", "color"]
    assert not (fake.folder / "results.json").exists()
    fake.behave(score={"scene": 0.75})
    result = run(fake, videos, dimensions=names)
    assert fake.jobs()[3:] == ["check", "color", "human_action"]
    assert fake.entries()[3]["argv"][-2:] == ["color", "human_action"]
    assert [row["score"] for row in result["dimensions"].values()] == [0.25, 0.5, 0.5]
    assert run(fake, videos, dimensions=names) == result
    assert len(fake.jobs()) == 6


def test_a_failed_dimension_tells_its_last_lines_and_keeps_those_before(fake: Fake, videos: Path):
    fake.set_up()
    fake.behave(fail="color")
    with pytest.raises(VBenchFailed, match=r"VBench's color failed with exit code 1; .* again to go on") as failed:
        run(fake, videos, dimensions=["scene", "color"])
    assert str(failed.value).endswith("\n    last line of trouble")
    fake.behave()
    run(fake, videos, dimensions=["scene", "color"])
    assert fake.jobs() == ["check", "scene", "color", "check", "color"]


def test_a_failed_check_ends_the_run_before_any_dimension(fake: Fake, videos: Path):
    fake.set_up()
    fake.behave(fail="check")
    with pytest.raises(VBenchFailed, match=r"VBench's check before the run failed .*choose other --dimensions"):
        run(fake, videos)
    assert fake.jobs() == ["check"]


def test_a_score_that_is_no_number_is_not_kept(fake: Fake, videos: Path):
    fake.set_up()
    fake.behave(score={"scene": math.nan})
    with pytest.raises(VBenchFailed, match="VBench gives scene the score nan; look for broken videos"):
        run(fake, videos, dimensions=["scene"])
    assert list((fake.folder / "results.json.parts").iterdir()) == []


def test_kept_results_of_other_videos_are_refused(fake: Fake, videos: Path):
    fake.set_up()
    run(fake, videos, dimensions=["imaging_quality"])
    refusal = "imaging_quality.json is of other videos or another mode; delete .* or give another --out"
    with pytest.raises(InvalidArgument, match=refusal):
        run(fake, videos, mode="custom", dimensions=["imaging_quality"])
    (videos / video_name("a dog, running", 1)).write_bytes(b"longer than before")
    with pytest.raises(InvalidArgument, match=refusal):
        run(fake, videos, dimensions=["imaging_quality"])
    part = fake.folder / "results.json.parts" / "imaging_quality.json"
    part.write_text("{}")
    with pytest.raises(InvalidArgument, match=r"imaging_quality.json is damaged \(KeyError.*; delete it to score"):
        run(fake, videos, dimensions=["imaging_quality"])
    assert len(fake.jobs()) == 2


def test_a_run_without_an_environment_names_the_command(fake: Fake, videos: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(MissingExtra, match=f"run `ertacache vbench setup --folder {fake.environment}` first"):
        run(fake, videos)
    monkeypatch.setenv("XDG_CACHE_HOME", str(fake.folder))
    with pytest.raises(MissingExtra, match="holds no finished VBench environment; run `ertacache vbench setup` first"):
        vbench.run(videos, fake.folder / "results.json")


def test_unfit_dimensions_are_refused(fake: Fake, videos: Path):
    fake.set_up()
    for options, message in (
        ({"mode": "long"}, "mode is 'long'; choose one of standard, custom"),
        ({"dimensions": ["colour"]}, "dimension 'colour' is unknown; choose from subject_consistency, .*overall_cons"),
        ({"dimensions": []}, "no dimensions were given; choose from"),
        (
            {"mode": "custom", "dimensions": ["color"]},
            r"dimension 'color' needs VBench's own prompts \(--mode standard\); custom videos have "
            "subject_consistency, background_consistency, motion_smoothness, dynamic_degree, aesthetic_quality, "
            "imaging_quality$",
        ),
    ):
        with pytest.raises(InvalidArgument, match=message):
            run(fake, videos, **options)
    assert fake.jobs() == []


def test_unfit_videos_are_refused(fake: Fake, videos: Path):
    fake.set_up()
    with pytest.raises(InvalidArgument, match="nowhere is no folder; give a folder of mp4 files"):
        run(fake, fake.folder / "nowhere")
    (empty := fake.folder / "empty").mkdir()
    with pytest.raises(InvalidArgument, match="is empty; give a folder of mp4 files"):
        run(fake, empty)
    (videos / "other-5.mp4").touch()
    with pytest.raises(
        InvalidArgument, match=r"'other-5.mp4' is no name .*'\{prompt\}-0.mp4' to '\{prompt\}-4.mp4', or"
    ):
        run(fake, videos)
    run(fake, videos, mode="custom", dimensions=["imaging_quality"])
    (videos / "list.txt").touch()
    with pytest.raises(
        InvalidArgument, match=r"holds 'list.txt', which is no mp4 file; VBench needs a folder of nothing"
    ):
        run(fake, videos, mode="custom")


def test_unfit_results_are_refused(fake: Fake, videos: Path):
    fake.set_up()
    with pytest.raises(InvalidArgument, match="which is a folder; name a JSON file"):
        vbench.run(videos, fake.folder, folder=fake.environment)
    with pytest.raises(InvalidArgument, match="among the videos, where only mp4 files may be; name another folder"):
        vbench.run(videos, videos / "results.json", folder=fake.environment)


def invoke(*arguments: object) -> str:
    result = CliRunner().invoke(vbench_cli.vbench(), [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_commands(fake: Fake, videos: Path):
    folder = ("--folder", fake.environment)
    text = invoke("setup", *folder, "--python", fake.python())
    assert text == f"VBench 0.1.5 is installed in {fake.environment} (Python 3.11.7)\n"
    assert "is already installed in" in invoke("setup", *folder)
    assert json.loads(invoke("setup", *folder, "--json"))["installed"] is False
    out = fake.folder / "results.json"
    arguments = ("run", videos, "--out", out, "--dimensions", "scene, dynamic_degree", "--device", "cpu", *folder)
    fake.behave(missing=2)
    result = json.loads(invoke(*arguments, "--json"))
    assert result == json.loads(out.read_text()) and list(result["dimensions"]) == ["scene", "dynamic_degree"]
    assert fake.entries()[-1]["argv"][4] == "cpu"
    assert invoke(*arguments).splitlines() == [
        "                            score  normalised  videos  missing",
        "scene                      50.00%      60.81%       3        2",
        "dynamic_degree             50.00%      50.00%       3        2",
        "quality",
        "semantic",
        "total",
        "videos are missing: these scores compare only with scores of the same set of videos",
        str(out),
    ]


def test_the_table_of_a_complete_run(fake: Fake, videos: Path):
    fake.set_up()
    fake.behave(score=RAW)
    lines = vbench_cli._described(run(fake, videos)).splitlines()
    assert lines[1] == "subject_consistency        57.31%      50.00%       3        0"
    assert [line.split() for line in lines[-3:]] == [["quality", "53.85%"], ["semantic", "60.56%"], ["total", "55.19%"]]
