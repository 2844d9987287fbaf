"""The commands, on a saved pipeline with random weights."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import ertacache.cli.app as cli
from ertacache.baselines.catalogue import METHODS
from ertacache.profile.profile import Profile
from pipelines import CALL, PROMPTS, flux

RUN = CliRunner()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder with call.json, and prompt files beside it."""
    folder = tmp_path_factory.mktemp("model")
    flux().save_pretrained(folder)
    (folder / "call.json").write_text(json.dumps(CALL))
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    (folder / "heldout.txt").write_text("a small red ring at the top left\na large cyan cross at the top right\n")
    return folder


@pytest.fixture(scope="module")
def profile(model: Path) -> Path:
    path = model / "profile.safetensors"
    invoke("calibrate", model, "--out", path, "--prompts", model / "prompts.txt", "--compute-steps", 5,
           "--schedule", "uniform", "--json")  # fmt: skip
    return path


def invoke(*arguments: object) -> Any:
    """Run a command that must succeed; its JSON where it printed some."""
    result = RUN.invoke(cli.app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1]) if "--json" in arguments else result.stdout


def fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run the entry point; it must exit with 2 and explain itself on one line of standard error."""
    monkeypatch.setattr(sys, "argv", ["ertacache", *(str(argument) for argument in arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_calibrate_writes_a_profile_that_inspect_describes(model: Path, profile: Path):
    loaded = Profile.load(profile)
    assert (loaded.schedule.K, loaded.site) == (5, "guided")
    facts = invoke("inspect", profile, "--json")
    assert facts["schedule"] == str(loaded.schedule)
    assert facts["heldout"]["psnr"]["mean"] == loaded.provenance.heldout["psnr"]["mean"]
    text = invoke("inspect", profile, "--picture", model / "profile.png")
    assert str(loaded.schedule) in text and "held-out prompts" in text
    assert (model / "profile.png").read_bytes().startswith(b"\x89PNG")


def test_generate_with_and_without_a_profile(model: Path, profile: Path):
    plain = invoke("generate", model, "--prompt", PROMPTS[0], "--out", model / "plain.png", "--json")
    assert plain["computed"] == {}
    cached = invoke("generate", model, "--prompt", PROMPTS[0], "--profile", profile, "--out", model / "c.png", "--json")
    assert cached["computed"] == {"cond": 5} and cached["predicted"] == {"cond": 5}
    assert (model / "plain.png").read_bytes() != (model / "c.png").read_bytes()
    other = ("--profile", profile, "--num-inference-steps", 6, "--retarget", "--out", model / "r.png", "--json")
    with pytest.warns(UserWarning, match="calibrated at 10 steps and is retargeted to 6"):
        assert invoke("generate", model, "--prompt", PROMPTS[0], *other)["computed"] == {"cond": 3}


def test_ablation_prints_a_table_and_writes_a_report(model: Path):
    arguments = ("ablation", model, "--prompts", model / "heldout.txt", "--calibration-prompts", model / "prompts.txt")
    result = invoke(*arguments, "--budgets", "5", "--no-full", "--out", model / "out", "--json")
    assert Path(result["report"]).is_file()
    assert result["rows"][0]["label"] == "no cache"


def test_compare_measures_methods_at_a_cost_and_writes_a_report(model: Path, tmp_path: Path):
    files = ("--prompts", model / "heldout.txt", "--calibration-prompts", model / "prompts.txt")
    arguments = ("compare", "--model", model, *files, "--methods", "fewer-steps,uniform,t-gate", "--match-cost", ".5")
    result = invoke(*arguments, "--out", tmp_path, "--samples", "1", "--json")
    assert Path(result["report"]).is_file()
    fewer, uniform, gate = result["rows"]
    assert (fewer["id"], fewer["cost"], fewer["denoiser_calls"]) == ("fewer-steps@0.5", 0.5, 5)
    assert (uniform["id"], uniform["cost"]) == ("uniform@0.5", 0.5) and uniform["psnr"] < 100
    assert gate["id"] == "t-gate@0.5" and "joint" in gate["refusal"]
    text = invoke(*arguments, "--out", tmp_path, "--samples", "1")
    assert "uniform, residual reuse" in text and "not run: its attention is joint" in text


def test_compare_takes_published_settings(model: Path, tmp_path: Path):
    files = ("--prompts", model / "heldout.txt", "--calibration-prompts", model / "prompts.txt")
    arguments = ("compare", "--model", model, *files, "--methods", "pab", "--match-cost", "published")
    assert [row["id"] for row in invoke(*arguments, "--out", tmp_path, "--json")["rows"]] == ["pab:diffusers"]


def test_compare_lists_its_methods():
    listed = [row["method"] for row in invoke("compare", "--list", "--json")["methods"]]
    assert listed == [method.key for method in METHODS]


def test_zoo_lists_the_bundled_models():
    assert set(invoke("zoo", "list", "--json")) == {"tiny-flux", "tiny-flux-base", "tiny-wan", "tiny-cogvideox"}


def test_bad_input_exits_with_2_and_one_clear_line(model: Path, monkeypatch, capsys):
    prompts = ("--prompts", model / "prompts.txt")
    assert "has no bundled prompts; give a file with --prompts" in fails(monkeypatch, capsys, "calibrate", model)
    assert "say how much to compute" in fails(monkeypatch, capsys, "calibrate", model, *prompts)
    text = fails(monkeypatch, capsys, "calibrate", model, *prompts, "--compute-steps", 11, "--basis", "residual")
    assert "compute_steps is 11; choose 2 to 10" in text
    assert "basis is 'magic'" in fails(
        monkeypatch, capsys, "calibrate", model, *prompts, "--compute-steps", 5, "--basis", "magic"
    )
    assert "budgets is 'many'" in fails(monkeypatch, capsys, "ablation", model, "--budgets", "many")
    assert "match-cost is 'half'" in fails(monkeypatch, capsys, "compare", "--match-cost", "half")
    assert "no method 'magic'" in fails(monkeypatch, capsys, "compare", "--methods", "magic")
    given = ("compare", "--model", model, *prompts, "--calibration-prompts", model / "heldout.txt")
    assert "none of fewer-steps has published settings" in fails(
        monkeypatch, capsys, *given, "--methods", "fewer-steps", "--match-cost", "published"
    )
    assert "nothing that can be reproduced" in fails(monkeypatch, capsys, "reproduce", "table9")
    assert "no bundled model 'x'" in fails(monkeypatch, capsys, "demo", "x")
    missing = fails(monkeypatch, capsys, "inspect", model / "nowhere.safetensors")
    assert "nowhere.safetensors" in missing


def test_a_profile_of_another_step_count_is_refused(model: Path, profile: Path, monkeypatch, capsys):
    text = fails(
        monkeypatch, capsys, "generate", model, "--prompt", "x", "--profile", profile, "--num-inference-steps", 8
    )
    assert "num_inference_steps: the profile has 10, this pipeline 8" in text
