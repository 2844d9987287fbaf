"""Denoising speed-up at half the steps and the price of a predicted step, as ratios within one run.

Run by hand: `make bench`. Every pair is an uncached and a cached run, in alternating order, so that a drifting
machine moves both; the figures are medians over the pairs. Rewrites benchmarks/results/speed.json.
"""

import argparse
import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ertacache.calibration.calibrate import calibrate
from ertacache.calibration.pipeline_run import run_pipeline
from ertacache.calibration.prompts import Prompts
from ertacache.evaluation.evaluate import Timed
from ertacache.evaluation.row_figures import header
from ertacache.pipelines.loading import call_arguments, load_pipeline
from ertacache.runtime.player import Player
from ertacache.runtime.run import Controller, Run
from ertacache.runtime.run_stats import RunStats
from ertacache_zoo import catalogue

BUDGET = 15


@dataclass
class StepTimer(Timed):
    """Also the duration of every step, from the end of the one before."""

    durations: list[float] = field(default_factory=list)

    def begin(self, run: Run) -> None:
        super().begin(run)
        self.durations.clear()
        self._last = self._start

    def end_step(self, run: Run, x_next: torch.Tensor) -> None:
        super().end_step(run, x_next)
        from time import perf_counter

        now = perf_counter()
        self.durations.append(now - self._last)
        self._last = now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed.json"))
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for name in catalogue.IMAGE_NAMES:
        pipe, call = load_pipeline(name), call_arguments(name, {})
        texts = catalogue.calibration_prompts(8)
        profile = calibrate(pipe, texts, compute_steps=BUDGET, schedule="uniform", basis="fitted", **call)
        prompts = Prompts(tuple(catalogue.heldout_prompts(arguments.batch_size)), 0)
        results[name] = measure(pipe, profile, prompts, call, arguments.pairs)
        print(name, json.dumps(results[name], indent=2), flush=True)
    facts = header("tiny-flux, tiny-flux-base", prompts, call, profile.schedule.T)
    facts["pairs"] = arguments.pairs
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"header": facts, "results": results}, indent=2) + "\n")


def measure(pipe: Any, profile: Any, prompts: Prompts, call: dict[str, Any], pairs: int) -> dict[str, Any]:
    """Paired runs: speed-up of the loop against T/K, and a predicted step against a computed one."""
    ratios: list[float] = []
    shares: list[float] = []
    for pair in range(pairs + 1):
        plain, cached = StepTimer(Controller()), StepTimer(Player(profile, RunStats()))
        for timer in (plain, cached) if pair % 2 else (cached, plain):
            run_pipeline(pipe, prompts, timer, call, decode=False)
        if pair == 0:
            continue  # warm-up
        ratios.append(plain.seconds / cached.seconds)
        predicted = [cached.durations[i] for i in profile.schedule.predicted_steps]
        computed = [cached.durations[i] for i in profile.schedule.computed_steps[1:]]
        shares.append(statistics.median(predicted) / statistics.median(computed))
    T, K = profile.schedule.T, profile.schedule.K
    speedup = statistics.median(ratios)
    return {
        "T": T,
        "K": K,
        "batch_size": len(prompts.texts),
        "speedup_median": round(speedup, 4),
        "speedup_quartiles": [round(q, 4) for q in statistics.quantiles(ratios, n=4)],
        "share_of_ideal": round(speedup / (T / K), 4),
        "predicted_over_computed_step": round(statistics.median(shares), 4),
    }


if __name__ == "__main__":
    main()
