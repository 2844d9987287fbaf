"""One run by two models: every switch, the measured one beside the paper's grid, and caching on both sides.

`python benchmarks/split.py` measures what its folder lacks and goes on there when it is started again; `--rows` chooses
a part. `--merge` measures nothing: it writes benchmarks/results/split.json from what is there and draws it, and
benchmarks/readme_table.py makes the table of docs/split.md. `--small NAME:N` stands for a small model that is not
there yet: the model NAME with the first N blocks of its longest stack.
"""

import argparse
import copy
import statistics
import time
import traceback
import warnings
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import split_page
import split_plot
import torch
from frontier_cells import SEED, captions
from kept import arguments_of, kept, names
from torch import Tensor, nn

from ertacache.calibration.calibrate import calibrate
from ertacache.calibration.checkpoint import owned
from ertacache.calibration.held_out import Clocked, batches_of, distances, measure_fewer_steps, shorter_call
from ertacache.calibration.pipeline_run import Final, call_pipeline, run_pipeline
from ertacache.errors import CalibrationError
from ertacache.evaluation.row_figures import made_with
from ertacache.pipelines.loading import call_arguments, load_pipeline, with_steps
from ertacache.runtime.player import Player
from ertacache.runtime.run_stats import RunStats
from ertacache.split import calibrate_split, split
from ertacache.split.calibrate import PROBES, probes_of, ratio_of
from ertacache.split.judged import grid_of
from ertacache.split.prices import price, switched
from ertacache.split.recorded import Sized, SplitRuns
from ertacache_zoo.check import Judge

BATCH = 8
#: Shares of the large model's operations that a switch is measured for; 0.34 is the paper's −66 %.
BUDGETS = (0.2, 0.34, 0.5)
#: dB to keep with as little of it as can be.
TARGET = 30.0
_REPEATS = 5


def small_model(name: str) -> Any:
    """A pipeline by its name; by NAME:N the first N blocks of its longest stack in place of all of them."""
    model, _, count = name.partition(":")
    pipe = load_pipeline(model)
    if count:
        pipe.transformer = copy.deepcopy(pipe.transformer)
        stack = max((part for part in pipe.transformer.children() if isinstance(part, nn.ModuleList)), key=len)
        del stack[int(count) :]
    return pipe


@dataclass
class Setting:
    """Two models on one set of prompts; see `parsed` for the arguments."""

    large: str
    small: str
    fitted: int
    chosen: int
    judged: int
    steps: int | None
    work: Path

    @property
    def folder(self) -> Path:
        """Where figures and runs are kept."""
        return self.work / f"{self.large}+{self.small.replace(':', '-')}"

    @property
    def settings(self) -> dict[str, Any]:
        """What figures depend on beside their row."""
        named = {key: value for key, value in asdict(self).items() if key != "work"}
        return {**named, "seed": SEED, "torch": torch.__version__}

    @cached_property
    def pair(self) -> tuple[Any, Any]:
        """Both pipelines."""
        return load_pipeline(self.large), small_model(self.small)

    @cached_property
    def texts(self) -> list[str]:
        """Prompts that price, that choose, that judge."""
        used, judged = captions(self.large, 0, self.fitted + self.chosen, self.judged)
        return [*used, *judged]

    @property
    def options(self) -> dict[str, Any]:
        """What every calibration here has in common."""
        call = with_steps(self.pair[0], call_arguments(self.large, {"num_inference_steps": self.steps}))
        whole = self.fitted + self.chosen + self.judged
        return {"choose": self.chosen / whole, "seed": SEED, "batch_size": BATCH, "call": call}

    @property
    def holdout(self) -> float:
        """Share of the prompts that judge."""
        return self.judged / (self.fitted + self.chosen + self.judged)

    @cached_property
    def runs(self) -> SplitRuns:
        """All runs, in a folder that `calibrate_split` goes on from."""
        found = SplitRuns(*self.pair, self.texts, judge=self.holdout, checkpoint=self.folder / "runs", **self.options)
        found.ratio = self.ratio
        return found

    @cached_property
    def sizes(self) -> tuple[Sized, Sized]:
        """What a step of each model takes."""
        found = SplitRuns(*self.pair, self.texts, judge=self.holdout, **self.options)
        return found.sized(0), found.sized(1)

    @property
    def ratio(self) -> float:
        """Operations of a step of the small model by those of the large one."""
        return ratio_of(self.sizes)

    @cached_property
    def grams(self) -> Tensor:
        """Of the fitted prompts, with the probes that `calibrate_split` makes."""
        return self.runs.grams(probes_of(self.runs.T, PROBES), self.sizes[0].solver)


def figures(setting: Setting, name: str) -> dict[str, Any]:
    """One row; runs are made once, whatever rows want them."""
    begun, (kind, _, value) = time.process_time(), name.partition(" ")
    if kind in ("measured", "any", "target"):
        found = _measured(setting, kind, float(value))
    else:
        with owned(setting.folder / "runs"):
            found = {"switch": _switch, "fewer": _fewer, "cached": _cached, "times": _times}[kind](setting, int(value))
    return {"row": name, **found, "seconds": round(time.process_time() - begun, 1)}


def _switch(setting: Setting, s: int) -> dict[str, Any]:
    """The small model from step s on."""
    runs, pictures, values = setting.runs, list[Tensor](), list[dict[str, list[float]]]()
    order = switched(runs.T, s)
    for n, batch in enumerate(batches_of(runs, "judged")):
        recording, alone = runs.alone("judged", n)

        def run(n: int = n, recording: Any = recording) -> dict[str, Any]:
            return runs.mixed("judged", n, order, recording)

        result = runs.store.get(f"pictures of switch {s} {n}", run) if any(order) else alone
        pictures.append(result["images"])
        values.append(distances(result, alone, len(batch.texts)))
    expected = round(price(setting.grams, [order])[0], 4)
    return {"price": expected, **_costs(setting, order.count(0)), **_said(setting, values, pictures)}


def _fewer(setting: Setting, K: int) -> dict[str, Any]:
    """The large model alone with K steps."""
    runs = setting.runs
    values, call = measure_fewer_steps(runs, K), shorter_call(runs, K)
    pictures = [call_pipeline(runs.pipe, batch, call) for batch in batches_of(runs, "judged")]
    return {**_costs(setting, K), "device": 0, **_said(setting, [values], pictures)}


def _cached(setting: Setting, s: int) -> dict[str, Any]:
    """A plan that computes half of the steps, calibrated inside of the split: over both sides."""
    runs, pictures, values = setting.runs, list[Tensor](), list[dict[str, list[float]]]()
    known = [runs.alone("judged", n)[1] for n in range(len(batches_of(runs, "judged")))]
    with split(*setting.pair, switch=s), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # how far off it is, as the figures say
        profile = calibrate(
            runs.pipe, setting.texts, speedup=2, holdout=setting.holdout, checkpoint=setting.folder / f"cached {s}",
            show_progress=False, **setting.options,
        )  # fmt: skip
    with split(*setting.pair, switch=s):
        for batch, alone in zip(batches_of(runs, "judged"), known, strict=True):
            final = Final(Player(profile, RunStats(), keep_nan=True))
            images = run_pipeline(runs.pipe, batch, final, runs.call)
            pictures.append(images)
            values.append(distances({"images": images, "latents": final.latents}, alone, len(batch.texts)))
    computed = profile.schedule.computed
    costs = _costs(setting, sum(computed[:s]), sum(computed[s:]))
    return {"schedule": str(profile.schedule), **costs, **_said(setting, values, pictures)}


def _measured(setting: Setting, kind: str, value: float) -> dict[str, Any]:
    """What `calibrate_split` finds."""
    asked: dict[str, Any] = {"target_psnr": value} if kind == "target" else {"cloud_budget": value}
    asked |= {"orders": "any"} if kind == "any" else {}
    shared: dict[str, Any] = {**setting.options, "holdout": setting.holdout, "show_progress": False}
    try:
        found = calibrate_split(*setting.pair, setting.texts, checkpoint=setting.folder / "runs", **asked, **shared)
    except CalibrationError as error:  # no switch keeps the target
        return {"refused": str(error)}
    own = found.judged["rows"][0]
    figures = {"psnr": own["psnr"]["mean"], "standard_error": own["psnr"]["standard_error"]}
    return {"models": list(found.models), "chosen_on": found.chosen_on["rows"], "share": found.cloud_share, **figures}


def _times(setting: Setting, repeats: int) -> dict[str, Any]:
    """Milliseconds of a step of each model for one prompt: the median of so many runs, of all steps but the first."""
    runs, found = setting.runs, dict[str, float]()
    for name, s in (("large", runs.T), ("small", 0)):
        seconds = list[float]()
        for _ in range(repeats):
            clocked = Clocked()
            with split(*setting.pair, switch=s):
                run_pipeline(runs.pipe, runs.parts.judged.first(1), clocked, runs.call, decode=False)
            seconds.append(clocked.seconds / (runs.T - 1))
        found[name] = round(1000 * statistics.median(seconds), 3)
    return {"milliseconds": found}


def _costs(setting: Setting, large: int, small: int | None = None) -> dict[str, float]:
    """Operations of each side for one prompt, in G: so many steps of the large model and, of a split, the others."""
    sizes = setting.sizes
    rest = sizes[0].steps - large if small is None else small
    return {
        "steps": large, "share": round(large / sizes[0].steps, 4),
        "cloud": round(large * sizes[0].operations / 1e9, 4), "device": round(rest * sizes[1].operations / 1e9, 4),
    }  # fmt: skip


def _said(setting: Setting, values: list[dict[str, list[float]]], pictures: list[Tensor]) -> dict[str, Any]:
    """PSNR, SSIM and error of every judged prompt, and how much of the captions is in the pictures."""
    joined = {key: [round(x, 4) for one in values for x in one[key]] for key in ("psnr", "ssim", "error")}
    verdict = Judge().judge(torch.cat(pictures), setting.texts[-setting.judged :])
    shares = {"colour_and_place": round(verdict.colour_and_place, 4), "shape": round(verdict.shape, 4)}
    return {**joined, "objects": verdict.objects, **shares}


def rows_of(T: int) -> list[str]:
    """Every row for runs of T steps."""
    fewer = sorted({round(T * n / 10) for n in range(1, 10)} - {0, T})
    cached = sorted({*grid_of(T), round(T / 3), T} - {0})
    return [
        *(f"switch {s}" for s in range(T + 1)), *(f"fewer {K}" for K in fewer),
        *(f"{kind} {budget:g}" for kind in ("measured", "any") for budget in BUDGETS), f"target {TARGET:g}",
        f"times {_REPEATS}", *(f"cached {s}" for s in cached),
    ]  # fmt: skip


def measure(setting: Setting, wanted: list[str]) -> list[str]:
    """Measure what is missing; returns what failed, which is tried again the next time."""
    kept(setting.folder / "settings.json", setting.settings, dict)
    T, failed = with_steps(setting.pair[0], setting.options["call"])["num_inference_steps"], list[str]()
    for row in rows_of(T):
        if wanted and row.partition(" ")[0] not in wanted:
            continue
        try:
            found = kept(setting.folder / f"{row}.json", setting.settings, lambda row=row: figures(setting, row))
            print(f"{row}: {found['seconds']:.0f} s", flush=True)
        except Exception:  # one row's fault shall not cost the others a night
            traceback.print_exc()
            failed.append(row)
    return failed


def parsed(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", default="tiny-flux", help="a bundled model")
    parser.add_argument("--small", default="nano-flux", help="another one, or NAME:N")
    parser.add_argument("--rows", default="", help="of switch, fewer, measured, any, target, times, cached; else all")
    parser.add_argument("--fitted", type=int, default=16, help="prompts that switches are priced on")
    parser.add_argument("--chosen", type=int, default=8, help="prompts that choose")
    parser.add_argument("--judged", type=int, default=32, help="prompts that judge")
    parser.add_argument("--steps", type=int, help="solver steps instead of the model's own, for a trial")
    parser.add_argument("--merge", action="store_true", help="write the result of what is there, and measure nothing")
    return arguments_of(parser, "split", given)


def main(given: list[str] | None = None) -> None:
    own = parsed(given)
    setting = Setting(own.large, own.small, own.fitted, own.chosen, own.judged, own.steps, own.work)
    if own.merge:
        result = split_page.merged(sorted(setting.folder.glob("* *.json")), {**made_with(), **setting.settings})
        split_page.write(result, own.out)
        split_plot.draw(result, split_plot.PICTURE)
    elif failed := measure(setting, names(own.rows)):
        raise SystemExit(f"{len(failed)} failed, and are tried again the next time: {', '.join(failed)}")


if __name__ == "__main__":
    main()
