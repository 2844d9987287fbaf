"""`ertacache calibrate-split`: one function between two folders and a file, and what it answers to bad input."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import ertacache.cli.app as cli
from ertacache.split import SplitProfile
from pipelines import CALL, PROMPTS, flux


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of one size, and prompts."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("large", "small")):
        flux(seed=seed).save_pretrained(folder / name)
    (folder / "large" / "call.json").write_text(json.dumps({**CALL, "num_inference_steps": 3}))
    (folder / "prompts.txt").write_text("\n".join([*PROMPTS, "a ring", "a cross"][:4]))
    return folder


def run(monkeypatch: pytest.MonkeyPatch, folders: Path, *arguments: str) -> int:
    words = ["calibrate-split", str(folders / "large"), str(folders / "small"), *arguments]
    monkeypatch.setattr(sys, "argv", ["ertacache", *words])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_it_writes_what_it_says(
    monkeypatch: pytest.MonkeyPatch, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "split.json"
    prompts = ("--prompts", str(folders / "prompts.txt"))
    assert run(monkeypatch, folders, *prompts, "--cloud-budget", "0.4", "--out", str(out), "--json", "-q") == 0
    said, found = json.loads(capsys.readouterr().out.splitlines()[-1]), SplitProfile.load(out)
    assert said == {
        "profile": str(out), "switch": found.switch, "models": list(found.models), "cloud_share": found.cloud_share,
        "operations": found.operations, "chosen_on": found.chosen_on, "judged": found.judged,
    }  # fmt: skip
    assert found.asked == {"cloud_budget": 0.4} and len(found.models) == 3 and found.made["call"]["height"]


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "no budget": ((), "neither of --cloud-budget and --target-psnr is given; give one, as in --cloud-budget 0.4"),
    "percent": (("--cloud-budget", "40"), "--cloud-budget is 40.0; choose the share of the large model's operations"),
    "few steps": (("--cloud-budget", "0.1"), "--cloud-budget is 0.1, which is no whole step of 3; give 0.333 or more"),
    "prompts": (("--cloud-budget", "0.4", "--prompts", "none.txt"), "cannot read prompts from none.txt"),
    "out": (("--cloud-budget", "0.4", "--out", "."), ". is a folder; name a file for the profile"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_ends_with_code_2(
    case: str, monkeypatch: pytest.MonkeyPatch, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given, message = REFUSED[case]
    prompts = () if "--prompts" in given else ("--prompts", str(folders / "prompts.txt"))
    assert run(monkeypatch, folders, *prompts, *given, "-q") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.match(f"ertacache: {re.escape(message)}", said), said


def test_models_of_two_spaces(
    monkeypatch: pytest.MonkeyPatch, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other: Any = flux(guidance_embeds=False, seed=3)
    other.save_pretrained(tmp_path / "other")
    words = [str(folders / "large"), str(tmp_path / "other"), "--prompts", str(folders / "prompts.txt")]
    monkeypatch.setattr(sys, "argv", ["ertacache", "calibrate-split", *words, "--cloud-budget", "0.4", "-q"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert "model 1: denoiser.guidance_embeds: the large one has True, the other one False" in capsys.readouterr().err
