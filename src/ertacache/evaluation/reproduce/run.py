"""One reproduction: the comparison of a table's rows, and the table."""

import json
from typing import Any

from ertacache.evaluation.reproduce.paper_figures import printed_figure, printed_rows
from ertacache.evaluation.reproduce.request import Request, prepare, write
from ertacache.evaluation.reproduce.settings import FIGURE5, FIGURES, setting_of


def reproduce(request: Request) -> dict[str, Any]:
    """Run a table or a figure; an interrupted one goes on where it stopped.

    Returns:
        The document of `table.build` or `figures.run_figure`, with `text`.

    Raises:
        InvalidArgument: a table that the paper lacks for the model, no prompts, too few steps, or too little
            memory; nothing has been loaded then.
        UnsupportedPipeline: a model that cannot be run.
    """
    if request.table == FIGURE5:
        from ertacache.evaluation.reproduce.figure5 import run_figure

        return run_figure(request)
    if request.table in FIGURES:
        from ertacache.evaluation.reproduce.figures import run_figure

        return run_figure(request)
    from ertacache.evaluation.comparison.job import Job
    from ertacache.evaluation.comparison.run import run_comparison
    from ertacache.evaluation.reproduce.entrants import entrants
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
    if table in FIGURES:
        printed = printed_figure(table)
        return {"table": table, "printed": printed, "text": printed}
    document = build(table, setting)
    return {**document, "text": text(document)}
