"""Whether the figure that a profile reports is what one gets on prompts that it has never seen.

Run by hand: `python benchmarks/judged_bias.py`; goes on where it was cut off. Each time: calibrates the recommended
plan on prompts drawn anew, and takes the PSNR that the profile reports (on those of its prompts that judge) minus that
of the same profile on 32 fresh prompts of the same distribution, the zoo's training captions. Eight prompts are easier
or harder than 32 others by several dB, whatever runs them: so the same is taken of fewer solver steps, to which nothing
is fitted, and of the profile's gain over them, where that luck cancels. Rewrites benchmarks/results/judged_bias.json.
"""

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

from fresh import Fresh
from kept import arguments_of, kept, names

import ertacache
from ertacache.calibration.defaults import CHOOSE, HOLDOUT
from ertacache.calibration.prompts import Prompts, split_prompts
from ertacache.evaluation.row_figures import made_with
from ertacache.pipelines.loading import call_arguments, load_pipeline, with_steps
from ertacache_zoo import catalogue

DRAWS, CALIBRATION, FRESH, SEED = 24, 40, 32, 50_000


def captions(model: str, draw: int) -> tuple[list[str], list[str]]:
    """Calibration and fresh captions of one draw; no caption is used twice, in whatever draw."""
    size = CALIBRATION + FRESH
    drawn = list(dict.fromkeys(catalogue.calibration_prompts(2 * DRAWS * size, model)))[draw * size : (draw + 1) * size]
    return drawn[:CALIBRATION], drawn[CALIBRATION:]


def one_draw(pipe: Any, model: str, draw: int, call: dict[str, Any], K: int) -> dict[str, Any]:
    """One calibration, its own figure and that of fresh prompts; noise of its own for each prompt."""
    used, fresh = drawn(model, draw)
    profile = ertacache.calibrate(pipe, used.texts, compute_steps=K, seed=used.seed, show_progress=False, call=call)
    held, found = profile.provenance.heldout, statistics.fmean(Fresh(pipe, fresh, call).psnr(profile))
    facts = {"draw": draw, "judged_prompts": held["prompts"], "reported": round(held["psnr"]["mean"], 3)}
    return {**facts, "fresh": round(found, 3), "bias": round(held["psnr"]["mean"] - found, 3)}


def luck(pipe: Any, model: str, draw: int, call: dict[str, Any], K: int) -> dict[str, Any]:
    """PSNR of K solver steps on the prompts of that draw that judge, and on its fresh ones."""
    used, fresh = drawn(model, draw)
    judged = split_prompts(used.texts, CHOOSE, HOLDOUT, used.seed).judged
    found = [statistics.fmean(Fresh(pipe, prompts, call).fewer_steps(K)) for prompts in (judged, fresh)]
    return {"fewer_steps": {"judged": round(found[0], 3), "fresh": round(found[1], 3)}}


def drawn(model: str, draw: int) -> tuple[Prompts, Prompts]:
    """Prompts of one draw to calibrate with, and fresh ones."""
    used, others = captions(model, draw)
    seed = SEED + draw * (CALIBRATION + FRESH)
    return Prompts(tuple(used), seed), Prompts(tuple(others), seed + CALIBRATION)


def summary(biases: list[float]) -> dict[str, Any]:
    """Mean bias with its standard error, and whether it is within that."""
    mean, error = statistics.fmean(biases), statistics.stdev(biases) / math.sqrt(len(biases))
    return {"bias": round(mean, 3), "standard_error": round(error, 3), "within": abs(mean) <= error}


def measure(model: str, speedup: float, work: Path, **given: Any) -> dict[str, Any]:
    """All draws of one model."""
    pipe = load_pipeline(model)
    call = with_steps(pipe, call_arguments(model, given))
    K, rows = round(call["num_inference_steps"] / speedup), list[dict[str, Any]]()
    settings = {"call": call, "calibration": CALIBRATION, "fresh": FRESH}
    for draw in range(DRAWS):
        row: dict[str, Any] = {}
        for name, one in ((f"{draw}", one_draw), (f"{draw}-luck", luck)):
            row |= kept(work / f"{model}-{K}-{name}.json", settings, lambda d=draw, f=one: f(pipe, model, d, call, K))
        fewer = row["fewer_steps"]
        row["gain_bias"] = round(row["bias"] - (fewer["judged"] - fewer["fresh"]), 3)
        rows.append({name: value for name, value in row.items() if name != "settings"})
        print(json.dumps({"model": model, "K": K, **rows[-1]}), flush=True)
    gain = summary([row["gain_bias"] for row in rows])
    return {"model": model, "K": K, **summary([row["bias"] for row in rows]), "gain": gain, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="tiny-flux-base,tiny-flux")
    parser.add_argument("--speedup", type=float, default=3.0)
    arguments = arguments_of(parser, "judged_bias")
    models = [measure(model, arguments.speedup, arguments.work) for model in names(arguments.models)]
    header = {**made_with(), "seed": SEED, "calibration": CALIBRATION, "fresh": FRESH}
    arguments.out.write_text(json.dumps({"header": header, "models": models}, indent=1) + "\n")


if __name__ == "__main__":
    main()
