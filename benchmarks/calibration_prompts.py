"""What more calibration prompts are worth, and what they take.

Run by hand: `python benchmarks/calibration_prompts.py`; goes on where it was cut off. Calibrates the recommended plan
on the first 8, 16, 32 and 64 calibration prompts and judges it on 32 others, the same for all. Rewrites
benchmarks/results/calibration_prompts.json and docs/images/calibration-prompts.png.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from fresh import Fresh
from frontier_merge import mean_and_error
from kept import arguments_of, kept, names

import ertacache
from ertacache.calibration.prompts import Prompts
from ertacache.evaluation.row_figures import made_with
from ertacache.pipelines.loading import call_arguments, load_pipeline, with_steps
from ertacache_zoo import catalogue

COUNTS, JUDGED, SEED = (8, 16, 32, 64), 32, 10_000
PICTURE = Path("docs/images/calibration-prompts.png")
COLOURS = {"tiny-flux-base": "#b8500c", "tiny-flux": "#1f5fa8"}


def row(fresh: Fresh, model: str, count: int, K: int) -> dict[str, Any]:
    """One calibration, judged."""
    prompts, begun = catalogue.calibration_prompts(count, model), time.perf_counter()
    profile = ertacache.calibrate(fresh.pipe, prompts, compute_steps=K, show_progress=False, call=fresh.call)
    seconds = time.perf_counter() - begun
    mean, error = mean_and_error(fresh.psnr(profile))
    facts = {"model": model, "prompts": count, "K": K, "psnr": mean, "standard_error": error}
    return {**facts, "seconds": round(seconds, 1), "uncached_runs": profile.provenance.measured["uncached_runs"]}


def measure(model: str, speedups: list[float], counts: list[int], work: Path, **given: Any) -> list[dict[str, Any]]:
    """All rows of one model; those that are there are read."""
    pipe = load_pipeline(model)
    call = with_steps(pipe, call_arguments(model, given))
    fresh = Fresh(pipe, Prompts(tuple(catalogue.heldout_prompts(JUDGED, model)), SEED), call)
    rows: list[dict[str, Any]] = []
    for speedup in speedups:
        K = round(call["num_inference_steps"] / speedup)
        for count in counts:
            path = work / f"{model}-{K}-{count}.json"
            found = kept(path, {"call": call, "judged": JUDGED}, lambda n=count, k=K: row(fresh, model, n, k))
            rows.append({name: value for name, value in found.items() if name != "settings"})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Judged PSNR against the number of prompts, one line per model and K."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.4), dpi=100, layout="constrained")
    for n, (model, K) in enumerate(dict.fromkeys((row["model"], row["K"]) for row in rows)):
        own = [row for row in rows if (row["model"], row["K"]) == (model, K)]
        x, y, error = zip(*((row["prompts"], row["psnr"], row["standard_error"]) for row in own), strict=True)
        form = {"color": COLOURS.get(model, "#5b646d"), "linestyle": ("-", "--")[n % 2], "marker": "o", "capsize": 3}
        axes.errorbar(x, y, error, label=f"{model}, K = {K}", **form)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({row["prompts"] for row in rows}))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("calibration prompts", fontsize=13)
    axes.set_ylabel("PSNR on 32 others, dB", fontsize=13)
    axes.tick_params(labelsize=12)
    figure.legend(loc="outside lower center", ncol=2, frameon=False, fontsize=12)
    axes.grid(color="#e6e9eb")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="tiny-flux-base,tiny-flux")
    parser.add_argument("--speedups", default="2,3")
    arguments = arguments_of(parser, "calibration_prompts")
    speedups = [float(text) for text in names(arguments.speedups)]
    rows = [row for model in names(arguments.models) for row in measure(model, speedups, [*COUNTS], arguments.work)]
    header = {**made_with(), "seed": SEED, "judged": JUDGED}
    arguments.out.write_text(json.dumps({"header": header, "rows": rows}, indent=1) + "\n")
    draw(rows, PICTURE)


if __name__ == "__main__":
    main()
