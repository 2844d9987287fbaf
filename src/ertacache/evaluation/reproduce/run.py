"""One reproduction: the comparison of a table's rows, and the table."""

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from ertacache.evaluation.reproduce.paper_figures import PrintedRow, printed_rows
from ertacache.evaluation.reproduce.request import Ready, Request, prepare, write
from ertacache.evaluation.reproduce.settings import FIGURE5, setting_of

if TYPE_CHECKING:
    from ertacache.evaluation.comparison.entrant import Entrant


def reproduce(request: Request) -> dict[str, Any]:
    """Run a table or the figure; an interrupted one goes on where it stopped.

    Returns:
        The document of `table.build` or `figure5.run_figure`, with `text`.

    Raises:
        InvalidArgument: a table that the paper lacks for the model, no prompts, or too little memory; nothing has
            been loaded then.
        UnsupportedPipeline: a model that cannot be run.
    """
    if request.table == FIGURE5:
        from ertacache.evaluation.reproduce.figure5 import run_figure

        return run_figure(request)
    from ertacache.evaluation.comparison.job import Job
    from ertacache.evaluation.comparison.run import run_comparison
    from ertacache.evaluation.reproduce.measured import read_folder
    from ertacache.evaluation.reproduce.table import build, markdown, text

    ready = prepare(request)
    setting = ready.setting
    rows = printed_rows(request.table, setting.tables[request.table])
    job = Job(
        prompts=ready.prompts,
        calibration_prompts=ready.calibration_prompts,
        call=ready.call,
        model=setting.model,
        seeds=request.seeds if request.seeds is not None else setting.seeds.get(request.table, 1),
        seed=ready.seed,
        samples=request.samples,
        batch_size=ready.batch_size,
    )
    run_comparison(ready.pipe, entrants(rows, ready, request.site), job, request.out)
    document = build(request.table, setting, read_folder(request.out))
    write(request.out / "table.json", json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    write(request.out / "table.md", markdown(document))
    return {**document, "text": f"{text(document)}\n\n{request.out / 'table.md'}"}


def show(table: str, model: str) -> dict[str, Any]:
    """What the paper prints; nothing is run."""
    from ertacache.evaluation.reproduce.table import build, text

    setting = setting_of(table, model)
    if table == FIGURE5:
        from ertacache.evaluation.reproduce.figure5 import PRINTED

        return {"table": table, "printed": PRINTED, "text": PRINTED}
    document = build(table, setting)
    return {**document, "text": text(document)}


def entrants(rows: tuple[PrintedRow, ...], ready: Ready, site: Literal["output", "hidden"]) -> "list[Entrant]":
    """Who measures which row. Ours take λ or a number of steps; the others the printed settings or a cost."""
    from ertacache.baselines import catalogue as methods
    from ertacache.baselines.baseline import denoiser_class
    from ertacache.baselines.profile_method import ProfileMethod
    from ertacache.evaluation.comparison.entrant import Entrant

    T, found = int(ready.call["num_inference_steps"]), list[Entrant]()
    for row in rows:
        if row.method == "no-cache":
            continue
        method, bundled = methods.method(row.method), ready.setting.bundled
        if isinstance(method, ProfileMethod):
            threshold = row.threshold if ready.by == "threshold" else None
            share = max(2, round(T / row.speedup)) / T
            changed = replace(method, threshold=threshold, share=share, site=site)
            found.append(Entrant(row.id, changed))
            continue
        if row.published and not bundled:
            method = type(method).published()[denoiser_class(ready.pipe)][row.published]
        found.append(Entrant(row.id, method, round(1 / row.speedup, 4) if bundled or row.tuned else None))
    return found
