"""A small model as the predictor on skipped steps: plans with and without it at equal counted cost.

`python benchmarks/small_predictor.py --small nano-flux` says first what it will take, then measures what its folder
lacks and goes on there when it is started again. For T/2, T/3 and T/5 steps, on prompts that took no part in the fits:
the searched plan without the small model, the best with it, which of the two the prompts that choose take, and two
controls. In the first the small model computes every skipped step alone, which costs more than T/5 where it has a
quarter of the operations; in the second it stands alone at the very steps of the best plan, and history predicts the
others. `--small blocks` is a stand-in: the large model without its first block. Rewrites
benchmarks/results/small_predictor.json, whose table docs/split.md shows (`--table` prints it and measures nothing).
"""

import argparse
import copy
import json
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from fresh import BATCH
from kept import arguments_of, kept
from torch import Tensor

from ertacache.calibration.assemble import assemble
from ertacache.calibration.assisted import most_loops, with_small
from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.candidates import Candidate, best_of
from ertacache.calibration.checkpoint import owned
from ertacache.calibration.held_out import uncached_ahead
from ertacache.calibration.kept import loop_name
from ertacache.calibration.method import Method
from ertacache.calibration.pipeline_run import run_pipeline
from ertacache.calibration.prompts import Prompts
from ertacache.calibration.search import Found, recommended, search
from ertacache.calibration.solved import Solved, from_state, to_state
from ertacache.calibration.solving import Seat
from ertacache.core.schedule import Schedule
from ertacache.evaluation.row_figures import made_with
from ertacache.files import write_atomic
from ertacache.metrics import PairedMetrics, figures, paired_gain
from ertacache.pipelines.loading import call_arguments, load_pipeline
from ertacache.profile.profile import Profile
from ertacache.runtime.player import Player
from ertacache.runtime.run import Controller
from ertacache.runtime.run_stats import RunStats
from ertacache.runtime.small_model import SmallModel
from ertacache.split import split
from ertacache_zoo import catalogue

SHARES = (2, 3, 5)
SEED, CALIBRATION_SEED, RIDGE = 10_000, 0, 1e-3
#: The rows of one budget, with their heads in the table.
ROWS = {
    "without": "without", "with": "best with", "chosen": "chosen", "fewer": "fewer steps",
    "alone": "small model alone at all skipped steps", "alone there": "alone at the steps of the best with",
}  # fmt: skip


@dataclass
class Bench:
    """A pipeline and a small model with the runs that all budgets share.

    Attributes:
        given: the command line.
    """

    given: argparse.Namespace

    @cached_property
    def pipe(self) -> Any:
        """The large model."""
        return load_pipeline(self.given.model, device="cpu")

    @cached_property
    def call(self) -> dict[str, Any]:
        """Arguments of the pipeline call."""
        steps = {} if self.given.steps is None else {"num_inference_steps": self.given.steps}
        return call_arguments(self.given.model, steps)

    @cached_property
    def other(self) -> Any:
        """The small model: a pipeline by its name or path, or the large denoiser without its first block."""
        if self.given.small != "blocks":
            return load_pipeline(self.given.small, device="cpu")
        denoiser = copy.deepcopy(self.pipe.transformer)
        del denoiser.transformer_blocks[0]
        return denoiser

    @cached_property
    def small(self) -> SmallModel:
        return SmallModel(self.pipe, self.other)

    @cached_property
    def calibrator(self) -> Calibrator:
        """Of the prompts that fit and choose."""
        fitted, chosen = self.given.fitted, self.given.chosen
        texts = catalogue.calibration_prompts(fitted + chosen, self.given.model)
        return Calibrator(
            self.pipe, texts, choose=chosen / (fitted + chosen), seed=CALIBRATION_SEED, batch_size=BATCH,
            call=self.call, checkpoint=self.given.work / "runs", small=self.small,
        )  # fmt: skip

    @cached_property
    def judged(self) -> Prompts:
        """Of the zoo's held-out captions."""
        return Prompts(tuple(catalogue.heldout_prompts(self.given.judged, self.given.model)), SEED)

    @cached_property
    def reference(self) -> Tensor:
        """The large model's pictures of them."""
        return self.pictures(Controller(), self.call)

    def pictures(self, controller: Controller, call: dict[str, Any]) -> Tensor:
        """Of the prompts that judge [N, 3, H, W]."""
        return torch.cat([run_pipeline(self.pipe, part, controller, call) for part in self.judged.batches(BATCH)])

    def row(self, images: Tensor, cost: float, **more: Any) -> dict[str, Any]:
        """Figures of pictures that cost so many steps of the large model."""
        metrics = PairedMetrics()
        metrics.update(images.nan_to_num(0.0), self.reference)
        return {"cost": round(cost, 4), "psnr": [round(value, 3) for value in metrics.state()["psnr"]], **more}

    def play(self, profile: Profile, name: str) -> dict[str, Any]:
        """A profile on the prompts that judge."""
        small = self.small if profile.small_steps else None
        images = self.pictures(Player(profile, RunStats(), keep_nan=True, small=small), self.call)
        facts = {"plan": name, "schedule": str(profile.schedule), "small_steps": list(profile.small_steps)}
        return self.row(images, profile.counted_steps, **facts)


def budget(bench: Bench, K: int) -> dict[str, Any]:
    """Every row at the cost of K steps."""
    calibrator, effort = bench.calibrator, bench.given.effort
    base = recommended(calibrator, RIDGE, "trajectory")
    plain = search(calibrator, base, K, effort)
    found = with_small(calibrator, base, plain, K, effort)
    rows = {"without": bench.play(plain.best.profile, plain.best.name)}
    helped = [candidate for candidate in found.measured if candidate.profile.small_steps]
    if helped:
        best = found.best if found.best.profile.small_steps else best_of(helped)
        rows["with"] = bench.play(best.profile, best.name)
        rows["alone there"] = bench.play(alone_there(calibrator, best.method), "alone there")
    rows["chosen"] = {**rows["without" if found.best is plain.best else "with"], "plan": found.best.name}
    fewer = bench.pictures(Controller(), {**bench.call, "num_inference_steps": K})
    rows["fewer"] = bench.row(fewer, K)
    rows["alone"] = bench.play(alone(calibrator, base, K), "alone")
    return {"K": K, "chosen_on": chosen_on(found), "rows": rows}


def chosen_on(found: Found) -> list[dict[str, Any]]:
    """What the prompts that choose say of every plan that was compared."""

    def error(candidate: Candidate) -> float:
        return round(candidate.deviation, 4)

    return [{"plan": one.name, "log10_error": error(one), "chosen": one is found.best} for one in found.measured]


def alone(calibrator: Calibrator, base: Method, K: int) -> Profile:
    """The small model by itself at every skipped step, at the cost of K steps or the least above it."""
    T, share = calibrator.T, calibrator.small_share
    fitting = [computed for computed in range(2, K + 1) if computed + share * (T - computed) <= K + 1e-9]
    schedule = Schedule.uniform(T, max(fitting, default=2))
    method = replace(base, schedule=schedule, small=schedule.predicted_steps, levels=1, directions=0)
    weights = {(i, "guided"): torch.zeros(2, dtype=torch.float64) for i in method.small}
    return assemble(calibrator, method, Solved(weights=weights), heldout={})


def alone_there(calibrator: Calibrator, method: Method) -> Profile:
    """The small model by itself at the steps of a plan, whose others are fitted anew behind it."""
    schedule, boundaries = method.schedule, calibrator.reference.boundaries
    depths = {i: 0 if schedule is None else schedule.depth(i, boundaries) for i in method.small}
    features = {i: len(method.features("guided", (), depth, small=True)) for i, depth in depths.items()}
    zeros = {(i, "guided"): torch.zeros(n, dtype=torch.float64) for i, n in features.items()}
    seats = {n: Seat(trajectory=calibrator.trajectory(None, n)) for n in range(len(calibrator.batches))}
    name = f"alone at the steps of {loop_name(method)}"
    solved = calibrator.store.get(name, lambda: to_state(calibrator.play(method, Solved(weights=zeros), 0, seats)))
    return assemble(calibrator, method, from_state(solved), heldout={})


def expected(bench: Bench, budgets: list[int]) -> str:
    """What the whole will take, from the second step of a run."""
    given, seen = bench.given, bench.calibrator.first_steps
    cheap, compared = most_loops(given.effort)
    loops = given.fitted * (8 + cheap + 1) + given.chosen * (4 + compared) + given.judged * 6
    runs = given.fitted + given.chosen + given.judged + sum(loops * K / seen.steps for K in budgets)
    share = bench.calibrator.small_share
    minutes = runs * seen.steps * seen.seconds / 60
    return (
        f"{given.model} with {given.small}, whose step has {share:.3f} of the operations: at most {runs:.0f} runs of "
        f"one prompt of {seen.steps} steps, about {minutes:.0f} minutes at the speed of now"
    )


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Every budget, each kept as soon as it is there."""
    bench = Bench(given)
    steps = bench.calibrator.first_steps.steps
    budgets = [max(2, steps // share) for share in SHARES]
    print(expected(bench, budgets), flush=True)
    names = ("model", "small", "steps", "fitted", "chosen", "judged", "effort")
    settings = {name: getattr(given, name) for name in names}
    found = dict[str, Any]()
    with owned(given.work / "runs"):
        uncached_ahead(bench.calibrator)
        for K in budgets:
            found[str(K)] = kept(given.work / f"{K}.json", settings, lambda K=K: budget(bench, K))
            print(table({"T": steps, "budgets": {str(K): found[str(K)]}}), flush=True)
        whole = kept(given.work / "small.json", settings, lambda: small_only(bench))
    facts = {"T": steps, "share": bench.calibrator.small_share, "settings": settings, **made_with()}
    return {
        **facts,
        "small_only": without_settings(whole),
        "budgets": {K: without_settings(v) for K, v in found.items()},
    }


def small_only(bench: Bench) -> dict[str, Any]:
    """The small model at every step."""
    with split(bench.pipe, bench.other, switch=0):
        images = bench.pictures(Controller(), bench.call)
    return bench.row(images, bench.calibrator.small_share * bench.calibrator.T)


def without_settings(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key != "settings"}


def table(found: dict[str, Any]) -> str:
    """PSNR to the large model in dB, and what a plan costs where that is not the budget."""
    lines = [f"| cost | {' | '.join(ROWS.values())} |", "|---" * (1 + len(ROWS)) + "|"]
    for K, one in found["budgets"].items():
        cells = [cell(one["rows"].get(name), int(K)) for name in ROWS]
        lines.append(f"| {K} of {found['T']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(row: dict[str, Any] | None, K: int) -> str:
    """Mean and standard error of one row."""
    if row is None:
        return "-"
    found, over = figures(row["psnr"]), f" (cost {row['cost']:.1f})" * (row["cost"] > K + 1e-6)
    return f"{found['mean']:.1f} ± {found['standard_error']:.1f}{over}"


def gains(found: dict[str, Any]) -> str:
    """With against without, prompt by prompt."""
    lines = list[str]()
    for K, one in found["budgets"].items():
        if "with" in one["rows"]:
            gain = paired_gain(one["rows"]["with"]["psnr"], one["rows"]["without"]["psnr"])["gain"]
            lines.append(f"{K} of {found['T']}: {gain['mean']:+.2f} ± {gain['standard_error']:.2f} dB")
    return "; ".join(lines)


def parsed(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-flux", help="the large model")
    parser.add_argument("--small", default="nano-flux", help="a bundled model, a path, or blocks")
    parser.add_argument("--steps", type=int, help="solver steps instead of the model's own, for a trial")
    parser.add_argument("--fitted", type=int, default=24, help="prompts that coefficients are fitted to")
    parser.add_argument("--chosen", type=int, default=8, help="prompts that choose among plans")
    parser.add_argument("--judged", type=int, default=32, help="prompts that judge")
    parser.add_argument("--effort", default="balanced", choices=("fast", "balanced"), help="of the search")
    parser.add_argument("--table", action="store_true", help="print the table of --out; measures nothing")
    return arguments_of(parser, "small_predictor", given)


def main(given: list[str] | None = None) -> None:
    arguments = parsed(given)
    if not arguments.table:
        found = measure(arguments)
        write_atomic(arguments.out, (json.dumps(found, indent=1) + "\n").encode())
    found = json.loads(arguments.out.read_text())
    print(table(found), gains(found), sep="\n\n")


if __name__ == "__main__":
    main()
