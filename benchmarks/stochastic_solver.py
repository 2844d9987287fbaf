"""What a solver that draws noise in every step leaves of reuse.

Run by hand: `python benchmarks/stochastic_solver.py`; a minute. Rewrites benchmarks/results/stochastic_solver.json,
from which `python benchmarks/supported_page.py` takes the figures of docs/supported-pipelines.md.
"""

import json
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ertacache.calibration.calibrate import calibrate
from ertacache.calibration.pipeline_run import run_pipeline
from ertacache.calibration.prompts import Prompts
from ertacache.evaluation.row_figures import header
from ertacache.metrics import psnr
from ertacache.pipelines.loading import call_arguments, load_pipeline
from ertacache.profile.profile import Profile
from ertacache.runtime.player import Player
from ertacache.runtime.run import Controller
from ertacache.runtime.run_stats import RunStats
from ertacache_zoo import catalogue

RESULTS = Path(__file__).parent / "results" / "stochastic_solver.json"
MODEL, HELDOUT, SEED = "tiny-flux", 8, 10_000


def images(pipe: Any, call: dict[str, Any], prompts: Prompts, profile: Profile | None) -> Tensor:
    """[N, 3, H, W], each prompt by itself: FluxPipeline leaves the solver's noise to torch's own generator."""
    made: list[Tensor] = []
    for prompt in prompts.batches(1):
        torch.manual_seed(prompt.seed)
        made.append(run_pipeline(pipe, prompt, Player(profile, RunStats()) if profile else Controller(), call))
    return torch.cat(made)


def measure(stochastic: bool) -> dict[str, Any]:
    """PSNR of residual reuse on every second step against the plain run with the same noise."""
    pipe, call = load_pipeline(MODEL), call_arguments(MODEL, {})
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, stochastic_sampling=stochastic)
    prompts = Prompts(tuple(catalogue.heldout_prompts(HELDOUT)), SEED)
    K = call["num_inference_steps"] // 2
    profile = calibrate(
        pipe, catalogue.calibration_prompts(2), schedule="uniform", compute_steps=K, basis="residual", site="output",
        show_progress=False, **call,
    )  # fmt: skip
    plain = images(pipe, call, prompts, None)
    if not torch.equal(plain, images(pipe, call, prompts, None)):
        raise SystemExit("the plain run does not repeat itself: its noise is not the same")
    values = psnr(images(pipe, call, prompts, profile), plain).tolist()
    figures = {"mean": round(statistics.fmean(values), 3), "std": round(statistics.stdev(values), 3)}
    facts = header(MODEL, prompts, call, call["num_inference_steps"])
    return {**facts, "stochastic_sampling": stochastic, "K": K, "psnr": figures}


def main() -> None:
    rows = {"deterministic": measure(False), "stochastic": measure(True)}
    RESULTS.write_text(json.dumps(rows, indent=2) + "\n")
    print({name: row["psnr"] for name, row in rows.items()})


if __name__ == "__main__":
    main()
