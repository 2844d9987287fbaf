"""What `enable(pipe, speedup=...)` loses without calibration, beside what one could do instead at the same calls.

Run by hand: `python benchmarks/uncalibrated.py`; about a quarter of an hour on one thread. The limit of the damping is
chosen on calibration prompts of the two image models; everything is then measured on held-out prompts of all four,
which had no part in the choice. Rewrites benchmarks/results/uncalibrated.json, whose figures stand in
docs/uncalibrated.md and in src/ertacache/runtime/uncalibrated.py (LIMIT).
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ertacache.calibration.pipeline_run import run_pipeline
from ertacache.calibration.prompts import Prompts
from ertacache.evaluation.row_figures import made_with
from ertacache.metrics.paired import PairedMetrics
from ertacache.pipelines.loading import call_arguments, load_pipeline
from ertacache.runtime.run import Controller, Run
from ertacache.runtime.uncalibrated import LIMIT, DampedLine, schedule_for
from ertacache_zoo import catalogue

SPEEDUPS, LIMITS = (2.0, 3.0), (0.8, 1.0, 1.2, 1.4, 1.6)
#: Name of the guidance weight in the call, the model's own weight and another, and held-out prompts.
MODELS: dict[str, tuple[str, tuple[float, float], int]] = {
    "tiny-flux": ("guidance_scale", (10.0, 20.0), 16),
    "tiny-flux-base": ("true_cfg_scale", (4.0, 7.0), 16),
    "tiny-wan": ("guidance_scale", (5.0, 10.0), 4),
    "tiny-cogvideox": ("guidance_scale", (6.0, 12.0), 4),
}
CALIBRATION, CHOICE_SEED, SEED = 12, 20_000, 10_000


@dataclass
class Uncalibrated(Controller):
    """What the run-time does for `speedup`, at site guided, with a limit of one's own; or residual reuse."""

    speedup: float
    limit: float = LIMIT
    residual: bool = False
    placeholders: bool = True
    _computed: list[tuple[int, Tensor, Tensor]] = field(default_factory=list[tuple[int, Tensor, Tensor]])

    def begin(self, run: Run) -> None:
        self._line = DampedLine(run.sigmas, schedule_for(run.T, self.speedup), self.limit)
        self._computed.clear()

    def call(self, run: Run, context: str, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        if self._line.schedule.computed[run.step]:
            self._last = compute()
            return self._last
        return torch.zeros_like(self._last)

    def solve(self, run: Run, output: Tensor, x: Tensor) -> Tensor:
        if self._line.schedule.computed[run.step]:
            self._computed = [(run.step, output.clone(), x.clone()), *self._computed[:1]]
            return output
        steps, outputs, inputs = zip(*self._computed, strict=True)
        return outputs[0] + (x - inputs[0]) if self.residual else self._line(run.step, steps, outputs)


def entrants(speedup: float, limit: float) -> dict[str, Controller]:
    """By name; fewer steps run without one."""
    return {
        "reuse": Uncalibrated(speedup, limit=0.0),
        "residual reuse": Uncalibrated(speedup, residual=True),
        "order 1": Uncalibrated(speedup, limit=math.inf),
        "damped line": Uncalibrated(speedup, limit),
    }


def quality(images: Tensor, reference: Tensor) -> dict[str, Any]:
    """PSNR and SSIM against the uncached run."""
    metrics = PairedMetrics()
    metrics.update(images.nan_to_num(0.0), reference)
    return {
        name: {
            "mean": round(statistics.fmean(values), 3),
            "standard_error": round(statistics.stdev(values) / math.sqrt(len(values)), 3),
            "values": [round(value, 3) for value in values],
        }
        for name, values in metrics.state().items()
    }


def settings(name: str) -> Iterator[tuple[float, dict[str, Any]]]:
    """Each guidance weight of a model with its call."""
    argument, weights, _ = MODELS[name]
    for weight in weights:
        yield weight, call_arguments(name, {argument: weight})


def choice(name: str) -> Iterator[dict[str, Any]]:
    """Mean PSNR of every limit on calibration prompts."""
    pipe, prompts = load_pipeline(name), Prompts(tuple(catalogue.calibration_prompts(CALIBRATION, name)), CHOICE_SEED)
    for weight, call in settings(name):
        reference = run_pipeline(pipe, prompts, Controller(), call)
        for speedup in SPEEDUPS:
            runs = {str(limit): run_pipeline(pipe, prompts, Uncalibrated(speedup, limit), call) for limit in LIMITS}
            found = {limit: quality(images, reference)["psnr"]["mean"] for limit, images in runs.items()}
            yield {"model": name, "guidance": weight, "speedup": speedup, "psnr": found}


def judged(name: str, limit: float) -> Iterator[dict[str, Any]]:
    """Every entrant on held-out prompts."""
    pipe, prompts = load_pipeline(name), Prompts(tuple(catalogue.heldout_prompts(MODELS[name][2], name)), SEED)
    for weight, call in settings(name):
        reference, T = run_pipeline(pipe, prompts, Controller(), call), int(call["num_inference_steps"])
        for speedup in SPEEDUPS:
            K = schedule_for(T, speedup).K
            row: dict[str, Any] = {"model": name, "guidance": weight, "T": T, "K": K, "prompts": len(prompts.texts)}
            fewer = run_pipeline(pipe, prompts, Controller(), {**call, "num_inference_steps": K})
            row["fewer steps"] = quality(fewer, reference)
            for entrant, controller in entrants(speedup, limit).items():
                row[entrant] = quality(run_pipeline(pipe, prompts, controller, call), reference)
            yield row


def shown(rows: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, each printed when it is there."""
    done: list[dict[str, Any]] = []
    for row in rows:
        print(json.dumps(row), flush=True)
        done.append(row)
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/uncalibrated.json"))
    arguments = parser.parse_args()
    tried = [row for name in catalogue.IMAGE_NAMES for row in shown(choice(name))]
    means = {limit: round(statistics.fmean(row["psnr"][str(limit)] for row in tried), 3) for limit in LIMITS}
    limit = max(LIMITS, key=lambda value: means[value])
    rows = [row for name in MODELS for row in shown(judged(name, limit))]
    facts = {**made_with(), "seed": SEED, "choice_seed": CHOICE_SEED, "calibration_prompts": CALIBRATION}
    result = {"header": facts | {"limit": limit}, "choice": {"mean": means, "rows": tried}, "rows": rows}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
