"""Whether aiming at the trajectory helps or harms under solvers that keep their last outputs.

Run by hand: `python benchmarks/solver_aims.py`; about a minute. Rewrites benchmarks/results/solver_aims.json, whose
figures stand in docs/solvers.md. The denoisers are mixtures of Gaussians, whose velocity is known exactly (tests/).
"""

import argparse
import json
import statistics
import sys
from itertools import product
from pathlib import Path
from typing import Any

from ertacache.calibration.assemble import assemble, fit
from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.deviation import deviation
from ertacache.calibration.method import Method
from ertacache.calibration.pipeline_run import Final, run_pipeline
from ertacache.core.schedule import Schedule
from ertacache.runtime.player import Player
from ertacache.runtime.run import Controller
from ertacache.runtime.run_stats import RunStats

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from solver_pipelines import SCHEDULERS, mixture  # noqa: E402

SOLVERS = ("Euler", "UniPC", "DPM-Solver")
WEIGHTS, BUDGETS, MIXTURES, T, SEED = (1.5, 4.0, 7.0), (15, 10), (0, 1), 30, 5
PROMPTS = [f"prompt {n} of class {n * 7 % 4}" for n in range(32)]
AIMS = ("residual reuse", "step", "trajectory")


def method(aim: Any, K: int) -> Method:
    schedule = Schedule.uniform(T, K)
    if aim == "residual reuse":
        return Method("residual", "guided", schedule, levels=0)
    return Method("fitted", "guided", schedule, levels=3, ridge=1e-3, aim=aim)


def measured(calibrator: Calibrator, chosen: Method) -> float:
    """Mean log10 of the squared deviation of the final latent on the held-out draws."""
    profile = assemble(calibrator, chosen, fit(calibrator, chosen), heldout={})
    finals = [Final(Player(profile, RunStats())), Final(Controller())]
    for final in finals:
        run_pipeline(calibrator.pipe, calibrator.parts.chosen, final, calibrator.call, decode=False)
    return deviation(finals[0].latents, finals[1].latents)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "solver_aims.json")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for solver, K in product(SOLVERS, BUDGETS):
        found: dict[str, list[float]] = {aim: [] for aim in AIMS}
        for weight, seed in product(WEIGHTS, MIXTURES):
            call = {"num_inference_steps": T, "guidance_scale": weight}
            calibrator = Calibrator(mixture(SCHEDULERS[solver](), seed), PROMPTS, choose=0.5, seed=SEED, call=call)
            for aim in AIMS:
                found[aim].append(measured(calibrator, method(aim, K)))
        rows.append({"solver": solver, "K": K, **{aim: round(statistics.fmean(found[aim]), 3) for aim in AIMS}})
        print(json.dumps(rows[-1]), flush=True)
    facts = {"T": T, "weights": WEIGHTS, "mixtures": MIXTURES, "seed": SEED, "draws": len(PROMPTS)}
    arguments.out.write_text(json.dumps({"header": facts, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
