"""The examples run as they are, on bundled models; the notebook cell by cell."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmark_scripts import ROOT
from ertacache.pipelines.loading import call_arguments, load_pipeline
from ertacache.serving.split_app import make_split_app
from ertacache.serving.split_service import SplitService
from ertacache_zoo import catalogue
from served import running
from small_open_sora import CALL, open_sora

EXAMPLES = ROOT / "examples"
#: Script, the bundled model in place of the published one, and the ending of what it draws.
SCRIPTS = (
    pytest.param("flux1_dev", "tiny-flux", "png", id="flux1_dev"),
    pytest.param("wan2_1", "tiny-wan", "gif", id="wan2_1"),
    pytest.param("cogvideox_2b", "tiny-cogvideox", "gif", id="cogvideox_2b"),
)


@pytest.mark.filterwarnings("ignore::UserWarning")  # four prompts are no measurement, and it says so
@pytest.mark.parametrize(("script", "model", "kind"), SCRIPTS)
def test_a_script_runs(script: str, model: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(catalogue.calibration_prompts(4, model)))
    arguments = ["--model", model, "--prompts", str(prompts), "--steps", "8", "--speedup", "2"]
    monkeypatch.setattr(sys, "argv", [script, *arguments, "--batch-size", "4", "--out", str(tmp_path / "out")])
    monkeypatch.syspath_prepend(str(EXAMPLES))
    runpy.run_path(str(EXAMPLES / f"{script}.py"), run_name="__main__")
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made == {"calibration", "profile.safetensors", f"uncached.{kind}", f"cached.{kind}"}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_script_of_open_sora_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    open_sora().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "call.json").write_text(json.dumps(CALL))
    (tmp_path / "prompts.txt").write_text("a red ring\na blue ring\na green square\na white cross\n")
    arguments = ["--model", str(tmp_path / "model"), "--prompts", str(tmp_path / "prompts.txt"), "--batch-size", "4"]
    monkeypatch.setattr(sys, "argv", ["open_sora", *arguments, "--out", str(tmp_path / "out")])
    monkeypatch.syspath_prepend(str(EXAMPLES))
    runpy.run_path(str(EXAMPLES / "open_sora.py"), run_name="__main__")
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made == {"calibration", "profile.safetensors", "uncached.gif", "cached.gif"}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_script_of_split_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(catalogue.calibration_prompts(4)))
    arguments = ["tiny", "--prompts", str(prompts), "--steps", "5", "--out", str(tmp_path / "split")]
    monkeypatch.setattr(sys, "argv", ["split_pairs", *arguments])
    runpy.run_path(str(EXAMPLES / "split_pairs.py"), run_name="__main__")
    assert "switch 2: 2 calls of tiny-flux, 3 of nano-flux\n" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"prompts.txt", "split.json", "split.png"}


def test_the_client_of_a_split_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    service = SplitService("tiny-flux", [load_pipeline("tiny-flux")])
    with running(service, app=make_split_app(service)) as url:
        arguments = [url, "a red ring", "--model", "tiny-flux", "--steps", "4", "--switch", "2"]
        monkeypatch.setattr(sys, "argv", ["split_client", *arguments, "--out", str(tmp_path / "split")])
        runpy.run_path(str(EXAMPLES / "split_client.py"), run_name="__main__")
    call = call_arguments("tiny-flux", {"num_inference_steps": 4}) | {"prompt": "a red ring"}
    whole = load_pipeline("tiny-flux")(**call, generator=torch.Generator().manual_seed(0)).images[0]
    assert Image.open(tmp_path / "split.png").tobytes() == whole.tobytes()


def test_the_published_ids_and_settings_are_those_of_the_readme(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import job

    seen: dict[str, dict[str, object]] = {}
    monkeypatch.setattr(job, "run", lambda model, call, kind: seen.update({model: call}))
    for script in ("flux1_dev", "wan2_1", "cogvideox_2b", "open_sora"):
        runpy.run_path(str(EXAMPLES / f"{script}.py"), run_name="__main__")
    lines = [line for line in (EXAMPLES / "README.md").read_text().splitlines() if ".py` |" in line]
    assert len(lines) == len(seen) == 4
    for line, (model, call) in zip(lines, seen.items(), strict=True):
        assert model in line
        assert f"{call['width']}×{call['height']}" in line and f"{call['num_inference_steps']} steps" in line


@pytest.mark.filterwarnings("ignore:.*judged prompts cannot tell:UserWarning")  # four
def test_the_notebook_runs_and_is_committed_without_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((EXAMPLES / "quickstart.ipynb").read_text())
    assert (notebook["nbformat"], len({cell["id"] for cell in notebook["cells"]})) == (4, len(notebook["cells"]))
    namespace: dict[str, object] = {"__name__": "notebook"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            exec(compile("".join(cell["source"]), cell["id"], "exec"), namespace)
    assert (tmp_path / "third.safetensors").is_file()
