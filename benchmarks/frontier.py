"""Quality against counted cost: every compared method and the recommended plan, on all bundled models.

`python benchmarks/frontier.py` measures what its folder lacks, one method, budget, split, guidance and model after the
other, and goes on there when it is started again; `--models`, `--guidance`, `--methods`, `--budgets` and `--splits`
choose a part, so that several processes can share the work. `--merge` measures nothing and adds what is there to
benchmarks/results/frontier.json; of that benchmarks/readme_table.py makes the tables of docs/frontier.md and of the
README, benchmarks/frontier_plot.py the picture.
"""

import argparse
import json
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frontier_cells import BUDGETS, GUIDANCE, Cell, cells, loaded
from frontier_merge import merged, write
from frontier_plan import OURS, methods, name_of
from kept import arguments_of, kept, names

from ertacache.baselines.baseline import Baseline
from ertacache.calibration.progress import run_progress
from ertacache.evaluation.row_figures import made_with


@dataclass(frozen=True)
class Part:
    """What one process measures, in this order."""

    cells: list[Cell]
    methods: list[Baseline]
    budgets: list[int]

    def missing(self, work: Path) -> dict[Cell, list[tuple[int, Baseline]]]:
        """By cell, what is not measured yet."""
        found: dict[Cell, list[tuple[int, Baseline]]] = {}
        for cell in self.cells:
            pairs = [(budget, method) for budget in self.budgets for method in self.methods]
            left = [(b, m) for b, m in pairs if not cell.file(work, name_of(m), b).is_file()]
            if left:
                found[cell] = left
        return found


def measure(part: Part, work: Path, show_progress: bool = True) -> list[str]:
    """Measure what is missing; returns what failed, which is tried again the next time."""
    missing, failed = part.missing(work), list[str]()
    expected = sum(len(left) for left in missing.values())
    with run_progress(show_progress, "frontier", expected=expected) as progress:
        for cell, left in missing.items():
            judge = loaded(cell, work / cell.name, left)
            for budget, method in left:
                path = cell.file(work, name_of(method), budget)
                try:
                    kept(path, cell.settings, lambda j=judge, m=method, b=budget: j.figures(m, b))
                except Exception:  # one method's fault shall not cost the others a night
                    traceback.print_exc()
                    failed.append(str(path.relative_to(work)))
                progress(f"{cell.name}, T/{budget}, {name_of(method)}")
    return failed


def part_of(arguments: argparse.Namespace) -> Part:
    """The part that the command line asks for."""
    weights = [float(text) for text in names(arguments.guidance)] or None
    splits = [int(text) for text in names(arguments.splits)]
    call: dict[str, Any] = {} if arguments.steps is None else {"num_inference_steps": arguments.steps}
    prompts = {"calibration": arguments.calibration, "judged": arguments.prompts, "call": call}
    chosen = list(cells(names(arguments.models), weights, splits, **prompts))
    return Part(chosen, methods(arguments.methods), [int(text) for text in names(arguments.budgets)])


def parsed(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(GUIDANCE))
    parser.add_argument("--guidance", default="", help="weights to take of those of the models; all by default")
    parser.add_argument("--methods", default="all", help=f"names; all is {OURS} and every compared method")
    parser.add_argument("--budgets", default=",".join(map(str, BUDGETS)), help="T over these is what it is to cost")
    parser.add_argument("--splits", default="0,1", help="disjoint sets of calibration and judged prompts")
    parser.add_argument("--prompts", type=int, default=32, help="judged prompts of each split")
    parser.add_argument("--calibration", type=int, default=40, help="calibration prompts of each split")
    parser.add_argument("--steps", type=int, help="solver steps instead of the model's own, for a trial")
    parser.add_argument("--merge", action="store_true", help="add what is there to the result, and measure nothing")
    return arguments_of(parser, "frontier", given)


def main() -> None:
    arguments = parsed()
    part = part_of(arguments)
    if arguments.merge:
        facts = made_with() | {"command": "python benchmarks/frontier.py"}
        old = json.loads(arguments.out.read_text()) if arguments.out.is_file() else None
        write(merged(part.cells, part.budgets, arguments.work, facts, old), arguments.out)
    elif failed := measure(part, arguments.work):
        raise SystemExit(f"{len(failed)} failed, and are tried again the next time: {', '.join(failed)}")


if __name__ == "__main__":
    main()
