"""The committed result of the frontier: every judged prompt of a split, their means, and what sets methods apart."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from frontier_cells import GUIDANCE, SEED, Cell
from frontier_plan import EVEN, OURS, OWN, methods, name_of, title_of

#: Budget -> what our plan shall be ahead of everybody else, in dB.
GOALS = {2: 6.0, 3: 6.0, 5: 3.0}
#: Who costs up to so much more than the budget is still compared with: not every knob reaches every cost.
DEARER = 1.1
#: `values` is the PSNR of every judged prompt; rows of before these were kept have none.
COLUMNS = ("method", "cost", "psnr", "standard_error", "p10", "worst", "ssim", "knob", "values")


@dataclass(frozen=True)
class Row:
    """A method at a budget.

    Attributes:
        values: PSNR of every judged prompt.
        ssim, cost: means over them.
        line: that of the result file, where the values are not known.
    """

    method: str
    values: list[float]
    ssim: float
    cost: float
    knob: str
    line: Sequence[Any] = ()

    @classmethod
    def measured(cls, one: dict[str, Any]) -> Self:
        """The row of a file of figures."""
        values = [round(value, 2) for value in one["psnr"]]
        return cls(one["method"], values, statistics.fmean(one["ssim"]), statistics.fmean(one["cost"]), one["knob"])

    @classmethod
    def kept(cls, figures: list[Any]) -> Self:
        """The row of a line of the result file."""
        line = dict(zip(COLUMNS, figures, strict=True))
        return cls(**{name: line[name] for name in ("method", "values", "ssim", "cost", "knob")}, line=figures)

    @property
    def mean(self) -> float:
        """PSNR over the judged prompts, in dB."""
        return statistics.fmean(self.values) if self.values else self.line[COLUMNS.index("psnr")]

    def figures(self) -> list[Any]:
        """The columns of the result file."""
        if not self.values:
            return [*self.line]
        mean, error = mean_and_error(self.values)
        tenth = statistics.quantiles(self.values, n=10, method="inclusive")[0] if len(self.values) > 1 else mean
        figures = [mean, error, round(tenth, 2), min(self.values), round(self.ssim, 4)]
        return [self.method, round(self.cost, 4), *figures, self.knob, self.values]


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error (0 for one value), to a hundredth."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return round(statistics.fmean(values), 2), round(error, 2)


def read(cell: Cell, budget: int, work: Path) -> list[dict[str, Any]]:
    """What is there of one cell at a budget."""
    found = [json.loads(path.read_text()) for path in sorted((work / cell.name).glob(f"*@{budget}.json"))]
    for one in found:
        if one["settings"] != json.loads(json.dumps(cell.settings)):
            made = f"{cell.name}, {one['method']}, T/{budget} was made with {one['settings']}"
            raise SystemExit(f"{made}, not {cell.settings}; merge with its options")
    return found


def difference(ours: Row, other: Row) -> dict[str, Any]:
    """PSNR of ours minus the other's, prompt by prompt.

    Raises:
        SystemExit: their prompts are not known.
    """
    if without := [row.method for row in (ours, other) if not row.values]:
        raise SystemExit(f"{', '.join(without)} without a value for each prompt; measure that, too")
    mean, error = mean_and_error([a - b for a, b in zip(ours.values, other.values, strict=True)])
    return {"over": other.method, "mean": mean, "standard_error": error}


def compared(rows: list[Row], budget: int, wanted: float) -> dict[str, Any]:
    """Our plan against the best of the others at this cost, and against the plan of evenly spaced steps."""
    ours = {row.method: row for row in rows}.get(OURS)
    others = [row for row in rows if row.method not in OWN and row.cost <= DEARER * wanted]
    if ours is None or not others:
        return {}
    gain = difference(ours, max(others, key=lambda row: row.mean))
    if budget in GOALS:
        gain["goal"] = GOALS[budget]
    even = [difference(ours, row) for row in rows if row.method == EVEN]
    return {"gain": gain, **({"over_even": even[0]} if even else {})}


def setting(cell: Cell, budget: int, found: list[dict[str, Any]], old: dict[str, Any] | None) -> dict[str, Any]:
    """One cell at a budget: what was found, beside the rows that the result has of it already.

    Raises:
        SystemExit: of what is to be compared a row of the result has no value for each prompt.
    """
    new = {one["method"] for one in found}
    others = [figures for figures in old["rows"] if figures[0] not in new] if old is not None else []
    refused = {} if old is None else {method: reason for method, reason in old["refused"].items() if method not in new}
    refused |= {one["method"]: one["refusal"] for one in found if "refusal" in one}
    rows = [Row.kept(figures) for figures in others] + [Row.measured(one) for one in found if "refusal" not in one]
    rows.sort(key=lambda row: -row.mean)
    T, K = found[0]["T"], found[0]["K"]
    try:
        lead = compared(rows, budget, K / T)
    except SystemExit as error:
        raise SystemExit(f"{cell.name}, T/{budget}: {error}") from None
    head = {"model": cell.model, "guidance": cell.guidance, "split": cell.split, "T": T, "K": K, "budget": budget}
    return {**head, **lead, "refused": refused, "rows": [row.figures() for row in rows]}


def merged(
    cells: list[Cell], budgets: list[int], work: Path, facts: dict[str, Any], old: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The whole result: of what is there, and of what `old` has already.

    Raises:
        SystemExit: `old` is of other numbers of prompts or other versions, or lacks what a comparison needs.
    """
    numbers = {"seed": SEED, "judged": cells[0].judged, "calibration": cells[0].calibration}
    if old is not None:
        made, now = ({**header, **header.get("versions", {})} for header in (old["header"], {**facts, **numbers}))
        if differing := [name for name in (*numbers, "torch", "diffusers") if made.get(name) != now.get(name)]:
            had, have = ({name: header.get(name) for name in differing} for header in (made, now))
            raise SystemExit(f"the result was made with {had}, not {have}; choose another --out")
    titles: dict[str, str] = {} if old is None else dict(old["titles"])
    settings = {} if old is None else {key(setting): setting for setting in old["settings"]}
    for cell in cells:
        for budget in budgets:
            if found := read(cell, budget, work):
                titles |= {one["method"]: one["title"] for one in found}
                name = (cell.model, cell.guidance, budget, cell.split)
                settings[name] = setting(cell, budget, found, settings.get(name))
    header = {**facts, **numbers}
    header["not_measured"] = [title_of(method) for method in methods("all") if name_of(method) not in titles]
    header |= {"dearer": DEARER, "columns": list(COLUMNS)}
    order = {model: n for n, model in enumerate(GUIDANCE)}
    whole = sorted(settings.values(), key=lambda one: (order[one["model"]], *key(one)[1:]))
    return {"header": header, "titles": dict(sorted(titles.items())), "settings": whole}


def key(setting: dict[str, Any]) -> tuple[str, float, int, int]:
    """What a setting is of."""
    return setting["model"], setting["guidance"], setting["budget"], setting["split"]


def write(result: dict[str, Any], path: Path) -> None:
    """A row on a line."""
    if not result["settings"]:
        raise SystemExit("nothing is measured yet; run benchmarks/frontier.py without --merge first")
    texts = [json.dumps({name: result[name]}, ensure_ascii=False)[1:-1] for name in ("header", "titles")]
    settings: list[str] = []
    for setting in result["settings"]:
        rows = ",\n  ".join(json.dumps(row, separators=(",", ":")) for row in setting["rows"])
        head = json.dumps({**setting, "rows": None}, ensure_ascii=False).removesuffix("null}")
        settings.append(f"{head}[\n  {rows}]}}")
    path.write_text("{" + ",\n".join(texts) + ',\n"settings": [\n' + ",\n".join(settings) + "\n]}\n")
