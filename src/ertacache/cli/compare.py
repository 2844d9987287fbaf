"""What `ertacache compare` does, returning plain results; the command line only parses and prints."""

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

from ertacache.errors import InvalidArgument
from ertacache.extras import require

PUBLISHED = "published"


def list_methods() -> dict[str, Any]:
    """Every method with its source and what it counts as work."""
    from ertacache.baselines.catalogue import METHODS

    rows = [
        {"method": method.key, "title": method.title, "paper": method.paper, "work": method.work} for method in METHODS
    ]
    text = "\n".join(f"{row['method']:<22} {row['title']}; {row['paper']}; still runs: {row['work']}" for row in rows)
    return {"methods": rows, "text": text}


def compare(
    model: str,
    methods: str,
    match_cost: str,
    prompts: Path | None,
    calibration_prompts: Path | None,
    out: Path,
    metrics: str | None,
    job: dict[str, Any],
    call: dict[str, Any],
    device: str,
    dtype: str,
    offload_history: str | None = None,
) -> dict[str, Any]:
    """Compare, and write the report; returns its place and one line per entrant."""
    require("the report of a comparison", "jinja2")
    from ertacache.baselines import catalogue as baselines
    from ertacache.baselines.profile_method import ProfileMethod
    from ertacache.cli.commands import prompts_of
    from ertacache.core.offload import check_offload
    from ertacache.evaluation.comparison.entrant import entrants_at, published_entrants
    from ertacache.evaluation.comparison.job import Job
    from ertacache.evaluation.comparison.run import run_comparison
    from ertacache.evaluation.report.comparison import write_comparison_report
    from ertacache.pipelines import bundled
    from ertacache.pipelines.loading import call_arguments, load_pipeline

    offload, costs = check_offload(offload_history), _costs(match_cost)
    chosen = [
        replace(method, offload_history=offload) if isinstance(method, ProfileMethod) else method
        for method in baselines.methods(methods)
    ]
    held = prompts_of(model, prompts, bundled.heldout_prompts, "--prompts")
    texts = prompts_of(model, calibration_prompts, bundled.calibration_prompts, "--calibration-prompts")
    pipe = load_pipeline(model, device, dtype)
    arguments = with_steps(pipe, call_arguments(model, call))
    entrants = entrants_at(chosen, costs) if costs else published_entrants(chosen, pipe)
    if not entrants:
        raise InvalidArgument(
            f"none of {methods} has published settings for this denoiser; give costs to match instead"
        )
    names = None if metrics is None else [name.strip() for name in metrics.split(",")]
    run_comparison(
        pipe, entrants, Job(tuple(held), tuple(texts), arguments, model, costs=costs, **job), out, metrics=names
    )
    report = write_comparison_report(out)
    return {"out": str(out), "report": str(report), **summary(out)}


def with_steps(pipe: Any, call: dict[str, Any]) -> dict[str, Any]:
    """The call with its number of steps, which is the pipeline's default where nobody said."""
    default = inspect.signature(pipe.__call__).parameters["num_inference_steps"].default
    return {"num_inference_steps": default, **call}


def summary(folder: Path) -> dict[str, Any]:
    """One line per entrant, for the terminal and for programs."""
    from ertacache.evaluation.report.comparison_file import read_comparison

    found = read_comparison(folder)
    rows: list[dict[str, Any]] = []
    lines = [f"{'method':<32} {'cost':>6} {'calls':>6} {'PSNR':>7} {'speed-up':>9}"]
    for section in found.sections:
        lines.append("published settings" if section.target is None else f"cost {section.target:g}")
        for result in section.results:
            speedup = result.speedup.median if result.speedup else None
            calls = result.stat(lambda row: row.denoiser_calls).mean
            row = {"id": result.entrant.id, "cost": result.cost.mean, "denoiser_calls": calls, "speedup": speedup}
            rows.append({**row, **{name: result.metric(name).mean for name in found.header.metrics}})
            shown = "" if speedup is None else f"{speedup:.2f}×"
            figures = f"{result.cost.mean:>6.3f} {calls:>6.1f} {result.psnr.mean:>7.2f} {shown:>9}"
            lines.append(f"  {result.entrant.label:<30} {figures}")
        for entrant in section.absent:
            rows.append({"id": entrant.id, "refusal": entrant.refusal})
            lines.append(f"  {entrant.label:<30} not run: {entrant.refusal}")
    return {"rows": rows, "text": "\n".join([*lines, str(folder / "report.html")])}


def _costs(text: str) -> tuple[float, ...]:
    if text == PUBLISHED:
        return ()
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InvalidArgument(
            f"match-cost is {text!r}; give shares of the uncached run separated by commas, such as .5,.33, or "
            f"{PUBLISHED}"
        ) from error
