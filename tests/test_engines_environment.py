"""The plug-ins in the real engines: what benchmarks/engines.py measured, and that it measures so again."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmark_scripts import ROOT, load
from ertacache.integrations import sglang, vllm_omni

RELEASES = {"sglang": sglang.RELEASE, "vllm-omni": vllm_omni.RELEASE}


def check(found: dict[str, Any], engine: str) -> None:
    """Everything that does not depend on the machine."""
    schedule, row = found["schedule"], found[engine]
    assert row["versions"][engine] == RELEASES[engine]
    assert row["uncached"] == {"calls": len(schedule), "bit_equal_to_diffusers": True}
    assert row["with the profile"] == {
        "calls": schedule.count("#"), "bit_equal_to_diffusers_with_ertacache": True, "again_bit_equal": True
    }  # fmt: skip
    other = row["another number of steps"]
    assert other["calls"] == 3 and other["reason"].startswith("num_inference_steps: the profile has 6")
    begins = {
        "sglang": {"--cache-dit-config": "CacheConflict: --cache-dit-config 'cache.yaml' and ERTACACHE_PROFILE="},
        "vllm-omni": {"no such profile": "InvalidArgument: there is no profile at 'nowhere.safetensors'"},
    }[engine]
    assert {name: row["refused"][name][: len(words)] for name, words in begins.items()} == begins


@pytest.mark.parametrize("engine", sorted(RELEASES))
def test_the_committed_result_is_what_the_page_says(engine: str):
    check(json.loads((ROOT / "benchmarks" / "results" / "engines.json").read_text()), engine)


@pytest.mark.slow
@pytest.mark.parametrize("engine", sorted(RELEASES))
def test_the_engine_plays_the_profile(engine: str, tmp_path: Path):
    environment = load("engines_environment")
    if why := environment.environment_of(engine).missing(environment.default_folder(engine)):
        pytest.skip(why)
    out = tmp_path / "engines.json"
    script = str(ROOT / "benchmarks" / "engines.py")
    subprocess.run([sys.executable, script, "--engine", engine, "--out", str(out)], check=True)
    check(json.loads(out.read_text()), engine)


def test_an_environment_says_why_it_is_not_there(tmp_path: Path):
    module = load("engines_environment")
    environment, remedy = module.environment_of("sglang"), "run python benchmarks/engines_environment.py sglang"
    assert environment.missing(tmp_path) == f"no sglang in {tmp_path}: {remedy}"
    python = load("own_environment").python_of(tmp_path)
    python.parent.mkdir()
    python.touch()
    marker = tmp_path / environment.marker
    marker.write_text("[]")
    assert environment.missing(tmp_path) == f"{tmp_path} is of other requirements: delete it and {remedy}"
    marker.write_text(json.dumps(list(environment.requirements)))
    assert environment.missing(tmp_path) is None
    for engine, release in RELEASES.items():
        assert module.REQUIREMENTS[engine][0] == f"{engine}=={release}"


def test_what_is_in_use_is_left_alone(tmp_path: Path):
    (tmp_path / "other").touch()
    with pytest.raises(SystemExit, match="is in use for something else"):
        load("engines_environment").environment_of("sglang").make(tmp_path)
