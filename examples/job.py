"""What the scripts share: calibrate on a file of prompts, save the profile, draw uncached and cached."""

import argparse
import time
from pathlib import Path
from typing import Any

import torch

import ertacache
from ertacache.evaluation.sample_files import trained_fps, write_sample
from ertacache.pipelines.loading import call_arguments, load_pipeline, read_prompts

PROMPTS = Path(__file__).with_name("prompts.txt")


def run(model: str, call: dict[str, Any], kind: str) -> None:
    """The whole job.

    Args:
        model: default of `--model`.
        call: arguments of the pipeline call for that model; a bundled model brings its own.
        kind: ending of the files that are drawn.
    """
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", default=model, help="Hub id, diffusers folder or bundled name")
    parser.add_argument("--prompts", type=Path, default=PROMPTS, help="one prompt a line; the first one is drawn")
    parser.add_argument("--steps", type=int, help="solver steps; the model's by default")
    parser.add_argument("--speedup", type=float, default=2.0, help="how many times fewer steps to compute")
    parser.add_argument("--effort", choices=("fast", "balanced", "thorough"), default="fast", help="how far to search")
    parser.add_argument("--batch-size", type=int, default=1, help="prompts per call while calibrating")
    parser.add_argument("--out", type=Path, default=Path("out/example"))
    options = parser.parse_args()

    call = {**call, **call_arguments(options.model, {})}
    if options.steps is not None:
        call["num_inference_steps"] = options.steps
    prompts = read_prompts(options.prompts)
    pipe = load_pipeline(options.model, offload="model" if torch.cuda.is_available() else "none")
    options.out.mkdir(parents=True, exist_ok=True)

    profile = ertacache.calibrate(
        pipe,
        prompts,
        speedup=options.speedup,
        effort=options.effort,
        batch_size=options.batch_size,
        checkpoint=options.out / "calibration",
        **call,
    )
    path = profile.save(options.out / "profile.safetensors")
    print(profile.summary())

    draw(pipe, prompts[0], call, options.out / f"uncached.{kind}")
    with ertacache.apply(pipe, path) as stats:
        draw(pipe, prompts[0], call, options.out / f"cached.{kind}")
    print(f"computed {dict(stats.computed)}, predicted {dict(stats.predicted)}")


def draw(pipe: Any, prompt: str, call: dict[str, Any], path: Path) -> None:
    """One picture or clip, always from the same noise."""
    start = time.perf_counter()
    made = pipe(prompt, generator=torch.Generator("cpu").manual_seed(0), output_type="pt", **call)[0]
    print(f"{path}: {time.perf_counter() - start:.1f} s")
    write_sample(made[0].float().cpu(), path, fps=trained_fps(pipe))
