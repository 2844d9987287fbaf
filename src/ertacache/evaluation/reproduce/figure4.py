"""The paper's Figure 4: what each of its parts adds, in pictures."""

from dataclasses import replace
from typing import Any

from ertacache.baselines.ertacache import AdjustedTimesteps, Ertacache, OfflinePolicy
from ertacache.baselines.uniform import Uniform
from ertacache.evaluation.comparison.entrant import Entrant
from ertacache.evaluation.reproduce.entrants import entrants
from ertacache.evaluation.reproduce.paper_figures import full_method
from ertacache.evaluation.reproduce.request import Ready, Request
from ertacache.evaluation.reproduce.side_by_side import compare

#: The rows of Table 3 by the names that they have in the figure.
PARTS = {
    Uniform.key: "uniform",
    OfflinePolicy.key: "policy",
    AdjustedTimesteps.key: "+ timesteps",
    Ertacache.key: "+ rectifier",
}


def measure(ready: Ready, request: Request) -> dict[str, Any]:
    """See `side_by_side.compare`."""
    return compare(ready, request, compared(ready, request), PARTS)


def compared(ready: Ready, request: Request) -> list[Entrant]:
    """Uniform and the paper's parts, one after the other, at its λ or share of the steps."""
    paper = full_method(ready.setting.tables[request.table])
    parts = [replace(paper, id=key, method=key) for key in PARTS]
    return entrants([replace(parts[0], threshold=None), *parts[1:]], ready, request.site)
