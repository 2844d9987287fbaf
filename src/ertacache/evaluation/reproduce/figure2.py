"""The paper's Figure 2: TeaCache's predicted changes against the true ones, and the trajectories of cached runs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ertacache.baselines.baseline import Bench
from ertacache.baselines.ertacache import AdjustedTimesteps
from ertacache.baselines.teacache import TeaCache
from ertacache.baselines.teacache_calibration import Calibration, record_changes
from ertacache.calibration.candidates import STRENGTHS, evaluate
from ertacache.calibration.method import Method
from ertacache.calibration.pipeline_run import run_pipeline
from ertacache.calibration.progress import run_progress
from ertacache.calibration.prompts import Prompts
from ertacache.evaluation.evaluate import Timed
from ertacache.evaluation.reproduce.entrants import entrants
from ertacache.evaluation.reproduce.figure2_plot import draw_changes, draw_plane
from ertacache.evaluation.reproduce.figure_plan import bench_of, cached_plan
from ertacache.evaluation.reproduce.kept import kept, kept_profile
from ertacache.evaluation.reproduce.paper_figures import teacache
from ertacache.evaluation.reproduce.principal_plane import principal_plane
from ertacache.evaluation.reproduce.request import Ready, Request
from ertacache.profile.profile import Profile
from ertacache.runtime.player import Player
from ertacache.runtime.run import Controller
from ertacache.runtime.run_stats import RunStats

#: Prompts whose trajectories are drawn.
_DRAWN = 3


def measure(ready: Ready, request: Request) -> dict[str, Any]:
    """Both parts, each kept in the folder as soon as it is there."""
    expected = 60 + len(ready.prompts)
    with run_progress(title="figure2", expected=expected) as progress:
        bench = bench_of(ready, progress)
        changes = kept(request.out / "changes.json", lambda: changes_of(ready, bench))
        return {**changes, **kept(request.out / "trajectories.json", lambda: trajectories(ready, request, bench))}


def changes_of(ready: Ready, bench: Bench) -> dict[str, Any]:
    """TeaCache's polynomial and, for each prompt and step, the true and the predicted relative l1 change.

    Raises:
        CalibrationError: too few steps to fit the polynomial.
        UnsupportedPipeline: TeaCache's signal is not known for the denoiser.
    """
    row = teacache(ready.setting.tables["figure2"])
    method = cast(TeaCache, entrants([row], ready, "output")[0].method)
    coefficients = method.calibrated(bench).coefficients or ()
    held = replace(bench, prompts=Prompts(ready.prompts, ready.seed))
    found = Calibration(coefficients, *record_changes(held, len(ready.prompts)))
    return {"published": method.coefficients is not None, **found.to_json()}


def trajectories(ready: Ready, request: Request, bench: Bench) -> dict[str, Any]:
    """The latents of a few prompts, uncached, cached and cached on the adjusted grid, each in a plane of its own."""
    cached = cached_plan(ready, request, bench)
    plans: dict[str, Profile | None] = {"uncached": None, "cached": cached}
    refused = AdjustedTimesteps().refusal(ready.pipe, ready.call)
    if refused is None:
        plans["adjusted"] = kept_profile(request.out / "adjusted.safetensors", lambda: adjusted_plan(cached, bench))
    adjusted = plans.get("adjusted")
    return {
        "K": cached.schedule.K,
        "schedule": str(cached.schedule),
        "strength": adjusted.provenance.method["strength"] if adjusted else None,
        "refused": refused,
        "planes": [
            _plane(one.texts[0], {name: trajectory(ready, one, plan, bench.progress) for name, plan in plans.items()})
            for one in Prompts(ready.prompts, ready.seed).first(_DRAWN).batches(1)
        ],
    }


def adjusted_plan(cached: Profile, bench: Bench) -> Profile:
    """The same plan on the adjusted grid, at the strength above 0 that measures best on calibration prompts."""
    method = Method("residual", cached.site, schedule=cached.schedule, levels=0)
    found = [evaluate(bench.calibrator, replace(method, strength=strength)) for strength in STRENGTHS if strength]
    return min(found, key=lambda candidate: candidate.deviation).profile


def trajectory(ready: Ready, prompt: Prompts, plan: Profile | None, progress: Callable[[str], None]) -> Tensor:
    """Every latent [T+1, *] of one prompt's run, float32 on the CPU."""
    inner = Controller() if plan is None else Player(plan, RunStats(), keep_nan=True)
    timed = Timed(inner)
    hidden = plan is not None and plan.site == "hidden"
    run_pipeline(ready.pipe, prompt, timed, ready.call, hidden=hidden, decode=False)
    progress("trajectory")
    return torch.stack(timed.trajectory)[:, 0]


def _plane(prompt: str, runs: dict[str, Tensor]) -> dict[str, Any]:
    """Coordinates of the latents, and how far each is from the uncached run's before the same step."""
    places, shares = principal_plane(list(runs.values()))
    true = runs["uncached"].double().flatten(1)
    apart = {name: (run.double().flatten(1) - true).norm(dim=1) / true.norm(dim=1) for name, run in runs.items()}
    return {
        "prompt": prompt,
        "shares": shares.tolist(),
        "curves": {name: place.tolist() for name, place in zip(runs, places, strict=True)},
        "distance": {name: values.tolist() for name, values in apart.items() if name != "uncached"},
    }


def tell(document: dict[str, Any]) -> list[str]:
    """How wrong TeaCache's prediction is, and where the trajectories end."""
    source = "published" if document["published"] else "fitted on the calibration prompts"
    lines = [f"(a) TeaCache's polynomial, {source}; relative l1 per step, mean over prompts and steps"]
    for name, context in document["contexts"].items():
        truth, predicted = (torch.tensor(context[key]) for key in ("truth", "predicted"))
        error = (predicted - truth).abs().mean()
        lines.append(f"    {name}: true {truth.mean():.4f}, predicted {predicted.mean():.4f}, apart {error:.4f}")
    lines.append(f"(b) {document['K']} of {document['T']} steps computed; relative distance from the uncached end")
    for plane in document["planes"]:
        ends = ", ".join(f"{name} {values[-1]:.4f}" for name, values in plane["distance"].items())
        lines.append(f"    {ends}: {plane['prompt']}")
    if document["refused"]:
        lines.append(f"the adjusted grid is not shown: {document['refused']}")
    return lines


def draw(document: dict[str, Any], folder: Path) -> Any:
    """(a) above, one plane of (b) for each prompt below."""
    from matplotlib.figure import Figure

    planes = document["planes"]
    figure: Any = Figure(figsize=(10, 7.2), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.15))
    draw_changes(top, document)
    places = bottom.subplots(1, len(planes), squeeze=False)[0]
    for axes, plane in zip(places, planes, strict=True):
        draw_plane(axes, document, plane)
    handles, labels = places[0].get_legend_handles_labels()
    bottom.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    return figure
