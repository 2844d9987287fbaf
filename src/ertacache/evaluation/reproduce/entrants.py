"""Who measures a printed row: the method with printed settings, or at the cost that the printed speed-up implies."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from ertacache.baselines import catalogue as methods
from ertacache.baselines.baseline import denoiser_class
from ertacache.baselines.profile_method import ProfileMethod
from ertacache.evaluation.comparison.entrant import Entrant
from ertacache.evaluation.reproduce.paper_figures import PrintedRow
from ertacache.evaluation.reproduce.request import Ready


def entrants(rows: Iterable[PrintedRow], ready: Ready, site: Literal["output", "hidden"]) -> list[Entrant]:
    """Who measures which row. Ours take λ or a number of steps; the others the printed settings or a cost."""
    T, found = int(ready.call["num_inference_steps"]), list[Entrant]()
    for row in rows:
        if row.method == "no-cache":
            continue
        method, bundled = methods.method(row.method), ready.setting.bundled
        if isinstance(method, ProfileMethod):
            threshold = row.threshold if ready.by == "threshold" else None
            changed = replace(method, threshold=threshold, share=computed_steps(row, T) / T, site=site)
            found.append(Entrant(row.id, changed))
            continue
        if row.published and not bundled:
            method = type(method).published()[denoiser_class(ready.pipe)][row.published]
        found.append(Entrant(row.id, method, round(1 / row.speedup, 4) if bundled or row.tuned else None))
    return found


def computed_steps(row: PrintedRow, T: int) -> int:
    """K of T that a row's speed-up implies."""
    return max(2, round(T / row.speedup))
