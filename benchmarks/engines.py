"""The plug-ins in the real vLLM-Omni and SGLang on the CPU: `python benchmarks/engines.py [--engine NAME]`.

The environments are made by `engines_environment.py`; a process in each imports the engine's own adapter for diffusers
pipelines, has it load tiny-flux with a profile, and generates through it. No server is started: they need a GPU.
"""

import argparse
import json
import os
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import engines_loaded as real
import torch
from diffusers import DiffusionPipeline
from engines_environment import environment_of
from own_environment import default_folder, python_of

import ertacache
from ertacache.pipelines import bundled
from ertacache.pipelines.loading import load_pipeline

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "engines.json"
SCHEDULE = "##.#.#"
CALL = {"num_inference_steps": len(SCHEDULE), "guidance_scale": 3.5, "height": 64, "width": 64}
PROMPT, SEED = "a large green square at the top left on a dark striped background", 3
LOADED = {"sglang": real.sglang, "vllm-omni": real.vllm_omni}


def calibrated(path: Path) -> None:
    """A profile of tiny-flux from short runs."""
    pipe = load_pipeline("tiny-flux", "cpu", "bfloat16")
    pipe.set_progress_bar_config(disable=True)
    options: dict[str, Any] = {"schedule": SCHEDULE, "holdout": 0.4, "choose": 0, "show_progress": False}
    ertacache.calibrate(pipe, bundled.calibration_prompts(3), **options, **CALL).save(path)


def alone(profile: Path | None) -> torch.Tensor:
    """The image [1, 3, H, W] of diffusers, with or without the profile; no engine."""
    # By the argument's older name: the diffusers that SGLang pins knows no other.
    pipe = DiffusionPipeline.from_pretrained(bundled.folder("tiny-flux"), torch_dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    if profile is not None:
        ertacache.enable(pipe, profile)
    generator = torch.Generator().manual_seed(SEED)
    return pipe(prompt=PROMPT, generator=generator, output_type="pt", **CALL).images.float()


def measure(engine: str, profile: Path) -> dict[str, Any]:
    """One engine; runs inside its environment."""
    load = LOADED[engine]
    folder = str(bundled.folder("tiny-flux"))
    request = {"prompt": PROMPT, "seed": SEED, **CALL}
    with load(folder, None) as plain:
        image, calls = plain.run(request)
        uncached = {"calls": calls, "bit_equal_to_diffusers": torch.equal(image, alone(None))}
    with load(folder, profile) as cached:
        image, calls = cached.run(request)
        other, more = cached.run({**request, "num_inference_steps": 3})
        reason = cached.reason()
        again, _ = cached.run(request)
    return {
        "versions": {name: version(name) for name in (engine, *real.BESIDE[engine], "torch", "transformers")},
        "stubbed": list(real.STUBBED),
        "uncached": uncached,
        "with the profile": {
            "calls": calls,
            "bit_equal_to_diffusers_with_ertacache": torch.equal(image, alone(profile)),
            "again_bit_equal": torch.equal(image, again),
        },
        "another number of steps": {"calls": more, "reason": reason, "finite": bool(other.isfinite().all())},
        "refused": {what: text.replace(str(profile), profile.name) for what, text in cached.refusals(folder).items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=sorted(LOADED), help="one of them only, and print what was found")
    parser.add_argument("--profile", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    if given.profile is not None:
        print(json.dumps(measure(given.engine, given.profile)))
        return
    found: dict[str, Any] = {"schedule": SCHEDULE}
    with tempfile.TemporaryDirectory() as scratch:
        profile = Path(scratch, "profile.safetensors")
        calibrated(profile)
        for engine in [given.engine] if given.engine else sorted(LOADED):
            found[engine] = inside(engine, profile)
    given.out.write_text(json.dumps(found, indent=1) + "\n")


def inside(engine: str, profile: Path) -> dict[str, Any]:
    """`measure` in the engine's environment."""
    folder = default_folder(engine)
    if why := environment_of(engine).missing(folder):
        raise SystemExit(why)
    paths = {"PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("src", "zoo/src"))}
    command = [str(python_of(folder)), __file__, "--engine", engine, "--profile", str(profile)]
    done = subprocess.run(command, env={**os.environ, **paths}, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
