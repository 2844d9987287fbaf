"""Whether a calibration can be repeated, and how much it depends on the noise that it is made from.

Run by hand: `python benchmarks/seeds.py`; goes on where it was cut off. Calibrates the recommended plan from five seeds
on the same prompts, and once more from the first seed, and judges each on 32 other prompts. Rewrites
benchmarks/results/seeds.json.
"""

import argparse
import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from fresh import Fresh
from frontier_merge import mean_and_error
from kept import arguments_of, kept, names

import ertacache
from ertacache.calibration.prompts import Prompts
from ertacache.evaluation.row_figures import made_with
from ertacache.pipelines.loading import call_arguments, load_pipeline, with_steps
from ertacache.profile.profile import Profile
from ertacache_zoo import catalogue

SEEDS, CALIBRATION, JUDGED, SEED, STEP = 5, 40, 32, 10_000, 1000


def content(profile: Profile) -> bytes:
    """The bytes of its file, without the times that the calibration measured."""
    untimed = replace(profile, provenance=replace(profile.provenance, measured={}))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profile.safetensors"
        untimed.save(path)
        return path.read_bytes()


def calibrated(fresh: Fresh, model: str, seed: int, K: int) -> Profile:
    """The recommended plan; prompt n starts from the noise of seed + n."""
    prompts = catalogue.calibration_prompts(CALIBRATION, model)
    return ertacache.calibrate(fresh.pipe, prompts, compute_steps=K, seed=seed, show_progress=False, call=fresh.call)


def one_seed(fresh: Fresh, model: str, seed: int, K: int) -> dict[str, Any]:
    """A calibration from one seed, judged; from the first one two, compared byte for byte."""
    profile = calibrated(fresh, model, seed, K)
    mean, error = mean_and_error(fresh.psnr(profile))
    found = {"seed": seed, "psnr": mean, "standard_error": error, "schedule": str(profile.schedule)}
    if seed == 0:
        found["byte_equal"] = content(profile) == content(calibrated(fresh, model, seed, K))
    return found


def measure(model: str, speedup: float, work: Path, **given: Any) -> dict[str, Any]:
    """All seeds of one model."""
    pipe = load_pipeline(model)
    call = with_steps(pipe, call_arguments(model, given))
    fresh = Fresh(pipe, Prompts(tuple(catalogue.heldout_prompts(JUDGED, model)), SEED), call)
    K, rows = round(call["num_inference_steps"] / speedup), list[dict[str, Any]]()
    for seed in range(0, SEEDS * STEP, STEP):
        settings = {"call": call, "calibration": CALIBRATION, "judged": JUDGED}
        found = kept(work / f"{model}-{K}-{seed}.json", settings, lambda s=seed: one_seed(fresh, model, s, K))
        rows.append({name: value for name, value in found.items() if name != "settings"})
        print(json.dumps({"model": model, "K": K, **rows[-1]}), flush=True)
    means = [row["psnr"] for row in rows]
    summary = {"mean": round(statistics.fmean(means), 2), "std": round(statistics.stdev(means), 2)}
    return {"model": model, "K": K, **summary, "byte_equal": rows[0]["byte_equal"], "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="tiny-flux-base,tiny-flux")
    parser.add_argument("--speedup", type=float, default=3.0)
    arguments = arguments_of(parser, "seeds")
    models = [measure(model, arguments.speedup, arguments.work) for model in names(arguments.models)]
    header = {**made_with(), "calibration": CALIBRATION, "judged": JUDGED, "judged_seed": SEED}
    arguments.out.write_text(json.dumps({"header": header, "models": models}, indent=1) + "\n")


if __name__ == "__main__":
    main()
