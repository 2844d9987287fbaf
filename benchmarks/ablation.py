"""The ablation of the README: every reuse site and basis at several K, in every regime of the bundled models.

Run by hand: `make ablation` for pictures (about an hour on one core, half of that on two; rewrites
benchmarks/results/ablation), `make ablation-video` for clips (somewhat longer; benchmarks/results/ablation-video).
Every (regime, K) is a job of its own; what is finished is not done again, so that an interrupted run continues.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ertacache.cli.ablation import group_name, table
from ertacache.evaluation.ablation_run import AblationRun
from ertacache.evaluation.report.ablation import write_report
from ertacache.evaluation.row_figures import write_rows
from ertacache.pipelines.loading import call_arguments, load_pipeline
from ertacache_zoo import catalogue


@dataclass(frozen=True)
class Ablations:
    """One report.

    Attributes:
        regimes: bundled model, what its call changes, and the numbers of steps to compute.
        prompts: held out, that every row is measured on.
        calibration: prompts that every profile is calibrated on.
        samples: prompts whose pictures or clips every part keeps.
    """

    folder: str
    regimes: tuple[tuple[str, dict[str, Any], tuple[int, ...]], ...]
    prompts: int
    calibration: int
    samples: int

    @property
    def title(self) -> str:
        return " and ".join(dict.fromkeys(name for name, _, _ in self.regimes))

    @property
    def jobs(self) -> list[tuple[int, int]]:
        """(regime, budget) of every part."""
        return [(number, budget) for number, (_, _, budgets) in enumerate(self.regimes) for budget in budgets]


PICTURES = Ablations(
    "ablation",
    (
        ("tiny-flux", {}, (15, 10, 6)),
        ("tiny-flux-base", {"true_cfg_scale": 4.0}, (15, 10, 6)),
        ("tiny-flux-base", {"true_cfg_scale": 7.0}, (15, 10, 6)),
    ),
    prompts=32,
    calibration=24,
    samples=3,
)
#: The paper's shares for Wan2.1 and CogVideoX, both of 50 steps, and for Open-Sora 1.2, of 30.
VIDEOS = Ablations(
    "ablation-video",
    (("tiny-wan", {}, (23, 12)), ("tiny-cogvideox", {}, (31, 17)), ("tiny-open-sora", {}, (19, 12))),
    prompts=16,
    calibration=12,
    samples=1,
)
ALL = {"pictures": PICTURES, "videos": VIDEOS}


def part(out: Path, regime: int, budget: int) -> Path:
    return out / "parts" / f"{regime}-{budget}"


def run_job(ablations: Ablations, out: Path, regime: int, budget: int) -> None:
    """One regime at one budget, into a folder of its own; `done` in it marks it finished."""
    name, changes, _ = ablations.regimes[regime]
    call = call_arguments(name, changes)
    held = catalogue.heldout_prompts(ablations.prompts, name)
    run = AblationRun(part(out, regime, budget), held, model=ablations.title)
    texts = catalogue.calibration_prompts(ablations.calibration, name)
    group = group_name(name, call)
    rows = run.add(load_pipeline(name), texts, [budget], call, group=group, samples=ablations.samples)
    print(table(rows), flush=True)
    (part(out, regime, budget) / "done").touch()


def merge(ablations: Ablations, out: Path) -> Path:
    """All finished parts as one result file and one report."""
    lines: list[dict[str, Any]] = []
    for group, budget in ablations.jobs:
        folder = part(out, group, budget)
        head, *rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
        known = {(row["group"], row["id"]) for row in lines[1:]}
        lines += [head] if not lines else []
        # One prompt's pictures are enough for a report that is committed; the parts keep three.
        new = [row for row in rows if (row["group"], row["id"]) not in known]
        lines += [{**row, "samples": row["samples"][:1]} for row in new]
        shutil.copytree(folder / "samples", out / "samples", dirs_exist_ok=True)
    write_rows(out / "results.jsonl", lines)
    return write_report(out / "results.jsonl", out / "report.html")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", choices=ALL, default="pictures")
    parser.add_argument("--out", type=Path, help="benchmarks/results/ablation or ablation-video")
    parser.add_argument("--job", type=int, help="run this one only (used by the run itself)")
    parser.add_argument("--groups", type=int, nargs="*", help="regimes to run, by number; all of them")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="jobs side by side, one core each")
    arguments = parser.parse_args()
    ablations = ALL[arguments.models]
    out, jobs = arguments.out or Path("benchmarks/results") / ablations.folder, ablations.jobs
    if arguments.job is not None:
        run_job(ablations, out, *jobs[arguments.job])
        return
    todo = [n for n, (regime, _) in enumerate(jobs) if arguments.groups is None or regime in arguments.groups]
    todo = [n for n in todo if not (part(out, *jobs[n]) / "done").exists()]
    command = [sys.executable, __file__, "--models", arguments.models, "--out", str(out), "--job"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with ThreadPoolExecutor(arguments.workers) as pool:
        list(pool.map(lambda n: subprocess.run([*command, str(n)], check=True, env=environment), todo))
    if all((part(out, *job) / "done").exists() for job in jobs):
        print(merge(ablations, out))


if __name__ == "__main__":
    main()
