"""What a profile loses at another size than it was calibrated for, where the time grid follows the size.

Run by hand: `python benchmarks/sizes.py`; a few minutes. Rewrites benchmarks/results/sizes.json, whose figures stand in
src/ertacache/runtime/retarget_loss.py (SIZES) and, by `python benchmarks/readme_table.py`, in
docs/sizes-steps-guidance.md; tests compare them. How far the grids of FLUX.1-dev are apart needs no weights.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from retarget import CALIBRATION, MODEL, SEED, calibrated, images, reused
from torch import Tensor

from ertacache.calibration.pipeline_run import Final, run_pipeline
from ertacache.calibration.prompts import Prompts
from ertacache.evaluation.row_figures import header
from ertacache.metrics import psnr
from ertacache.pipelines.loading import call_arguments, load_pipeline
from ertacache.pipelines.solvers import read_grid
from ertacache.profile.profile import Profile
from ertacache.runtime.grids import apart, distance, same_grid
from ertacache.runtime.retarget import retargeted
from ertacache.runtime.retarget_loss import CALIBRATED_AT
from ertacache_zoo import catalogue

SIZES, BUDGETS, HELDOUT = ((64, 48), (48, 48), (96, 64)), (CALIBRATED_AT // 2, CALIBRATED_AT // 3), 32
#: Of FLUX.1-dev: its call's default size and step counts in use, sizes beside it, pixels per token and its scheduler.
FLUX_SIZE, FLUX_STEPS, PATCH = (1024, 1024), (28, 50), 16
FLUX_SIZES = ((896, 1152), (832, 1216), (1024, 960), (720, 1280), (1024, 768), (512, 512))
PUBLISHED: dict[str, Any] = {
    "shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}  # fmt: skip


def flux_grid(height: int, width: int, steps: int) -> Tensor:
    """[T+1] the grid of FLUX.1-dev at a size in pixels, as its pipeline sets it."""
    scheduler = FlowMatchEulerDiscreteScheduler(**PUBLISHED)
    ends = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    mu = calculate_shift((height // PATCH) * (width // PATCH), *(PUBLISHED[name] for name in ends))
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps).tolist(), mu=mu)
    return read_grid(scheduler)


def flux_rows() -> list[dict[str, Any]]:
    """How far the grids are from that of the default size."""
    rows: list[dict[str, Any]] = []
    for height, width in FLUX_SIZES:
        row: dict[str, Any] = {"height": height, "width": width}
        for steps in FLUX_STEPS:
            base, grid = flux_grid(*FLUX_SIZE, steps), flux_grid(height, width, steps)
            row[f"{steps} steps"] = {
                "largest": round(float((grid - base).abs().max()), 4),
                "of_limit": round(float(apart(base, grid).max()), 3),
                "same": same_grid(base, grid),
            }
        rows.append(row)
    return rows


def measure(pipe: Any, originals: list[Profile], call: dict[str, Any], prompts: Prompts) -> list[dict[str, Any]]:
    """PSNR against the uncached run at one size, at each budget."""
    final = Final()
    reference = run_pipeline(pipe, prompts, final, call)
    rows: list[dict[str, Any]] = []
    for original in originals:
        moved, K = retargeted(original, final.sigmas), original.schedule.K
        made = {
            "retargeted": images(pipe, call, prompts, moved),
            "calibrated": images(pipe, call, prompts, calibrated(pipe, call, K)),
            "reuse": images(pipe, call, prompts, reused(moved)),
            "fewer": images(pipe, {**call, "num_inference_steps": K}, prompts, None),
        }
        row = {"height": call["height"], "width": call["width"], "K": K}
        row["distance"] = round(distance(original.base_sigmas, final.sigmas), 4)
        rows.append(row | {name: _figures(images, reference) for name, images in made.items()})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def _figures(images: Tensor, reference: Tensor) -> dict[str, float]:
    values = psnr(images, reference).tolist()
    spread = statistics.stdev(values) / len(values) ** 0.5
    return {"mean": round(statistics.fmean(values), 3), "standard_error": round(spread, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sizes.json"))
    arguments = parser.parse_args()
    pipe = load_pipeline(MODEL)
    call = call_arguments(MODEL, {"num_inference_steps": CALIBRATED_AT})
    prompts = Prompts(tuple(catalogue.heldout_prompts(HELDOUT)), SEED)
    originals = [calibrated(pipe, call, K) for K in BUDGETS]
    rows: list[dict[str, Any]] = []
    for height, width in SIZES:
        rows += measure(pipe, originals, {**call, "height": height, "width": width}, prompts)
    facts = header(MODEL, prompts, call, CALIBRATED_AT) | {"calibration_prompts": CALIBRATION}
    results = {"header": facts, "flux": flux_rows(), "rows": rows}
    arguments.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
