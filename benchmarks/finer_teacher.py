"""How near plans are to the exact trajectory, fitted to a finer run or not, beside solvers at as many calls.

Run by hand: `python benchmarks/finer_teacher.py`; about an hour on one core. Per bundled model, at its default
guidance: plans of T / 3, T / 2 and 2 T / 3 steps, fitted to the uncached run and to one of 4 T steps, and four solvers
with as many steps, on held-out prompts; each row has its distance to the run of 4 T steps and to the uncached one, and
what the zoo's judge finds of the captions. A model that the result file has is not measured again: `--fresh` does that.
Rewrites benchmarks/results/finer_teacher.json, whose table docs/finer-teacher.md shows (`--table` prints it).
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ertacache.calibration.calibrate import calibrate
from ertacache.calibration.pipeline_run import run_pipeline
from ertacache.calibration.prompts import Prompts
from ertacache.calibration.teacher import FineRun, fine_grid
from ertacache.evaluation.row_figures import header
from ertacache.files import write_atomic
from ertacache.metrics import PairedMetrics, figures
from ertacache.pipelines.affine_step import aimed_output
from ertacache.pipelines.loading import call_arguments, load_pipeline
from ertacache.pipelines.solvers import solver_of
from ertacache.profile.profile import Profile
from ertacache.runtime.player import Player
from ertacache.runtime.run import Controller, Run
from ertacache.runtime.run_stats import RunStats
from ertacache_zoo import catalogue, check, check_clips

RESULTS = Path(__file__).parent / "results" / "finer_teacher.json"
HELDOUT, CALIBRATION, SEED, FINER = 24, 20, 10_000, 4
SHARES = ("1/3", "1/2", "2/3")
SOLVERS = ("Euler", "DPM-Solver++ 2M", "UniPC", "Adams-2")

#: (x, what the solver receives, i) -> x at the next node.
Rule = Callable[[Tensor, Tensor, int], Tensor]


class OtherSolver(Controller):
    """Makes the pipeline's own solver land where another one would, on the pipeline's own grid."""

    replays = True

    def __init__(self, name: str) -> None:
        self._name = name

    def begin(self, run: Run) -> None:
        self._rule = rule_of(self._name, run)

    def solve(self, run: Run, output: Tensor, x: Tensor) -> Tensor:
        landed = aimed_output(run.scheduler, run.step, run.sigmas, x, self._rule(x, output, run.step))
        return output if landed is None else landed.to(output.dtype)


def rule_of(name: str, run: Run) -> Rule:
    """A solver's step on a flow's σ, or on DDIM's angles φ with σ = tan φ; in both v is the latent's derivative."""
    grid, row = run.sigmas.double(), solver_of(run.scheduler)
    angles = row is not None and row.angles
    before: list[Tensor] = []

    def euler(x: Tensor, v: Tensor, i: int) -> Tensor:
        h = float(grid[i + 1] - grid[i])
        if angles:  # DDIM itself: exact where the two ends of the trajectory are held
            angle = torch.tensor(h, dtype=torch.float64)
            return float(angle.cos()) * x + float(angle.sin()) * v
        return x + h * v

    def adams(x: Tensor, v: Tensor, i: int) -> Tensor:
        h, used = float(grid[i + 1] - grid[i]), v
        if before:
            used = v + h / float(grid[i] - grid[i - 1]) / 2 * (v - before[0])
        before[:] = [v]
        return x + h * used

    if name in ("Euler", "Adams-2"):
        return euler if name == "Euler" else adams
    return diffusers_rule(name, run, grid, angles=angles)


def diffusers_rule(name: str, run: Run, grid: Tensor, *, angles: bool) -> Rule:
    """One of diffusers' solvers on a given grid."""
    import diffusers

    kind = {"prediction_type": run.scheduler.config.prediction_type} if angles else {
        "prediction_type": "flow_prediction", "use_flow_sigmas": True,
    }  # fmt: skip
    classes = {"DPM-Solver++ 2M": "DPMSolverMultistepScheduler", "UniPC": "UniPCMultistepScheduler"}
    solver = getattr(diffusers, classes[name])(num_train_timesteps=run.scheduler.config.num_train_timesteps, **kind)
    steps = len(grid) - 1
    solver.set_timesteps(steps)
    # They take logarithms, and there is none where nothing is left of the signal.
    solver.sigmas = (grid.tan().clamp(0, 4096) if angles else grid.clamp_max(1 - 1e-6)).float()
    solver.timesteps = torch.arange(steps, 0, -1)
    solver.set_begin_index(0)
    return lambda x, v, i: solver.step(v, solver.timesteps[i], x, return_dict=False)[0]


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
    for solver in SOLVERS:
        for K in budgets:
            drawn = run_pipeline(pipe, prompts, OtherSolver(solver), {**call, "num_inference_steps": K})
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
            best = max(SOLVERS, key=lambda solver: by[solver, K]["to_fine"]["mean"])
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
    parser.add_argument("--models", nargs="+", default=list(catalogue.NAMES), choices=catalogue.NAMES)
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
