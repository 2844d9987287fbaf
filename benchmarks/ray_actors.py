"""What a second Ray actor brings on two cores: times of a calibration, stage by stage, and of a dataset.

Run by hand, on an idle machine: `python benchmarks/ray_actors.py`. Each actor has one CPU and one thread; a first round
that is not counted starts the actors and loads the pipelines. `--quick` is a try on few prompts. Rewrites
benchmarks/results/ray_actors.json.
"""

import argparse
import json
import os
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import ray
import torch

import ertacache.ray
from ertacache.calibration.calibrate import calibrate
from ertacache.evaluation.row_figures import made_with
from ertacache.pipelines.loading import call_arguments, load_pipeline
from ertacache.profile.profile import Profile
from ertacache_zoo import catalogue

RESULTS = Path(__file__).parent / "results" / "ray_actors.json"
MODEL = "tiny-flux"


class Stages:
    """A map that takes the time of every call of another one."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.seconds: dict[str, float] = defaultdict(float)

    def __call__(self, pipe: Any, make: Any, units: Any) -> Any:
        start = time.perf_counter()
        yield from self._inner(pipe, make, units)
        self.seconds[units[0].leave.func.__name__] += time.perf_counter() - start


def calibrated(pipe: Any, prompts: list[str], steps: int, actors: int | None) -> tuple[Profile, dict[str, Any]]:
    """A profile, and the seconds of all of it and of each kind of unit; None for this process alone."""
    options = {"compute_steps": steps // 2, "batch_size": 1, "show_progress": False}
    call = call_arguments(MODEL, {"num_inference_steps": steps})
    spread = None
    if actors is not None:
        inner = ertacache.ray.map(MODEL, num_gpus=0, actors=actors)
        list(inner(pipe, _itself, [_name] * actors))
        spread = Stages(inner)
    start = time.perf_counter()
    profile = calibrate(pipe, prompts, **options, map=spread, call=call)
    seconds = {"all": time.perf_counter() - start, **({} if spread is None else spread.seconds)}
    if actors is not None:
        inner.close()
    return profile, {name: round(value, 2) for name, value in seconds.items()}


def _itself(pipe: Any) -> Any:
    return pipe


def _name(pipe: Any) -> str:
    return type(pipe).__name__


def drawn(profile: Profile, prompts: list[str], steps: int, actors: int) -> dict[str, float]:
    """Seconds of a dataset, with the start of its actors and from its first row on, which comes with its block."""
    rows = ray.data.from_items([{"prompt": text, "seed": n} for n, text in enumerate(prompts)], override_num_blocks=8)
    options = {"seed_column": "seed", "num_gpus": 0, "concurrency": actors}
    call = call_arguments(MODEL, {"num_inference_steps": steps})
    start, times = time.perf_counter(), list[float]()
    for _ in ertacache.ray.generate(rows, MODEL, profile, call=call, **options).iter_batches(batch_size=1):
        times.append(time.perf_counter())
    return {"all": round(times[-1] - start, 2), "after the first row": round(times[-1] - times[0], 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few prompts and steps, and no file")
    quick = parser.parse_args().quick
    prompts, held, steps = (6, 4, 8) if quick else (24, 48, 30)
    torch.set_num_threads(1)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        ray.init(num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False, _temp_dir=folder)
        try:
            found = measured(catalogue.calibration_prompts(prompts), catalogue.heldout_prompts(held), steps)
        finally:
            ray.shutdown()
    versions = {**made_with(), "model": MODEL, "steps": steps, "prompts": prompts}
    text = json.dumps({**versions, "rows": held, **found}, indent=1)
    print(text)
    if not quick:
        RESULTS.write_text(text + "\n")


def measured(prompts: list[str], held: list[str], steps: int) -> dict[str, Any]:
    """Calibration and dataset by one process, one actor and two, and how far the coefficients are apart."""
    pipe = load_pipeline(MODEL)
    profile, alone = calibrated(pipe, prompts, steps, None)
    calibrations: dict[str, Any] = {"one process": alone}
    datasets: dict[str, Any] = {}
    apart = 0.0
    for actors in (1, 2):
        spread, calibrations[f"{actors} actors"] = calibrated(pipe, prompts, steps, actors)
        apart = max(apart, float((spread.predictor.a - profile.predictor.a).abs().max()))
        datasets[f"{actors} actors"] = drawn(profile, held, steps, actors)
    return {"calibration_seconds": calibrations, "dataset_seconds": datasets, "coefficients_apart": apart}


if __name__ == "__main__":
    main()
