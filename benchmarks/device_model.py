"""nano-flux beside tiny-flux: operations, velocities at every step, the decoder, and captions of each pairing.

Run by hand: `python benchmarks/device_model.py`; about two minutes on one core. Rewrites
benchmarks/results/device-model.json.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ertacache.calibration.pipeline_run import call_pipeline
from ertacache.calibration.prompts import Prompts
from ertacache.evaluation.row_figures import made_with
from ertacache.pipelines.loading import call_arguments, load_pipeline
from ertacache.runtime.flops import FlopCounter
from ertacache.split.significance import record_calls
from ertacache_zoo import scenes
from ertacache_zoo.check import Judge
from ertacache_zoo.nano_flux import unpacked

RESULTS = Path(__file__).parent / "results" / "device-model.json"
#: The seed of `ertacache zoo check`, so that its figures of tiny-flux are those here.
SEED = 7


def operations(large: Any, small: Any, call: dict[str, Any]) -> dict[str, Any]:
    """Counted floating-point operations of one denoiser call and of one decoding, for one picture."""
    arguments = record_calls(large, {**call, "prompt": "", "num_inference_steps": 1, "output_type": "latent"})[0]
    latents = torch.zeros(1, 4, 16, 16)
    result: dict[str, Any] = {}
    for part, run in (
        ("denoiser", lambda pipe: pipe.transformer(**arguments)),
        ("decoder", lambda pipe: pipe.vae.decode(latents)),
    ):
        counts: list[int] = []
        for pipe in (large, small):
            with FlopCounter() as counter:
                run(pipe)
            counts.append(counter.total)
        parameters = [sum(p.numel() for p in pipe.transformer.parameters()) for pipe in (large, small)]
        result[part] = {"large": counts[0], "small": counts[1], "ratio": round(counts[1] / counts[0], 4)}
        if part == "denoiser":
            result[part]["parameters"] = parameters
    return result


def velocities(large: Any, small: Any, call: dict[str, Any], captions: list[str]) -> list[float]:
    """‖v_large‖² / ‖v_small − v_large‖² in dB at every step of the runs of `large`."""
    generator = torch.Generator().manual_seed(SEED)
    calls = record_calls(large, {**call, "prompt": captions, "generator": generator, "output_type": "latent"})
    found: list[float] = []
    for arguments in calls:
        v, w = (pipe.transformer(**arguments, return_dict=False)[0] for pipe in (large, small))
        found.append(round(float(10 * (v.square().mean() / (w - v).square().mean()).log10()), 2))
    return found


def latents_of(pipe: Any, captions: list[str], call: dict[str, Any]) -> Tensor:
    """Final latents [N, 4, 16, 16], as the denoiser has them, from the noise of `zoo check`."""
    batches = Prompts(tuple(captions), SEED).batches(50)
    return torch.cat([unpacked(call_pipeline(pipe, batch, call, decode=False)) for batch in batches])


def pictures(vae: Any, latents: Tensor) -> Tensor:
    """Images [N, 3, 64, 64] in [0, 1]."""
    scaled = latents / vae.config["scaling_factor"] + vae.config["shift_factor"]
    return torch.cat([(vae.decode(part).sample / 2 + 0.5).clamp(0, 1) for part in scaled.split(50)])


def psnr(a: Tensor, b: Tensor) -> dict[str, float]:
    """Mean over the pictures, and its standard error."""
    values = -10 * (a - b).square().mean((1, 2, 3)).log10()
    return {
        "mean": round(float(values.mean()), 2),
        "standard_error": round(float(values.std() / len(values) ** 0.5), 2),
    }


@torch.no_grad()
def measure(count: int, small_model: str) -> dict[str, Any]:
    large, small = load_pipeline("tiny-flux"), load_pipeline(small_model)
    for pipe in (large, small):
        pipe.set_progress_bar_config(disable=True)
    call = call_arguments("tiny-flux", {})
    captions = [scene.caption for scene in scenes.sample(count, SEED, "heldout")]
    latents = {"tiny-flux": latents_of(large, captions, call), "nano-flux": latents_of(small, captions, call)}
    decoders, judge = {"own": large.vae, "light": small.vae}, Judge()
    drawn = {
        f"{model}, {name} decoder": pictures(vae, found)
        for model, found in latents.items()
        for name, vae in decoders.items()
    }
    whole = drawn["tiny-flux, own decoder"]
    return {
        "made_with": made_with(),
        "captions": count,
        "operations": operations(large, small, call),
        "velocity_db": velocities(large, small, call, captions[:32]),
        "psnr_to_tiny_flux": {name: psnr(images, whole) for name, images in drawn.items() if images is not whole},
        "right": {name: asdict(judge.judge(images, captions)) for name, images in drawn.items()},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions", type=int, default=200)
    parser.add_argument("--small", default="nano-flux", help="folder of another small model")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.write_text(json.dumps(measure(arguments.captions, arguments.small), indent=1) + "\n")
