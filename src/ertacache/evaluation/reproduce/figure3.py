"""The paper's Figure 3: pictures, or first and last frames, of methods side by side at one cost."""

from dataclasses import replace
from typing import Any

from ertacache.baselines.ertacache import Fitted
from ertacache.baselines.fewer_steps import FewerSteps
from ertacache.baselines.uniform import UniformReuse
from ertacache.evaluation.comparison.entrant import Entrant
from ertacache.evaluation.reproduce.entrants import computed_steps, entrants
from ertacache.evaluation.reproduce.paper_figures import full_method, teacache
from ertacache.evaluation.reproduce.request import Ready, Request
from ertacache.evaluation.reproduce.side_by_side import compare


def measure(ready: Ready, request: Request) -> dict[str, Any]:
    """See `side_by_side.compare`."""
    return compare(ready, request, compared(ready, request))


def compared(ready: Ready, request: Request) -> list[Entrant]:
    """Fewer steps, plain reuse, TeaCache, ERTACache and ours, at the cost that the paper's speed-up implies."""
    model, T = ready.setting.tables[request.table], int(ready.call["num_inference_steps"])
    paper = full_method(model)
    share = computed_steps(paper, T) / T
    tea = replace(teacache(model), id="teacache", speedup=paper.speedup, notes=("no-setting",))
    return [
        Entrant("fewer-steps", FewerSteps(share)),
        Entrant("uniform-reuse", UniformReuse(share=share)),
        *entrants([tea, replace(paper, id="ertacache")], ready, request.site),
        Entrant("fitted", Fitted(share=share)),
    ]
