"""Folders as `ertacache compare` writes them, without a model: a small one to count on, a large one to look at."""

import json
import math
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ertacache.evaluation.sample_files import save_clip_sample

PROMPTS = ["a red circle", "a blue square"]
T = 4
GRID = [1.0, 0.75, 0.5, 0.25, 0.0]


@dataclass
class FakeComparison:
    """What the files hold, to be changed before it is written."""

    header: dict[str, Any]
    entrants: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    rows: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    timings: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    l1: dict[str, Any] | None = None

    def of(self, entrant: str) -> list[dict[str, Any]]:
        """The rows of an entrant."""
        return [row for row in self.rows if row["entrant"] == entrant]

    def add(self, row: dict[str, Any], seconds: float, peak: int | None = None) -> None:
        """A row with its times."""
        self.rows.append(row)
        times = {"seconds": seconds, "image_seconds": seconds + 0.1, "peak_bytes": peak}
        self.timings.append({key: row[key] for key in ("entrant", "prompt", "seed")} | times)

    def write(self, folder: Path) -> Path:
        """Write everything but the samples."""
        folder.mkdir(parents=True, exist_ok=True)
        write_lines(folder / "results.jsonl", [self.header, *self.rows])
        write_lines(folder / "timings.jsonl", self.timings)
        (folder / "entrants.json").write_text(json.dumps({"entrants": self.entrants}, indent=1), encoding="utf-8")
        if self.l1 is not None:
            (folder / "l1.json").write_text(json.dumps(self.l1), encoding="utf-8")
        return folder


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def make_header(**changes: Any) -> dict[str, Any]:
    return {
        "kind": "header",
        "model": "tiny-flux",
        "prompts": PROMPTS,
        "seed": 10_000,
        "seeds": 1,
        "T": T,
        "call": {"guidance_scale": 7.0, "num_inference_steps": T},
        "costs": [0.5],
        "metrics": ["psnr", "ssim", "latent_error"],
        "missing_metrics": {"lpips": "no AlexNet weights: pass them"},
        "video": False,
        "versions": {"torch": "2.9"},
        "machine": "two cores",
        "sigmas": GRID,
    } | changes


def make_entrant(method: str, title: str, target: float | None = 0.5, **changes: Any) -> dict[str, Any]:
    return {
        "id": method if target is None else f"{method}@{target:g}",
        "method": method,
        "title": title,
        "paper": f"paper of {title}",
        "work": f"work of {title}",
        "batch": "",
        "target": target,
        "tuned_cost": target,
        "settings": {"threshold": 0.25, "ratios": [1.0] * 9, "first": None},
        "refusal": None,
    } | changes


def make_row(entrant: str, prompt: int, step_cost: list[float], psnr: float, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "row",
        "entrant": entrant,
        "prompt": prompt,
        "seed": 0,
        "psnr": psnr,
        "ssim": round(0.5 + psnr / 200, 6),
        "latent_error": -psnr / 10,
        "cost": round(sum(step_cost) / T, 6),
        "steps": len(step_cost),
        "denoiser_calls": sum(cost > 0.5 for cost in step_cost),
        "block_calls": 6 * sum(cost > 0.5 for cost in step_cost),
        "attention_calls": 5 * sum(cost > 0.5 for cost in step_cost),
        "step_cost": step_cost,
        "sigmas": None,
        "decomposition": None,
        "sample": None,
    } | changes


def small() -> FakeComparison:
    """Five entrants at one cost (one refused, one that missed it), one as published, two prompts, T = 4."""
    fake = FakeComparison(make_header())
    fake.entrants = [
        make_entrant("no-cache", "no cache", None, tuned_cost=None, settings={}),
        make_entrant("fewer-steps", "fewer steps"),
        make_entrant("uniform", "uniform, residual reuse"),
        make_entrant("teacache", "TeaCache"),
        make_entrant("pab", "PAB", refusal="its blocks are not known"),
        make_entrant("fitted", "fitted (ours)"),
        make_entrant("teacache", "TeaCache", None, id="teacache:very-slow", settings={"threshold": 0.1}),
    ]
    parts = {"feature_shift": [0.0, 0.3, 0.0, 0.4], "amplified": [0.0, 0.1, 0.0, 0.1]}
    errors = {**parts, "deviation": [0.0, 0.0, 0.1, 0.1, 0.2]}
    for prompt in range(2):
        worse = float(prompt)  # the second prompt loses 1 dB
        at = (prompt,)
        equal = {"ssim": 1.0, "latent_error": -99.0}
        fake.add(make_row("no-cache", *at, [1.0] * 4, 100.0, **equal), 4.0, 2**30)
        fake.add(make_row("fewer-steps@0.5", *at, [1.0, 1.0], 30.0 - worse, sigmas=[1.0, 0.5, 0.0]), 2.0, 2**30)
        fake.add(make_row("uniform@0.5", *at, [1.0, 0.0, 1.0, 0.0], 32.0 - worse), 2.0, 2**30)
        adaptive = [[1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 1.0, 0.5]][prompt]
        fake.add(make_row("teacache@0.5", *at, adaptive, 28.0 - worse), 2.5, 2**30)
        fitted = {"decomposition": errors if prompt == 0 else None}
        fake.add(make_row("fitted@0.5", *at, [1.0, 0.02, 0.98, 0.02], 36.0 - 2 * worse, **fitted), 2.0 - worse, 2**31)
        fake.add(make_row("teacache:very-slow", *at, [1.0, 1.0, 1.0, 0.25], 40.0 - worse), 3.0, 2**30)
    return fake


def with_pictures(fake: FakeComparison, folder: Path) -> Path:
    """Write it with 8 × 8 samples of the first prompt: no cache (100, 100, 100), fitted (110, 20, 100)."""
    colours = {"no-cache": (100, 100, 100), "fitted@0.5": (110, 20, 100)}
    (folder / "samples").mkdir(parents=True)
    for entrant, colour in colours.items():
        name = f"samples/{entrant}-0-0.webp"
        fake.of(entrant)[0]["sample"] = name
        Image.new("RGB", (8, 8), colour).save(folder / name, lossless=True)
    return fake.write(folder)


def with_clips(fake: FakeComparison, folder: Path) -> Path:
    """Write it with clips of 9 frames, 32 × 32, each of one grey: no cache 40, 50, ... 120; fitted 10 more.

    The PSNR of frame f of every other row is the row's own minus f.
    """
    fake.header["video"] = True
    for row in fake.rows:
        row["frame_psnr"] = [row["psnr"] - (row["entrant"] != "no-cache") * f for f in range(9)]
    for entrant, start in (("no-cache", 40), ("fitted@0.5", 50)):
        name = f"samples/{entrant}-0-0.webp"
        fake.of(entrant)[0]["sample"] = name
        frames = torch.tensor([(start + 10 * n) / 255 for n in range(9)])
        save_clip_sample(frames.view(9, 1, 1, 1).expand(-1, 3, 32, 32), folder / name)
    return fake.write(folder)


_LARGE = {
    "fewer-steps": "fewer steps", "uniform-reuse": "uniform, plain reuse", "uniform": "uniform, residual reuse",
    "uniform-hidden": "uniform, hidden residual", "uniform-extrapolation": "uniform, order-1 extrapolation",
    "teacache": "TeaCache", "magcache": "MagCache (diffusers)", "first-block-cache": "FirstBlockCache (diffusers)",
    "taylorseer": "TaylorSeer (diffusers)", "pab": "PAB", "fastercache": "FasterCache", "delta-dit": "Δ-DiT",
    "t-gate": "T-GATE", "profiling-dit": "ProfilingDiT", "cfg-cache": "CFG-Cache", "toca": "ToCa",
    "seacache": "SeaCache",
    "l2p": "L2P", "adacache": "AdaCache", "easycache": "EasyCache", "ertacache-policy": "ERTACache: offline policy",
    "ertacache-timesteps": "ERTACache: policy + timesteps", "ertacache": "ERTACache",
    "ertacache-hidden": "ERTACache, hidden residual", "fitted-policy": "fitted, on the policy's schedule",
    "fitted": "fitted (ours)",
}  # fmt: skip


def large(folder: Path, *, prompts: int = 16, samples: int = 6, side: int = 64, video: bool = False) -> Path:
    """26 methods at two costs and some published settings on T = 30, with noisy samples: to look at."""
    rng, noise = random.Random(7), np.random.default_rng(7)
    steps = 30
    sigmas = [round(1 - (i / steps) ** 1.5, 6) for i in range(steps + 1)]
    call = {"guidance_scale": 7.0, "num_inference_steps": steps}
    fake = FakeComparison(make_header(T=steps, costs=[0.5, 0.33], call=call, sigmas=sigmas))
    names = ["psnr", "ssim", "ms_ssim", "clip_text", "latent_error"]
    fake.header |= {"prompts": [f"a {n} red circle at the top left on a dotted background" for n in range(prompts)]}
    fake.header |= {"metrics": names + ["flicker"] * video, "video": video}
    entrants = [
        make_entrant(m, title, c, tuned_cost=round(c + 0.01, 3)) for c in (0.5, 0.33) for m, title in _LARGE.items()
    ]
    for entrant in entrants:
        if entrant["method"] in ("toca", "adacache"):
            entrant["refusal"] = "it needs a video model, and FluxTransformer2DModel makes single pictures"
    for method, name in (("teacache", "slow"), ("teacache", "fast"), ("magcache", "slow"), ("pab", "published")):
        entrants.append(make_entrant(method, _LARGE[method], None, id=f"{method}:{name}"))
    fake.entrants = [make_entrant("no-cache", "no cache", None, tuned_cost=None, settings={}), *entrants]
    fake.l1 = {"contexts": {"cond": _curves(rng, steps)}}
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    quality = {e["id"]: rng.gauss(31, 4) - 9 * (e["target"] == 0.33) for e in fake.entrants}
    for prompt in range(prompts):
        picture = noise.uniform(60, 190, (4, 4, 3)).repeat(side // 4, 0).repeat(side // 4, 1)
        picture = picture + noise.normal(0, 6, (side, side, 3))
        for entrant in fake.entrants:
            if entrant["refusal"] is None:
                _add_large(fake, entrant, prompt, quality[entrant["id"]], rng)
                if prompt < samples:
                    error = 0 if entrant["id"] == "no-cache" else 255 * 10 ** (-quality[entrant["id"]] / 20)
                    _save(fake.rows[-1], picture + error * noise.normal(0, 1, picture.shape), folder, video)
    return fake.write(folder)


def _add_large(fake: FakeComparison, entrant: dict[str, Any], prompt: int, psnr: float, rng: random.Random) -> None:
    target, method = entrant["target"] or rng.choice([0.4, 0.6]), entrant["method"]
    steps, plain = fake.header["T"], method == "no-cache"
    if method == "toca" or (method == "delta-dit" and target == 0.33):
        target = 0.47
    shift = rng.choice([-1, 0, 1]) if method in ("teacache", "easycache") else 0
    count = steps if plain else round(target * steps) + shift
    costs = [0.01] * steps
    for i in range(count):
        costs[round(i * (steps - 1) / (count - 1))] = 1.0
    if method in ("pab", "fastercache", "delta-dit"):
        costs = [1.0 if i % 5 == 0 else round((target - 0.2) / 0.8, 3) for i in range(steps)]
    if method == "fewer-steps":
        costs = [1.0] * count
    psnr = 100.0 if plain else psnr + rng.gauss(0, 2)
    changes: dict[str, Any] = {"cost": round(sum(costs) / steps, 5), "ms_ssim": 0.5 + psnr / 210, "clip_text": 0.3}
    changes["clip_text"] = 0.3 + (0 if plain else rng.gauss(-0.01, 0.004))
    if "flicker" in fake.header["metrics"]:
        changes["flicker"] = 0.01
        changes["frame_psnr"] = [100.0 if plain else psnr + rng.gauss(0, 0.4) - f / 8 for f in range(16)]
    if plain:
        changes |= {"ssim": 1.0, "latent_error": -99.0}
    if method in ("fewer-steps", "ertacache", "ertacache-timesteps"):
        changes["sigmas"] = [1 - (i / len(costs)) ** 1.3 for i in range(len(costs) + 1)]
    elif not plain and prompt < 6:
        shift_of = [abs(rng.gauss(0, 0.2)) for _ in costs]
        deviation = [0.004 * i * (40 - psnr) / 10 for i in range(len(costs) + 1)]
        tables = {"feature_shift": shift_of, "amplified": [x / steps for x in shift_of], "deviation": deviation}
        changes["decomposition"] = {name: [round(x, 6) for x in table] for name, table in tables.items()}
    row = make_row(entrant["id"], prompt, costs, psnr, **changes)
    fake.add(row, 0.2 + 3 * row["cost"] * rng.uniform(0.97, 1.05), round(2.1e9 + 1e8 * rng.random()))


def _save(row: dict[str, Any], picture: np.ndarray, folder: Path, video: bool) -> None:
    stem = f"samples/{row['entrant'].replace('@', '-').replace(':', '-')}-{row['prompt']}-0"
    row["sample"] = f"{stem}.webp"
    if not video:
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / row["sample"], lossless=True)
        return
    frames = np.stack([np.roll(picture, 2 * n, 1) for n in range(16)])
    save_clip_sample(torch.from_numpy(frames / 255).clamp(0, 1).movedim(-1, 1), folder / row["sample"])


def _curves(rng: random.Random, steps: int) -> dict[str, Any]:
    truth = [[0.05 + 0.3 * math.exp(-i / 4) + 0.01 * rng.random() for i in range(1, steps)] for _ in range(8)]
    predicted = [[value * 0.9 + 0.01 + 0.02 * rng.random() for value in row] for row in truth]
    return {"distances": truth, "truth": truth, "predicted": predicted}
