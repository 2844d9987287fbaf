"""A result file of an ablation, made up."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

HOSTILE = "</script><script>alert(1)</script> \"'><img src=x onerror=alert(2)> \u2028 & end"
PROMPTS = [HOSTILE, "a red circle above a blue square"]
T = 4


def stat(mean: float) -> dict[str, Any]:
    return {"mean": mean, "std": 0.5, "values": [mean - 0.5, mean + 0.5]}


def make_row(label: str, stage: str, mask: str, psnr: float, **changes: Any) -> dict[str, Any]:
    steps = len(mask)
    K = mask.count("#")
    return {
        "id": label,
        "group": "tiny cfg 7",
        "label": label,
        "site": "output",
        "basis": "residual",
        "stage": stage,
        "K": K,
        "T": T,
        "budget": K,
        "schedule": mask,
        "threshold": None,
        "strength": None,
        "calls": {"cond": K, "uncond": K},
        "psnr": stat(psnr),
        "ssim": stat(0.5 + psnr / 200),
        "latent_error": 0.25,
        "denoise_seconds": K / 10,
        "image_seconds": K / 10 + 0.05,
        "extra_bytes": 3072,
        "sigmas": [1 - i / steps for i in range(steps + 1)],
        "decomposition": {
            "feature_shift": [0.1] * steps,
            "amplified": [0.02] * steps,
            "deviation": [0.03 * i for i in range(steps + 1)],
        },
        "samples": [],
    } | changes


def default_rows() -> list[dict[str, Any]]:
    bare = {"site": None, "basis": None, "decomposition": None, "extra_bytes": 0}
    return [
        make_row("no cache", "no cache", "####", 100.0, **bare, budget=None, samples=["s/none-0.png"]),
        make_row("fewer <steps>", "fewer steps", "##", 20.0, **bare),
        make_row("residual, uniform", "uniform", "#..#", 24.0, samples=["s/uniform-0.png"]),
        make_row("residual, moved", "+ timesteps", "#..#", 23.0, sigmas=[1.0, 0.7, 0.6, 0.4, 0.0], threshold=0.125),
        make_row("residual, three", "uniform", "#.##", 31.0),
        make_row("other group", "uniform", "##.#", 30.0, group="tiny & other"),
    ]


def write(folder: Path, rows: list[dict[str, Any]] | None = None) -> Path:
    header = {
        "kind": "header",
        "model": "tiny-flux",
        "prompts": PROMPTS,
        "seed": 11,
        "versions": {"ertacache": "0.1.0"},
        "machine": "two cores",
        "call": {"guidance_scale": 7.0},
        "T": T,
    }
    (folder / "s").mkdir(exist_ok=True)
    Image.new("RGB", (8, 8), (100, 100, 100)).save(folder / "s" / "none-0.png")
    Image.new("RGB", (8, 8), (110, 20, 100)).save(folder / "s" / "uniform-0.png")
    lines = [json.dumps(line, ensure_ascii=False) for line in [header, *(rows or default_rows())]]
    path = folder / "results.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
