"""What runs inside the environment of VBench, started as a script by `evaluation.vbench`; imports nothing of ertacache.

worker.py VIDEOS MODE DEVICE check DIMENSION...
worker.py VIDEOS MODE DEVICE score DIMENSION RESULT.json
"""

import importlib
import importlib.util
import json
import os
import sys
import tempfile
from typing import Any

_MODES = {"standard": "vbench_standard", "custom": "custom_input"}
_DETECTORS = ("object_class", "multiple_objects", "color", "spatial_relationship")


def main(arguments: list[str]) -> None:
    """Check that the dimensions can run, or score one and write its result."""
    videos, mode, device, job, *rest = arguments
    if job == "check":
        check(videos, mode, device, rest)
    else:
        score(videos, mode, device, *rest)


def check(videos: str, mode: str, device: str, dimensions: list[str]) -> None:
    """Exit with a message where one of the dimensions cannot be scored."""
    torch: Any = importlib.import_module("torch")
    if device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit(f"device is {device!r}, but torch {torch.__version__} of VBench's environment finds no GPU")
    detectors = [name for name in dimensions if name in _DETECTORS]
    if detectors and importlib.util.find_spec("detectron2") is None:
        sys.exit(
            f"{', '.join(detectors)} need detectron2, which is not in VBench's environment; install it with\n"
            f"{sys.executable} -m pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2"
        )
    for name in dimensions:
        there, missing = _counts(videos, mode, name)
        if not there:
            sys.exit(f"none of the {missing} videos that VBench scores for {name} is in {videos}")


def score(videos: str, mode: str, device: str, dimension: str, out: str) -> None:
    """Score one dimension and write its score, its videos' values, and how many videos there are and are missing."""
    torch: Any = importlib.import_module("torch")
    vbench: Any = importlib.import_module("vbench")
    with tempfile.TemporaryDirectory() as folder:
        # A torch.device, as VBench's own launcher passes: motion_smoothness shrinks large frames for the text "cuda".
        bench = vbench.VBench(torch.device(device), _prompt_list(), folder)
        bench.evaluate(
            videos_path=videos,
            name=dimension,
            dimension_list=[dimension],
            mode=_MODES[mode],
            imaging_quality_preprocessing_mode="longer",
        )
        with open(os.path.join(folder, f"{dimension}_eval_results.json"), encoding="utf-8") as file:
            total, per_video = json.load(file)[dimension]
    there, missing = _counts(videos, mode, dimension)
    result = {"score": total, "videos": there, "missing": missing, "per_video": per_video}
    with open(out, "w", encoding="utf-8") as file:
        json.dump(result, file)


def _counts(videos: str, mode: str, dimension: str) -> tuple[int, int]:
    """How many videos of a dimension there are, and how many are missing, which VBench itself only warns about."""
    names = set(os.listdir(videos))
    if mode == "custom":
        return len(names), 0
    with open(_prompt_list(), encoding="utf-8") as file:
        prompts = [entry["prompt_en"] for entry in json.load(file) if dimension in entry["dimension"]]
    wanted = [f"{prompt}-{index}.mp4" for prompt in prompts for index in range(5)]
    there = sum(name in names for name in wanted)
    return there, len(wanted) - there


def _prompt_list() -> str:
    """The file of all prompts that comes with VBench."""
    vbench: Any = importlib.import_module("vbench")
    return os.path.join(os.path.dirname(vbench.__file__), "VBench_full_info.json")


if __name__ == "__main__":
    main(sys.argv[1:])
