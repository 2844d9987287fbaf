"""How far the uncached run is itself from the solution that its solver approximates.

Run by hand: `python benchmarks/discretisation.py`; ten minutes on one core. The uncached pipeline with its own number
of steps T, and with T / 2, against 4 T steps from the same noise, on held-out prompts. Rewrites
benchmarks/results/discretisation.json, which README.md and docs/results.md quote.
"""

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ertacache.calibration.pipeline_run import Final, run_pipeline
from ertacache.calibration.prompts import Prompts
from ertacache.evaluation.row_figures import header
from ertacache.files import write_atomic
from ertacache.metrics import PairedMetrics
from ertacache.pipelines.loading import call_arguments, load_pipeline
from ertacache_zoo import catalogue

RESULTS = Path(__file__).parent / "results" / "discretisation.json"
HELDOUT, SEED, FINER = 32, 10_000, 4


def summary(values: list[float]) -> dict[str, float]:
    """Mean, sample standard deviation and standard error of one figure over the prompts."""
    std = statistics.stdev(values)
    figures = {"mean": statistics.fmean(values), "std": std, "standard_error": std / math.sqrt(len(values))}
    return {name: round(value, 4) for name, value in figures.items()}


def drawn(pipe: Any, prompts: Prompts, call: dict[str, Any], steps: int) -> tuple[Tensor, Tensor]:
    """Pictures or frames of the uncached pipeline in `steps` steps, and the grid it ran on."""
    final = Final()
    images = run_pipeline(pipe, prompts, final, {**call, "num_inference_steps": steps})
    return images, final.sigmas


def measure(name: str) -> dict[str, Any]:
    """The rows of one model: T and T / 2 steps against 4 T."""
    pipe, call = load_pipeline(name), call_arguments(name, {})
    prompts = Prompts(tuple(catalogue.heldout_prompts(HELDOUT, name)), SEED)
    T = call["num_inference_steps"]
    fine, grid = drawn(pipe, prompts, call, FINER * T)
    rows: list[dict[str, Any]] = []
    for steps in (T, T // 2):
        images, sigmas = drawn(pipe, prompts, call, steps)
        metrics = PairedMetrics()
        metrics.update(images, fine)
        figures = metrics.compute()
        apart = (sigmas[:, None] - grid[None]).abs().amin(dim=1).max().item()
        rows.append(
            {
                "steps": steps,
                "finer_steps": FINER * T,
                "farthest_from_the_finer_grid": round(apart, 6),
                "psnr": summary(figures["psnr"]["values"]),
                "ssim": summary(figures["ssim"]["values"]),
            }
        )
    return {"header": {**header(name, prompts, call, T), "solver": type(pipe.scheduler).__name__}, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--models", nargs="+", default=[*catalogue.IMAGE_NAMES, *catalogue.VIDEO_NAMES], choices=catalogue.NAMES
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name in arguments.models:
        found[name] = measure(name)
        print(name, json.dumps(found[name]["rows"]), flush=True)
    write_atomic(arguments.out, (json.dumps(found, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
