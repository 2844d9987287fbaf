"""For tests of `ertacache reproduce`: a comparison's folder with figures known by hand, and a model that is small."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ertacache.evaluation.comparison.entrant import Entrant
from ertacache.evaluation.comparison.job import Job
from ertacache.evaluation.reproduce import request as requests
from ertacache.evaluation.reproduce.request import Request
from pipelines import CALL, PROMPTS, flux

#: Seconds of a whole call without cache; entrant number n (from 1) takes 1 / (n + 1) of it.
SECONDS = 12.0
#: Of `small_request`.
SMALL_CALL: dict[str, Any] = {**CALL, "height": 32, "width": 32, "num_inference_steps": 6}


def write_comparison(
    entrants: Sequence[Entrant],
    job: Job,
    out: Path,
    *,
    peak_bytes: int | None = None,
    rows: int | None = None,
    refused: str = "",
    idle: str = "",
    cost: float | None = None,
) -> Path:
    """Entrant n (from 1) has psnr 20 + n + prompt, ssim 0.9, cost 1 / (n + 1), half of the denoiser calls.

    Args:
        rows: only the first of them, as a run that was cut off leaves.
        refused: id of an entrant that cannot run.
        idle: id of one whose latents equal those without cache.
        cost: of every entrant, instead.
    """
    out.mkdir(parents=True, exist_ok=True)
    T = job.T
    header = {
        "kind": "header", "model": job.model, "prompts": list(job.prompts), "seed": job.seed, "seeds": job.seeds,
        "T": T, "call": job.call, "costs": list(job.costs), "metrics": ["psnr", "ssim", "latent_error"],
        "missing_metrics": {"lpips": "no AlexNet weights", "clip_image": "no CLIP"}, "video": False,
        "versions": {"torch": "2"}, "machine": "test machine", "sigmas": [1 - i / T for i in range(T + 1)],
    }  # fmt: skip
    facts = [{"id": "no-cache", "method": "no-cache", "title": "no cache", "settings": {}, "target": None}]
    facts += [
        {"id": e.id, "method": e.method.key, "title": e.method.title, "settings": _settings(e), "target": e.target}
        for e in entrants
    ]
    for fact in facts:
        fact |= {"paper": "", "work": "", "batch": "", "tuned_cost": None}
        fact["refusal"] = "it is refused" if fact["id"] == refused else None
    lines: list[dict[str, Any]] = []
    times: list[dict[str, Any]] = []
    for seed in range(job.seeds):
        for prompt in range(len(job.prompts)):
            for n, fact in enumerate(facts):
                if fact["refusal"] is None:
                    key = {"entrant": fact["id"], "prompt": prompt, "seed": seed}
                    row = _row(n, prompt, T)
                    row["latent_error"] = -99.0 if fact["id"] in (idle, "no-cache") else -2.0
                    if cost is not None and n:
                        row["cost"] = cost
                    lines.append({**key, **row})
                    seconds = (SECONDS + prompt) / (n + 1)
                    peak = None if peak_bytes is None else peak_bytes + n * 2**20
                    times.append(
                        {**key, "seconds": seconds / 2, "image_seconds": seconds, "peak_bytes": peak}
                    )  # fmt: skip
    (out / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [header, *lines[:rows]]))
    (out / "timings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in times[:rows]))
    (out / "entrants.json").write_text(json.dumps({"entrants": facts}))
    return out


def _row(n: int, prompt: int, T: int) -> dict[str, Any]:
    calls = T if n == 0 else T // 2
    return {
        "kind": "row", "psnr": 100.0 if n == 0 else 20.0 + n + prompt, "ssim": 1.0 if n == 0 else 0.9,
        "cost": 1 / (n + 1), "steps": T, "denoiser_calls": calls,
        "block_calls": calls, "attention_calls": calls, "step_cost": [1.0] * T, "sigmas": None, "decomposition": None,
        "sample": None,
    }  # fmt: skip


def _settings(entrant: Entrant) -> dict[str, Any]:
    method = entrant.method
    return {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}


def small_request(monkeypatch: pytest.MonkeyPatch, folder: Path, table: str, **changes: Any) -> Request:
    """A figure of 2 prompts on a random pipeline of 6 steps, calibrated on 4 others; it is loaded under tiny-flux."""
    monkeypatch.setattr(requests, "load", lambda setting, device, dtype, offload: flux())
    monkeypatch.setattr(requests, "call_arguments", lambda source, overrides: dict(SMALL_CALL))
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    request = Request(table, "tiny-flux", folder / "out", count=2, calibration_prompts=folder / "prompts.txt")
    return dataclasses.replace(request, **changes)
