"""`ertacache compare`: many methods at equal counted compute."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ertacache.cli import options as given
from ertacache.cli.command import shows_progress
from ertacache.extras import require

_PUBLISHED = "published"


def compare(
    model: Annotated[str, typer.Option(help="Bundled model, diffusers folder or Hub id.")] = "tiny-flux",
    methods: Annotated[str, typer.Option(help="Names separated by commas, or all; --list prints them.")] = "all",
    match_cost: Annotated[
        str,
        typer.Option(help="Shares of the uncached run to tune every method to, or published: settings as they are."),
    ] = ".5,.33",
    prompts: given.PromptFile = None,
    calibration_prompts: given.CalibrationFile = None,
    seeds: Annotated[
        int, typer.Option(callback=given.whole(1), help="Runs of every prompt, each from noise of its own.")
    ] = 1,
    out: Annotated[Path, typer.Option(help="Folder for results, samples and report.html.")] = Path("out/compare"),
    metrics: Annotated[str | None, typer.Option(help="Names separated by commas; all that can be computed.")] = None,
    samples: given.Samples = 6,
    batch_size: given.BatchSize = None,
    offload_history: given.History = None,
    list_methods: Annotated[bool, typer.Option("--list", help="Print every method with its source, and stop.")] = False,
    seed: given.Seed = 10_000,
    *,
    call: dict[str, Any],
    placement: given.Placement,
    spread: given.Spread,
) -> dict[str, Any]:
    """Run many methods at equal counted compute on held-out prompts; resumes where it was cut off."""
    if list_methods:
        return _methods()
    require("the report of a comparison", "jinja2")
    costs, names = _costs(match_cost), None if metrics is None else [name.strip() for name in metrics.split(",")]
    chosen = _chosen(methods, costs, names, offload_history)
    files = (prompts, calibration_prompts)
    job = {"costs": costs, "seeds": seeds, "seed": seed, "samples": samples, "batch_size": batch_size}
    return _run(model, chosen, files, out, names, job, call, placement, spread)


def _run(
    model: str,
    methods: Sequence[Any],
    files: tuple[Path | None, Path | None],
    out: Path,
    metrics: Sequence[str] | None,
    job: dict[str, Any],
    call: dict[str, Any],
    placement: given.Placement,
    spread: given.Spread,
) -> dict[str, Any]:
    """Check, load, compare, report."""
    from ertacache.cli.model import check, held_out, load
    from ertacache.cli.spread import check_spread, spread_over
    from ertacache.errors import InvalidArgument
    from ertacache.evaluation.comparison.entrant import entrants_at, published_entrants
    from ertacache.evaluation.comparison.job import Job
    from ertacache.evaluation.comparison.run import run_comparison
    from ertacache.evaluation.report.comparison import write_comparison_report
    from ertacache.pipelines.loading import call_arguments, with_steps
    from ertacache.runtime.folder_lock import check_results

    check_spread(spread, placement)
    check(model, placement)
    held, texts = held_out(model, *files)
    check_results(out)
    pipe = load(model, placement)
    arguments = with_steps(pipe, call_arguments(model, call))
    costs = job["costs"]
    entrants = entrants_at(methods, costs) if costs else published_entrants(methods, pipe)
    if not entrants:
        names = ",".join(method.key for method in methods)
        raise InvalidArgument(f"none of {names} has published settings for this denoiser; give costs with --match-cost")
    prepared = Job(tuple(held), tuple(texts), arguments, model, **job)
    with spread_over(model, spread) as actors:
        run_comparison(pipe, entrants, prepared, out, metrics=metrics, map=actors, show_progress=shows_progress())
    report = write_comparison_report(out)
    return {"out": str(out), "report": str(report), **_summary(out)}


def _chosen(
    methods: str, costs: Sequence[float], metrics: Sequence[str] | None, offload_history: str | None
) -> list[Any]:
    """The methods by name; refuses everything that can be wrong without the model."""
    from ertacache.baselines import catalogue
    from ertacache.baselines.profile_method import ProfileMethod
    from ertacache.core.offload import check_offload
    from ertacache.evaluation.comparison.entrant import entrants_at
    from ertacache.metrics import SampleMetrics

    offload = check_offload(offload_history)
    chosen = [
        replace(method, offload_history=offload) if isinstance(method, ProfileMethod) else method
        for method in catalogue.methods(methods)
    ]
    entrants_at(chosen, costs)
    SampleMetrics(metrics or ())
    return chosen


def _methods() -> dict[str, Any]:
    """Every method with its source and what it counts as work."""
    from ertacache.baselines.catalogue import METHODS

    rows = [
        {"method": method.key, "title": method.title, "paper": method.paper, "work": method.work} for method in METHODS
    ]
    text = "\n".join(f"{row['method']:<22} {row['title']}; {row['paper']}; still runs: {row['work']}" for row in rows)
    return {"methods": rows, "text": text}


def _summary(folder: Path) -> dict[str, Any]:
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
    from ertacache.errors import InvalidArgument

    if text == _PUBLISHED:
        return ()
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InvalidArgument(
            f"--match-cost is {text!r}; give shares of the uncached run separated by commas, such as .5,.33, or "
            f"{_PUBLISHED}"
        ) from error
