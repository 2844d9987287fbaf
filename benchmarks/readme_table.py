"""The README's table of results, from the committed result file.

`python benchmarks/readme_table.py` rewrites the part of README.md between the two markers.
"""

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "ablation" / "results.jsonl"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
BUDGETS = (15, 10, 6)
KINDS = (
    ("fewer steps", lambda row: row["stage"] == "fewer steps"),
    ("uniform, plain reuse", lambda row: _is(row, "output", "reuse", "uniform")),
    ("uniform, residual reuse (Eq. 5-6)", lambda row: _is(row, "output", "residual", "uniform")),
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


def render(rows: list[dict[str, Any]]) -> str:
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


def updated(readme: str, rows: list[dict[str, Any]]) -> str:
    """README text with the table between the markers."""
    return re.sub(f"{BEGIN}.*{END}", f"{BEGIN}\n{render(rows)}\n{END}", readme, flags=re.DOTALL)


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(updated(path.read_text(), read_rows()))
