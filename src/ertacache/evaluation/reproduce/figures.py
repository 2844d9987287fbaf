"""The paper's figures but for Figure 5: measured once, drawn from the file of what was measured."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ertacache.errors import InvalidArgument
from ertacache.evaluation.reproduce import figure2, figure3, figure4, figure6, side_by_side
from ertacache.evaluation.reproduce.entrants import computed_steps
from ertacache.evaluation.reproduce.kept import claim, kept
from ertacache.evaluation.reproduce.paper_figures import TITLES, full_method, printed_figure
from ertacache.evaluation.reproduce.pictures import save_pictures
from ertacache.evaluation.reproduce.request import Ready, Request, checked, loaded
from ertacache.evaluation.reproduce.settings import PICTURES
from ertacache.extras import require
from ertacache.runtime.folder_lock import locked


@dataclass(frozen=True)
class Figure:
    """How a figure comes about.

    Attributes:
        measure: makes what is drawn, plain data.
        draw: makes a `matplotlib.figure.Figure` of it; files that it names lie in the folder.
        tell: makes lines for a terminal of it.
    """

    measure: Callable[[Ready, Request], dict[str, Any]]
    draw: Callable[[dict[str, Any], Path], Any]
    tell: Callable[[dict[str, Any]], list[str]]


_KNOWN = {
    "figure2": Figure(figure2.measure, figure2.draw, figure2.tell),
    "figure3": Figure(figure3.measure, side_by_side.draw, side_by_side.tell),
    "figure4": Figure(figure4.measure, side_by_side.draw, side_by_side.tell),
    "figure6": Figure(figure6.measure, figure6.draw, figure6.tell),
}


def run_figure(request: Request) -> dict[str, Any]:
    """Measure, draw and write FIGURE.json, FIGURE.png and FIGURE.svg. Where the first is there, no model is loaded.

    Raises:
        As `run.reproduce`.
    """
    name, title = request.table, TITLES[request.table]
    figure = _KNOWN[name]
    require(title.partition(":")[0], "matplotlib")
    ready = checked(request)
    T = _check(request, ready)
    head = {"table": name, "title": title, "model": ready.setting.model, "T": T, "printed": printed_figure(name)}
    path = request.out / f"{name}.json"
    with locked(request.out):
        claim(request.out, _setting(request, ready))
        document = kept(path, lambda: {**head, **figure.measure(loaded(ready, request), request)})
        pictures = save_pictures(figure.draw(document, request.out), request.out / name)
    told = {key: value for key, value in document.items() if key != "maps"}  # pictures in numbers
    lines = [f"{title}: {ready.setting.model}", "", *figure.tell(document), "", str(path), *pictures]
    return {**told, "data": str(path), "pictures": pictures, "text": "\n".join(lines)}


def _check(request: Request, ready: Ready) -> int:
    """Refuse what would leave a figure empty; returns the number of steps."""
    T = int(ready.call["num_inference_steps"])
    computed = computed_steps(full_method(ready.setting.tables[request.table]), T)
    if computed >= T:
        raise InvalidArgument(
            f"num_inference_steps is {T}, of which {computed} would be computed: nothing is left to predict; take more"
        )
    if request.table in PICTURES and request.samples < 1:
        raise InvalidArgument(f"samples is {request.samples}, and {request.table} shows pictures; keep 1 or more")
    return T


def _setting(request: Request, ready: Ready) -> dict[str, Any]:
    """What a figure depends on."""
    return {
        "figure": request.table, "model": ready.setting.model, "dtype": request.dtype or ready.setting.dtype,
        "call": ready.call, "prompts": ready.prompts, "seed": ready.seed,
        "calibration_prompts": ready.calibration_prompts, "site": request.site, "by": ready.by,
        "batch_size": ready.batch_size, "samples": request.samples,
    }  # fmt: skip
