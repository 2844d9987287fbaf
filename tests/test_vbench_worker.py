"""The script that runs in VBench's environment: a real one, with stubs of torch and VBench."""

import json
import textwrap
import venv
from pathlib import Path

import pytest

from ertacache.errors import VBenchFailed
from ertacache.evaluation.vbench import run as vbench
from ertacache.evaluation.vbench.environment import MARKER, REQUIREMENTS

STUBS = {
    "torch.py": """
        __version__ = "2.5.1"
        class cuda:
            is_available = staticmethod(lambda: False)
        def device(name):
            return ("device", name)
    """,
    "vbench/__init__.py": """
        import json, os, sys
        class VBench:
            def __init__(self, device, full_info_dir, output_path):
                self.seen = {"device": device, "output": output_path}
                self.info = json.load(open(full_info_dir))
            def evaluate(self, videos_path, name, dimension_list, **options):
                self.seen.update(videos=videos_path, dimensions=dimension_list, options=options, modules=[
                    module for module in sys.modules if module.startswith("ertacache")])
                with open(os.path.join(self.seen["output"], name + "_eval_results.json"), "w") as file:
                    json.dump({dimension_list[0]: [0.625, [self.seen]]}, file)
    """,
}
PROMPTS = [
    {"prompt_en": "a dog, running", "dimension": ["human_action", "scene"]},
    {"prompt_en": "a cat", "dimension": ["scene"]},
    {"prompt_en": "a cow", "dimension": ["color", "temporal_style"]},
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vbench")
    venv.create(folder, symlinks=True, with_pip=False)
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "vbench").mkdir()
    for name, text in STUBS.items():
        (packages / name).write_text(textwrap.dedent(text))
    (packages / "vbench" / "VBench_full_info.json").write_text(json.dumps(PROMPTS))
    (folder / MARKER).write_text(json.dumps({"requirements": REQUIREMENTS, "python": "3.11.7"}))
    return folder


def test_the_worker_calls_vbench_and_counts_videos(environment: Path, videos: Path, tmp_path: Path):
    names = ["human_action", "scene"]
    out = tmp_path / "results.json"
    result = vbench.run(videos, out, dimensions=names, folder=environment, device="cpu")
    assert result["dimensions"]["human_action"] == {"score": 0.625, "normalised": 0.625, "videos": 3, "missing": 2}
    assert result["dimensions"]["scene"]["missing"] == 7
    seen = json.loads((tmp_path / "results.json.parts" / "scene.json").read_text())["per_video"][0]
    assert seen["device"] == ["device", "cpu"] and seen["videos"] == str(videos) and seen["dimensions"] == ["scene"]
    assert seen["options"] == {"mode": "vbench_standard", "imaging_quality_preprocessing_mode": "longer"}
    assert seen["modules"] == []


def test_the_worker_on_custom_videos(environment: Path, videos: Path, tmp_path: Path):
    out = tmp_path / "results.json"
    result = vbench.run(videos, out, "custom", ["imaging_quality"], environment, "cpu")
    assert result["dimensions"]["imaging_quality"] == {"score": 0.625, "normalised": 0.625, "videos": 3, "missing": 0}
    seen = json.loads((tmp_path / "results.json.parts" / "imaging_quality.json").read_text())["per_video"][0]
    assert seen["options"]["mode"] == "custom_input"


def test_the_worker_refuses_what_cannot_run(environment: Path, videos: Path, tmp_path: Path):
    out = tmp_path / "results.json"
    with pytest.raises(VBenchFailed, match=r"device is 'cuda', but torch 2.5.1 of VBench's environment finds no GPU"):
        vbench.run(videos, out, folder=environment)
    python = environment / "bin" / "python"
    with pytest.raises(VBenchFailed, match="color, object_class need detectron2, which is not in") as refused:
        vbench.run(videos, out, dimensions=["scene", "color", "object_class"], folder=environment, device="cpu")
    assert f"{python} -m pip install --no-build-isolation git+" in str(refused.value)
    with pytest.raises(VBenchFailed, match="none of the 5 videos that VBench scores for temporal_style is in"):
        vbench.run(videos, out, dimensions=["scene", "temporal_style"], folder=environment, device="cpu")
    assert list((tmp_path / "results.json.parts").iterdir()) == []
