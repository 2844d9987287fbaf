"""The command line: parse, call one function, print. Bad input exits with code 2."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ertacache.cli import commands
from ertacache.cli import compare as compare_command
from ertacache.cli.demo import run_demo
from ertacache.cli.zoo import add_zoo
from ertacache.errors import ErtacacheError
from ertacache.evaluation.reproduce.cli import reproduce
from ertacache.evaluation.vbench.cli import vbench

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

app.add_typer(vbench, name="vbench")
add_zoo(app)
app.command()(reproduce)

Model = Annotated[str, typer.Argument(help="Bundled model (`zoo list` names them), diffusers folder or Hub id.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Device = Annotated[str, typer.Option(help="Where to run, as torch names it.")]
Dtype = Annotated[str, typer.Option(help="float32, float16 or bfloat16.")]
Steps = Annotated[int | None, typer.Option("--num-inference-steps", help="Solver steps.")]
Guidance = Annotated[float | None, typer.Option("--guidance-scale", help="Guidance as the pipeline takes it.")]
TrueCfg = Annotated[float | None, typer.Option("--true-cfg-scale", help="Two-branch guidance, where it is separate.")]
Negative = Annotated[str | None, typer.Option("--negative-prompt", help="Negative prompt; '' is one too.")]
Height = Annotated[int | None, typer.Option(help="Pixels.")]
Width = Annotated[int | None, typer.Option(help="Pixels.")]
PromptFile = Annotated[Path | None, typer.Option("--prompts", help="Text file, one prompt a line.")]
CalibrationFile = Annotated[Path | None, typer.Option(help="Text file; none of them may be in --prompts.")]
Frames = Annotated[int | None, typer.Option("--num-frames", help="Frames of a video.")]
Offload = Annotated[
    str | None,
    typer.Option("--offload-history", help="cpu: histories of profiles wait in the host's memory. Same results."),
]
Seed = Annotated[int, typer.Option(help="Prompt n starts from the noise of seed + n.")]


def call_options(
    steps: int | None,
    guidance: float | None,
    cfg: float | None,
    negative: str | None,
    height: int | None,
    width: int | None,
    num_frames: int | None = None,
) -> dict[str, Any]:
    """Call arguments that were given on the command line; None where they were not."""
    return {
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "true_cfg_scale": cfg,
        "negative_prompt": negative,
        "height": height,
        "width": width,
        "num_frames": num_frames,
    }


def show(result: dict[str, Any], as_json: bool, text: str) -> None:
    """One JSON object, or the text for people."""
    if as_json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        Console(highlight=False, soft_wrap=True).print(text, markup=False)


@app.command()
def demo(
    model: Annotated[str, typer.Argument(help="Bundled model.")] = "tiny-flux",
    out: Annotated[Path, typer.Option(help="Folder for profile, pictures or clips, and report.")] = Path("out/demo"),
    as_json: Json = False,
) -> None:
    """Calibrate, generate and compare on a bundled model: the whole job in a few minutes."""
    result = run_demo(model, out)
    show(result, as_json, result["text"])


@app.command()
def calibrate(
    model: Model,
    out: Annotated[Path, typer.Option(help="Profile to write.")] = Path("profile.safetensors"),
    prompts: PromptFile = None,
    compute_steps: Annotated[int | None, typer.Option(help="K, steps to compute.")] = None,
    threshold: Annotated[float | None, typer.Option(help="λ of the offline policy, instead of K.")] = None,
    schedule: Annotated[str | None, typer.Option(help="uniform, or text such as '#.#.##'.")] = None,
    basis: Annotated[str, typer.Option(help="reuse, residual or fitted.")] = "fitted",
    site: Annotated[str | None, typer.Option(help="output, guided or hidden.")] = None,
    history: Annotated[str, typer.Option(help="Depth of the fitted predictor, or auto.")] = "auto",
    aim: Annotated[str, typer.Option(help="What is fitted to: each step, the trajectory, or auto.")] = "auto",
    timesteps: Annotated[str, typer.Option(help="none, paper, auto, or a strength from 0 to 1.")] = "none",
    rectifier: Annotated[str, typer.Option(help="none, scalar, channel or element.")] = "none",
    activation: Annotated[str, typer.Option(help="linear, or the paper's literal sigmoid.")] = "linear",
    holdout: Annotated[float, typer.Option(help="Share of the prompts that is never fitted.")] = 0.25,
    seed: Seed = 0,
    batch_size: Annotated[int | None, typer.Option(help="Prompts per pipeline call; all at once by default.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="File to continue an interrupted calibration from.")] = None,
    steps: Steps = None,
    guidance_scale: Guidance = None,
    true_cfg_scale: TrueCfg = None,
    negative_prompt: Negative = None,
    height: Height = None,
    width: Width = None,
    num_frames: Frames = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """Watch a pipeline on a few prompts and write a profile."""
    call = call_options(steps, guidance_scale, true_cfg_scale, negative_prompt, height, width, num_frames)
    choices = {
        "compute_steps": compute_steps, "threshold": threshold, "schedule": schedule, "basis": basis, "site": site,
        "history": commands.number_or_word(history, int), "aim": aim,
        "timesteps": commands.number_or_word(timesteps, float), "rectifier": rectifier, "activation": activation,
        "holdout": holdout, "seed": seed, "batch_size": batch_size, "checkpoint": checkpoint,
    }  # fmt: skip
    result = commands.calibrate(model, out, prompts, choices, call, device, dtype)
    show(result, as_json, result["text"])


@app.command()
def generate(
    model: Model,
    prompt: Annotated[str, typer.Option(help="What to draw.")],
    profile: Annotated[str | None, typer.Option(help="Profile file or Hub id; without one nothing is cached.")] = None,
    offload_history: Offload = None,
    out: Annotated[
        Path | None, typer.Option(help="Picture (.png, .jpg, .webp: image.png) or clip (.mp4, .gif, .webp: clip.mp4).")
    ] = None,
    fps: Annotated[float | None, typer.Option(help="Frames per second of a clip; the model's own by default.")] = None,
    retarget: Annotated[bool, typer.Option(help="Fit the profile to another number of steps than its own.")] = False,
    seed: Seed = 0,
    steps: Steps = None,
    guidance_scale: Guidance = None,
    true_cfg_scale: TrueCfg = None,
    negative_prompt: Negative = None,
    height: Height = None,
    width: Width = None,
    num_frames: Frames = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """Draw one picture or clip, with a profile or without."""
    call = call_options(steps, guidance_scale, true_cfg_scale, negative_prompt, height, width, num_frames)
    result = commands.generate(model, prompt, profile, out, seed, call, device, dtype, fps, retarget, offload_history)
    show(result, as_json, result["text"])


@app.command()
def ablation(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder for results, samples and report.html.")] = Path("out/ablation"),
    budgets: Annotated[str, typer.Option(help="Numbers of computed steps, separated by commas.")] = "15,10,6",
    prompts: PromptFile = None,
    calibration_prompts: CalibrationFile = None,
    full: Annotated[bool, typer.Option(help="Every reuse site and basis, or residual reuse and fitted only.")] = True,
    offload_history: Offload = None,
    seed: Seed = 10_000,
    steps: Steps = None,
    guidance_scale: Guidance = None,
    true_cfg_scale: TrueCfg = None,
    negative_prompt: Negative = None,
    height: Height = None,
    width: Width = None,
    num_frames: Frames = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """Measure no cache, fewer steps, uniform and the ERTACache ablation on held-out prompts at equal computed steps."""
    call = call_options(steps, guidance_scale, true_cfg_scale, negative_prompt, height, width, num_frames)
    result = commands.ablation(
        model, out, budgets, prompts, calibration_prompts, full, seed, call, device, dtype, offload_history
    )
    show(result, as_json, result["text"])


@app.command()
def compare(
    model: Annotated[str, typer.Option(help="Bundled model, diffusers folder or Hub id.")] = "tiny-flux",
    methods: Annotated[str, typer.Option(help="Names separated by commas, or all; --list prints them.")] = "all",
    match_cost: Annotated[
        str,
        typer.Option(help="Shares of the uncached run to tune every method to, or published: settings as they are."),
    ] = ".5,.33",
    prompts: PromptFile = None,
    calibration_prompts: CalibrationFile = None,
    seeds: Annotated[int, typer.Option(help="Runs of every prompt, each from noise of its own.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder for results, samples and report.html.")] = Path("out/compare"),
    metrics: Annotated[str | None, typer.Option(help="Names separated by commas; all that can be computed.")] = None,
    samples: Annotated[int, typer.Option(help="Prompts whose pictures are kept.")] = 6,
    batch_size: Annotated[int | None, typer.Option(help="Prompts per call while profiles are calibrated.")] = None,
    offload_history: Offload = None,
    list_methods: Annotated[bool, typer.Option("--list", help="Print every method with its source, and stop.")] = False,
    seed: Seed = 10_000,
    steps: Steps = None,
    guidance_scale: Guidance = None,
    true_cfg_scale: TrueCfg = None,
    negative_prompt: Negative = None,
    height: Height = None,
    width: Width = None,
    num_frames: Frames = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """Run many methods at equal counted compute on held-out prompts; resumes where it was cut off."""
    if list_methods:
        result = compare_command.list_methods()
    else:
        call = call_options(steps, guidance_scale, true_cfg_scale, negative_prompt, height, width, num_frames)
        job = {"seeds": seeds, "seed": seed, "samples": samples, "batch_size": batch_size}
        result = compare_command.compare(
            model, methods, match_cost, prompts, calibration_prompts, out, metrics, job, call, device, dtype,
            offload_history,
        )  # fmt: skip
    show(result, as_json, result["text"])


@app.command()
def inspect(
    profile: Annotated[str, typer.Argument(help="Profile file or Hub id.")],
    picture: Annotated[
        Path | None, typer.Option(help="Also draw schedule, grid and coefficients to this PNG or SVG.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print what a profile holds and where it comes from."""
    result = commands.inspect(profile, picture)
    show(result, as_json, result["text"])


def main() -> None:
    """Entry point: errors of this package become one line and exit code 2."""
    # It warns at every start that image processors which nothing here uses would like torchvision.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        app()
    except ErtacacheError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"ertacache: {error}", markup=False)
        sys.exit(2)
