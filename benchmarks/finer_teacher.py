"""How near plans are to the exact trajectory, fitted to a finer run or not, beside solvers at as many calls.

Run by hand: `python benchmarks/finer_teacher.py`; an hour and a quarter on one core. Per bundled model, at its default
guidance: plans of T / 3, T / 2 and 2 T / 3 steps, fitted to the uncached run and to one of 4 T steps, and the
pipeline's own solver, DPM-Solver++ (2M), UniPC and Adams-2 with as many steps, on held-out prompts. Each row has its
distance to the run of 4 T steps and to the uncached one, and what the zoo's judge finds of the captions. A model that
the result file has is not measured again: `--fresh` does that. Rewrites benchmarks/results/finer_teacher.json, whose
table docs/finer-teacher.md shows (`--table` prints it).
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ertacache.baselines.other_solver import Adams, DPMSolver, UniPC
from ertacache.calibration.calibrate import calibrate
from ertacache.calibration.pipeline_run import run_pipeline
from ertacache.calibration.prompts import Prompts
from ertacache.calibration.teacher import FineRun, fine_grid
from ertacache.evaluation.row_figures import header
from ertacache.files import write_atomic
from ertacache.metrics import PairedMetrics, figures
from ertacache.pipelines.loading import call_arguments, load_pipeline
from ertacache.profile.profile import Profile
from ertacache.runtime.player import Player
from ertacache.runtime.run import Controller
from ertacache.runtime.run_stats import RunStats
from ertacache_zoo import catalogue, check, check_clips

RESULTS = Path(__file__).parent / "results" / "finer_teacher.json"
HELDOUT, CALIBRATION, SEED, FINER = 24, 20, 10_000, 4
SHARES = ("1/3", "1/2", "2/3")
SOLVERS = {"DPM-Solver++ 2M": DPMSolver(), "UniPC": UniPC(), "Adams-2": Adams()}
#: What the schedulers of the bundled models are.
OWN = {
    "FlowMatchEulerDiscreteScheduler": "Euler",
    "UniPCMultistepScheduler": "UniPC",
    "CogVideoXDDIMScheduler": "DDIM",
}


def rows(pipe: Any, call: dict[str, Any], prompts: Prompts, name: str) -> Iterator[dict[str, Any]]:
    """Every run of one model with its figures."""
    T = call["num_inference_steps"]
    fine_call = {**call, "num_inference_steps": FINER * T}
    grid = fine_grid(pipe, prompts.first(1), call, FINER * T)
    fine = run_pipeline(pipe, prompts, FineRun(grid), fine_call)
    uncached = run_pipeline(pipe, prompts, Controller(), call)

    def row(method: str, K: int, images: Tensor) -> dict[str, Any]:
        found = {
            "method": method,
            "K": K,
            "to_fine": distance(images, fine),
            "to_uncached": distance(images, uncached),
            "captions": captions(name, images, prompts.texts),
        }
        print(name, json.dumps(found), flush=True)
        return found

    yield row("fine run", FINER * T, fine)
    yield row("uncached run", T, uncached)
    budgets = [max(2, round(T * int(share[0]) / int(share[2]))) for share in SHARES]
    for method, teacher in (("plan", None), ("plan, finer teacher", FINER * T)):
        for K, profile in zip(budgets, plans(pipe, call, name, budgets, teacher), strict=True):
            yield row(method, K, run_pipeline(pipe, prompts, Player(profile, RunStats()), call))
    own = OWN[type(pipe.scheduler).__name__]
    for solver in (own, *(name for name in SOLVERS if name != own)):
        for K in budgets:
            shorter = {**call, "num_inference_steps": K}
            with nullcontext() if solver == own else SOLVERS[solver].applied(pipe, shorter):
                drawn = run_pipeline(pipe, prompts, Controller(), shorter)
            yield row(solver, K, drawn)


def plans(pipe: Any, call: dict[str, Any], name: str, budgets: list[int], teacher: int | None) -> list[Profile]:
    """Plans of the recommended kind, evenly spaced; the prompts that judge are others."""
    texts = catalogue.calibration_prompts(CALIBRATION, name)
    options: dict[str, Any] = {"effort": "fast", "seed": SEED, "holdout": 0.05, "show_progress": False}
    return calibrate(pipe, texts, compute_steps=budgets, teacher_steps=teacher, call=call, **options)


def distance(images: Tensor, reference: Tensor) -> dict[str, Any] | None:
    """Mean and standard error of the PSNR of the prompts; None for the reference itself."""
    if images is reference:
        return None
    metrics = PairedMetrics()
    metrics.update(images, reference)
    found = figures(metrics.state()["psnr"])
    return {name: None if (value := found[name]) is None else round(value, 3) for name in ("mean", "standard_error")}


def captions(name: str, images: Tensor, texts: tuple[str, ...]) -> dict[str, Any]:
    """Shares of right objects, as the zoo judges its models."""
    judge = check_clips.Judge() if name in catalogue.VIDEO_NAMES else check.Judge()
    return {key: round(value, 4) for key, value in asdict(judge.judge(images, texts)).items()}


def measure(name: str) -> dict[str, Any]:
    """One model."""
    pipe, call = load_pipeline(name, device="cpu"), call_arguments(name, {})
    prompts = Prompts(tuple(catalogue.heldout_prompts(HELDOUT, name)), SEED)
    facts = header(name, prompts, call, call["num_inference_steps"])
    facts |= {"prompts": len(prompts.texts), "calibration_prompts": CALIBRATION, "teacher_steps": FINER * facts["T"]}
    return {"header": facts, "rows": list(rows(pipe, call, prompts, name))}


def table(found: dict[str, Any]) -> str:
    """The results as Markdown: distance to the fine run, and right objects."""
    heads = ("model", "K of T", "uncached run", "plan, finer teacher", "plan", "best solver of K steps")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, model in found.items():
        by = {(row["method"], row["K"]): row for row in model["rows"]}
        T = model["header"]["T"]
        for K in sorted({K for method, K in by if method == "plan"}):
            solvers = {method for method, _ in by if method in (*SOLVERS, *OWN.values())}
            best = max(sorted(solvers), key=lambda solver: by[solver, K]["to_fine"]["mean"])
            cells = [("uncached run", T), ("plan, finer teacher", K), ("plan", K), (best, K)]
            words = [f"{cell(by[key])}{f' ({best})' * (key[0] == best)}" for key in cells]
            lines.append(f"| {name} | {K} of {T} | {' | '.join(words)} |")
    return "\n".join(lines)


def cell(row: dict[str, Any]) -> str:
    """PSNR to the fine run and the share of right objects, the least of the judge's."""
    right = min(value for key, value in row["captions"].items() if key != "objects")
    return f"{row['to_fine']['mean']:.1f} ± {row['to_fine']['standard_error']:.1f} dB, {right:.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--models", nargs="+", default=[*catalogue.IMAGE_NAMES, *catalogue.VIDEO_NAMES], choices=catalogue.NAMES
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--fresh", action="store_true", help="measure models again that the file has")
    parser.add_argument("--table", action="store_true", help="print the table of the file; measures nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for name in () if arguments.table else arguments.models:
        if arguments.fresh or name not in found:
            found[name] = measure(name)
            write_atomic(arguments.out, (json.dumps(found, indent=1) + "\n").encode())
    print(table(found))


if __name__ == "__main__":
    main()
