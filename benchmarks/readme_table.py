"""The README's figures, from the committed result files.

`python benchmarks/readme_table.py` rewrites the parts of README.md between its markers.
"""

import json
import re
from pathlib import Path
from typing import Any

from ertacache.commands import group_name
from ertacache.report.comparison_file import Result, read_comparison

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "ablation" / "results.jsonl"
BUDGETS = (15, 10, 6)
KINDS = (
    ("fewer steps", lambda row: row["stage"] == "fewer steps"),
    ("uniform, plain reuse", lambda row: _is(row, "output", "reuse", "uniform")),
    ("uniform, residual reuse (Eq. 5-6)", lambda row: _is(row, "output", "residual", "uniform")),
    ("uniform, order-1 extrapolation", lambda row: _is(row, "output", "extrapolation", "uniform")),
    ("λ policy, residual reuse", lambda row: _is(row, "output", "residual", "policy")),
    ("  + timestep adjustment", lambda row: _is(row, "output", "residual", "+ timesteps")),
    ("  + rectifier: the paper's ERTACache", lambda row: _is(row, "output", "residual", "+ rectifier")),
    ("λ policy, hidden residual + timesteps + rectifier", lambda row: _is(row, "hidden", "residual", "+ rectifier")),
    ("λ policy, fitted", lambda row: _is(row, "guided", "fitted", "policy")),
    ("uniform, fitted", lambda row: _is(row, "guided", "fitted", "uniform")),
)


def _is(row: dict[str, Any], site: str, basis: str, stage: str) -> bool:
    return (row["site"], row["basis"], row["stage"]) == (site, basis, stage)


def read_rows() -> list[dict[str, Any]]:
    lines = RESULTS.read_text().splitlines()
    return [json.loads(line) for line in lines[1:]]


def ablation_table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table per group: methods down, budgets across; K in brackets where it is not the budget."""
    parts: list[str] = []
    for group in dict.fromkeys(row["group"] for row in rows):
        parts += [
            f"**{group}**",
            "",
            "| PSNR (dB) | " + " | ".join(f"K = {K}" for K in BUDGETS) + " |",
            "|---|" + "---:|" * len(BUDGETS),
        ]
        for name, matches in KINDS:
            cells = [
                _cell([r for r in rows if r["group"] == group and r["budget"] == K and matches(r)], K) for K in BUDGETS
            ]
            parts.append(f"| {name} | " + " | ".join(cells) + " |")
        parts.append("")
    return "\n".join(parts).strip()


def _cell(found: list[dict[str, Any]], budget: int) -> str:
    if not found:
        return "–"
    row = found[0]
    note = f" (K={row['K']})" if row["K"] != budget else ""
    return f"{row['psnr']['mean']:.1f}{note}"


def compare_table() -> str:
    """A Markdown table per model: methods down; PSNR, reached cost and speed-up at each wanted cost across."""
    parts: list[str] = []
    for name in ("tiny-flux", "tiny-flux-base"):
        found = read_comparison(ROOT / "benchmarks" / "results" / "compare" / name)
        sections = [section for section in found.sections if section.target is not None]
        group = group_name(name, found.header.call)
        heads = [f"PSNR at {section.target:g} | cost | speed-up" for section in sections]
        parts += [f"| {group} | {' | '.join(heads)} |", "|---|" + "---:|" * 3 * len(sections)]
        for result in sections[0].results:
            rows = [section.of(result.entrant.method) for section in sections]
            best = [row is section.best for row, section in zip(rows, sections, strict=True)]
            cells = [_figures(row, bold) for row, bold in zip(rows, best, strict=True)]
            parts.append(f"| {result.entrant.title} | {' | '.join(cells)} |")
        parts.append("")
    return "\n".join(parts).strip()


def _figures(result: Result | None, best: bool) -> str:
    if result is None or result.speedup is None:
        return "– | – | –"
    value = f"{result.psnr.mean:.1f}"
    return f"{f'**{value}**' if best else value} | {result.cost.mean:.2f} | {result.speedup.median:.2f}×"


def updated(readme: str) -> str:
    """README text with the generated parts between their markers."""
    parts = {
        "compare": compare_table(),
        "results": ablation_table(read_rows()),
        "speed": speed_text(),
        "zoo": zoo_table(),
    }
    for name, text in parts.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        readme = re.sub(f"{begin}.*{end}", lambda _, t=f"{begin}\n{text}\n{end}": t, readme, flags=re.DOTALL)
    return readme


def speed_text() -> str:
    """What benchmarks/speed.py measured."""
    rows = [
        "| K = 15 of 30 | speed-up of the denoising loop | share of T/K | a predicted step, of a computed one |",
        "|---|---:|---:|---:|",
    ]
    for name, row in json.loads((ROOT / "benchmarks/results/speed.json").read_text())["results"].items():
        price = f"{row['predicted_over_computed_step']:.1%}"
        rows.append(f"| {name} | {row['speedup_median']:.2f}× | {row['share_of_ideal']:.1%} | {price} |")
    return "\n".join(rows)


def zoo_table() -> str:
    """What `ertacache zoo check` measured on 200 held-out captions."""
    rows = ["| 200 held-out captions | colour and place right | shape right |", "|---|---:|---:|"]
    for name in ("tiny-flux", "tiny-flux-base"):
        row = json.loads((ROOT / f"benchmarks/results/zoo-{name}.json").read_text())
        rows.append(f"| {name} | {row['colour_and_place']:.1%} | {row['shape']:.1%} |")
    truth = f"{row['judge_colour_and_place']:.1%} | {row['judge_shape']:.1%}"
    return "\n".join([*rows, f"| the generator's own images | {truth} |"])


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(updated(path.read_text()))
