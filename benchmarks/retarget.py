"""What a profile loses in another number of steps than it was calibrated for.

Run by hand: `python benchmarks/retarget.py`; a few minutes. Rewrites benchmarks/results/retarget.json, whose figures
stand in src/ertacache/runtime/retarget_loss.py (STEPS) and in docs/solvers.md; a test compares them.
"""

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ertacache.calibration.calibrate import calibrate
from ertacache.calibration.pipeline_run import Final, run_pipeline
from ertacache.calibration.prompts import Prompts
from ertacache.core.predictor import Predictor
from ertacache.evaluation.row_figures import header
from ertacache.metrics import psnr
from ertacache.pipelines.loading import call_arguments, load_pipeline
from ertacache.profile.profile import Profile
from ertacache.runtime.player import Player
from ertacache.runtime.retarget import retargeted
from ertacache.runtime.retarget_loss import CALIBRATED_AT
from ertacache.runtime.run import Controller
from ertacache.runtime.run_stats import RunStats
from ertacache_zoo import catalogue

MODEL = "tiny-flux"
STEPS = (20, 24, 40, 50)
HELDOUT, CALIBRATION, SEED = 8, 16, 10_000


def calibrated(pipe: Any, call: dict[str, Any], K: int) -> Profile:
    """The fitted basis on a uniform schedule of K steps."""
    prompts = catalogue.calibration_prompts(CALIBRATION)
    return calibrate(
        pipe, prompts, basis="fitted", schedule="uniform", compute_steps=K, seed=SEED, show_progress=False, **call
    )


def reused(profile: Profile) -> Profile:
    """Residual reuse on the same schedule and grid."""
    predictor = Predictor.residual_reuse(profile.schedule, profile.predictor.targets)
    return replace(profile, predictor=predictor, rectifier=None)


def images(pipe: Any, call: dict[str, Any], prompts: Prompts, profile: Profile | None) -> Tensor:
    """[B, 3, H, W] of one run."""
    return run_pipeline(pipe, prompts, Player(profile, RunStats()) if profile is not None else Controller(), call)


def measure(pipe: Any, original: Profile, call: dict[str, Any], prompts: Prompts) -> dict[str, Any]:
    """Mean PSNR of the three profiles at one number of steps."""
    final = Final()
    reference = run_pipeline(pipe, prompts, final, call)
    moved = retargeted(original, final.sigmas)
    profiles = {
        "retargeted": moved,
        "calibrated": calibrated(pipe, call, moved.schedule.K),
        "reuse": reused(moved),
    }
    row: dict[str, Any] = {"steps": moved.schedule.T, "K": moved.schedule.K, "schedule": str(moved.schedule)}
    for name, profile in profiles.items():
        values = psnr(images(pipe, call, prompts, profile), reference).tolist()
        row[name] = {"mean": round(statistics.fmean(values), 3), "std": round(statistics.stdev(values), 3)}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/retarget.json"))
    arguments = parser.parse_args()
    pipe = load_pipeline(MODEL)
    call = call_arguments(MODEL, {"num_inference_steps": CALIBRATED_AT})
    prompts = Prompts(tuple(catalogue.heldout_prompts(HELDOUT)), SEED)
    original = calibrated(pipe, call, CALIBRATED_AT // 2)
    rows: list[dict[str, Any]] = []
    for steps in STEPS:
        rows.append(measure(pipe, original, {**call, "num_inference_steps": steps}, prompts))
        print(json.dumps(rows[-1]), flush=True)
    facts = header(MODEL, prompts, call, CALIBRATED_AT)
    facts |= {"K": original.schedule.K, "calibration_prompts": CALIBRATION}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"header": facts, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
