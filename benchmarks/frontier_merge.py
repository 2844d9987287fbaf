"""The committed result of the frontier: means over the judged prompts of all splits, and what sets methods apart."""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frontier_cells import SEED, Cell
from frontier_plan import EVEN, OURS, OWN, methods, name_of, title_of

#: Budget -> what our plan shall be ahead of everybody else, in dB.
GOALS = {2: 6.0, 3: 6.0, 5: 3.0}
#: Who costs up to so much more than the budget is still compared with: not every knob reaches every cost.
DEARER = 1.1
COLUMNS = ("method", "cost", "psnr", "standard_error", "p10", "worst", "ssim", "splits", "knobs")


@dataclass(frozen=True)
class Row:
    """A method at a budget, over all splits.

    Attributes:
        psnr, ssim, cost: one value per judged prompt, by split.
    """

    method: str
    psnr: dict[int, list[float]]
    ssim: list[float]
    cost: float
    knobs: list[str]

    @property
    def values(self) -> list[float]:
        """PSNR of every judged prompt."""
        return [value for split in sorted(self.psnr) for value in self.psnr[split]]

    def figures(self) -> list[Any]:
        """The columns of the result file."""
        values = self.values
        mean, error = mean_and_error(values)
        splits = [round(statistics.fmean(self.psnr[split]), 2) for split in sorted(self.psnr)]
        knobs = list(dict.fromkeys(self.knobs))
        tenth = statistics.quantiles(values, n=10, method="inclusive")[0] if len(values) > 1 else mean
        figures = [mean, error, round(tenth, 2), round(min(values), 2), round(statistics.fmean(self.ssim), 4)]
        return [self.method, round(self.cost, 4), *figures, splits, knobs]


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error (0 for one value), to a hundredth."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return round(statistics.fmean(values), 2), round(error, 2)


def read(cells: Iterable[Cell], budget: int, work: Path) -> tuple[dict[str, list[dict[str, Any]]], int, int]:
    """What is there of one model, guidance and budget, by method and split; with T and K."""
    found: dict[str, list[dict[str, Any]]] = {}
    T = K = 0
    for cell in cells:
        for path in sorted((work / cell.name).glob(f"*@{budget}.json")):
            one = json.loads(path.read_text())
            if one["settings"] != json.loads(json.dumps(cell.settings)):
                raise SystemExit(f"{path} was made with {one['settings']}, not {cell.settings}; merge with its options")
            T, K = one["T"], one["K"]
            found.setdefault(one["method"], []).append({**one, "split": cell.split})
    return found, T, K


def row_of(method: str, splits: list[dict[str, Any]]) -> Row:
    """A method's splits as one row."""
    return Row(
        method,
        {one["split"]: one["psnr"] for one in splits},
        [value for one in splits for value in one["ssim"]],
        statistics.fmean(value for one in splits for value in one["cost"]),
        [one["knob"] for one in splits],
    )


def difference(ours: Row, other: Row) -> dict[str, Any]:
    """PSNR of ours minus the other's, prompt by prompt, over the splits that both have."""
    shared = sorted(set(ours.psnr) & set(other.psnr))
    gains = [a - b for split in shared for a, b in zip(ours.psnr[split], other.psnr[split], strict=True)]
    mean, error = mean_and_error(gains)
    return {"over": other.method, "mean": mean, "standard_error": error, "prompts": len(gains)}


def compared(rows: list[Row], budget: int, wanted: float) -> dict[str, Any]:
    """Our plan against the best of the others at this cost, and against the plan of evenly spaced steps."""
    ours = {row.method: row for row in rows}.get(OURS)
    others = [row for row in rows if row.method not in OWN and row.cost <= DEARER * wanted]
    if ours is None or not others:
        return {}
    gain = difference(ours, max(others, key=lambda row: statistics.fmean(row.values)))
    if budget in GOALS:
        gain |= {"goal": GOALS[budget], "met": gain["mean"] >= GOALS[budget]}
    even = [difference(ours, row) for row in rows if row.method == EVEN]
    return {"gain": gain, **({"over_even": even[0]} if even else {})}


def merged(cells: list[Cell], budgets: list[int], work: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """The whole result of what is there."""
    settings: list[dict[str, Any]] = []
    titles: dict[str, str] = {}
    absent = 0
    for model, guidance in dict.fromkeys((cell.model, cell.guidance) for cell in cells):
        own = [cell for cell in cells if (cell.model, cell.guidance) == (model, guidance)]
        for budget in budgets:
            found, T, K = read(own, budget, work)
            titles |= {method: splits[0]["title"] for method, splits in found.items()}
            absent += sum(len(own) - len(splits) for splits in found.values())
            refused = {m: splits[0]["refusal"] for m, splits in found.items() if any("refusal" in s for s in splits)}
            rows = [row_of(method, splits) for method, splits in found.items() if method not in refused]
            if rows:
                rows.sort(key=lambda row: -statistics.fmean(row.values))
                head = {"model": model, "guidance": guidance, "T": T, "K": K, "budget": budget}
                head |= {"prompts": max(len(row.values) for row in rows), **compared(rows, budget, K / T)}
                settings.append({**head, "refused": refused, "rows": [row.figures() for row in rows]})
    header = {**facts, "seed": SEED, "judged": cells[0].judged, "calibration": cells[0].calibration}
    header["not_measured"] = [title_of(method) for method in methods("all") if name_of(method) not in titles]
    header |= {"incomplete": absent, "dearer": DEARER, "columns": list(COLUMNS)}
    return {"header": header, "titles": dict(sorted(titles.items())), "settings": settings}


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
