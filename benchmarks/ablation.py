"""The ablation of the README: every reuse site and basis at K = 15, 10 and 6 of 30, in three regimes.

Run by hand: `make ablation`. About an hour on one core, half of that on two; rewrites benchmarks/results/ablation.
Every (regime, K) is a job of its own; what is finished is not done again, so that an interrupted run continues.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ertacache.ablation_run import AblationRun
from ertacache.commands import group_name, table
from ertacache.evaluate import write_rows
from ertacache.loading import call_arguments, load_pipeline
from ertacache.report.ablation import write_report
from ertacache.zoo import catalogue

BUDGETS = (15, 10, 6)
GROUPS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("tiny-flux", {}),
    ("tiny-flux-base", {"true_cfg_scale": 4.0}),
    ("tiny-flux-base", {"true_cfg_scale": 7.0}),
)
JOBS = [(group, budget) for group in range(len(GROUPS)) for budget in BUDGETS]


def part(out: Path, group: int, budget: int) -> Path:
    return out / "parts" / f"{group}-{budget}"


def run_job(out: Path, group: int, budget: int) -> None:
    """One regime at one budget, into a folder of its own; `done` in it marks it finished."""
    name, changes = GROUPS[group]
    call = call_arguments(name, changes)
    comparison = AblationRun(
        part(out, group, budget), catalogue.heldout_prompts(32), model="tiny-flux and tiny-flux-base"
    )
    prompts = catalogue.calibration_prompts(24)
    rows = comparison.add(load_pipeline(name), prompts, [budget], call, group=group_name(name, call), samples=3)
    print(table(rows), flush=True)
    (part(out, group, budget) / "done").touch()


def merge(out: Path) -> Path:
    """All finished parts as one result file and one report."""
    lines: list[dict[str, Any]] = []
    for group, budget in JOBS:
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
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/ablation"))
    parser.add_argument("--job", type=int, help="run this one only (used by the run itself)")
    parser.add_argument("--groups", type=int, nargs="*", default=list(range(len(GROUPS))), help="regimes to run")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="jobs side by side, one core each")
    arguments = parser.parse_args()
    if arguments.job is not None:
        run_job(arguments.out, *JOBS[arguments.job])
        return
    todo = [n for n, (group, budget) in enumerate(JOBS) if group in arguments.groups]
    todo = [n for n in todo if not (part(arguments.out, *JOBS[n]) / "done").exists()]
    command = [sys.executable, __file__, "--out", str(arguments.out), "--job"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with ThreadPoolExecutor(arguments.workers) as pool:
        list(pool.map(lambda n: subprocess.run([*command, str(n)], check=True, env=environment), todo))
    if all((part(arguments.out, *job) / "done").exists() for job in JOBS):
        print(merge(arguments.out))


if __name__ == "__main__":
    main()
