"""The figures of README.md and of pages of docs/, from committed results.

`python benchmarks/readme_table.py` rewrites the parts of each between their markers.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import calibration_tables
import features
import frontier_page
import quantised_page
import small_predictor
import split_page

from ertacache.cli.ablation import group_name
from ertacache.evaluation.report.comparison_file import ComparisonFile, Result, Section, read_comparison
from ertacache.evaluation.reproduce.paper_figures import printed_rows
from ertacache_zoo import catalogue

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
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


def read_rows(folder: str) -> list[dict[str, Any]]:
    lines = (RESULTS / folder / "results.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[1:]]


def ablation_table(rows: list[dict[str, Any]], paper: dict[str, str] | None = None) -> str:
    """A Markdown table per group: methods down, budgets across; K in brackets where it is not the budget.

    Args:
        paper: what the paper prints for some of the methods, by name, as a last column.
    """
    parts: list[str] = []
    for group in dict.fromkeys(row["group"] for row in rows):
        own = [row for row in rows if row["group"] == group]
        budgets = sorted({row["budget"] for row in own if row["stage"] != "no cache"}, reverse=True)
        heads = [f"K = {K}" for K in budgets] + (["paper"] if paper else [])
        parts += [f"**{group}**", "", "| PSNR (dB) | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
        for name, matches in KINDS:
            cells = [_cell([row for row in own if row["budget"] == K and matches(row)], K) for K in budgets]
            cells += [paper.get(name, "")] if paper else []
            parts.append(f"| {name} | " + " | ".join(cells) + " |")
        parts.append("")
    return "\n".join(parts).strip()


def printed() -> dict[str, str]:
    """Table 3 of the paper for Wan2.1-1.3B, by the names of `KINDS`."""
    values = [f"{row.figures['psnr']:.1f}" for row in printed_rows("table3", "wan2.1-1.3b")]
    names = [name for name, _ in KINDS]
    return dict(zip([names[2], *names[4:7]], values, strict=True))


def _cell(found: list[dict[str, Any]], budget: int) -> str:
    if not found:
        return "–"
    row = found[0]
    note = f" (K={row['K']})" if row["K"] != budget else ""
    return f"{row['psnr']['mean']:.1f}{note}"


def compare_tables() -> str:
    """A Markdown table per model of pictures: methods down, wanted costs across."""
    parts: list[str] = []
    for name in catalogue.IMAGE_NAMES:
        found = _compared(name)
        columns = {f"PSNR at {section.target:g}": section for section in _at_costs(found)}
        parts.append(methods_table(group_name(name, found.header.call), columns))
    return "\n\n".join(parts)


def clips_table() -> str:
    """A Markdown table: methods down, the models of clips across."""
    sections = {name: _at_costs(_compared(name))[0] for name in catalogue.VIDEO_NAMES}
    (target,) = {section.target for section in sections.values()}
    return methods_table(f"at cost {target:g}", {f"{name}, PSNR": section for name, section in sections.items()})


def _result(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def _compared(name: str) -> ComparisonFile:
    return read_comparison(RESULTS / "compare" / name)


def _at_costs(found: ComparisonFile) -> list[Section]:
    return [section for section in found.sections if section.target is not None]


def methods_table(corner: str, columns: dict[str, Section]) -> str:
    """A Markdown table of methods down, and across PSNR, reached cost and speed-up of each column."""
    heads = [f"{head} | cost | speed-up" for head in columns]
    lines = [f"| {corner} | {' | '.join(heads)} |", "|---|" + "---:|" * 3 * len(columns)]
    results = [result for section in columns.values() for result in section.results]
    titles = {result.entrant.method: result.entrant.title for result in results}
    for method, title in titles.items():
        rows = [(section.of(method), section.best) for section in columns.values()]
        lines.append(f"| {title} | {' | '.join(_figures(row, row is best) for row, best in rows)} |")
    return "\n".join(lines)


def _figures(result: Result | None, best: bool) -> str:
    if result is None or result.speedup is None:
        return "– | – | –"
    value = f"{result.psnr.mean:.1f}"
    return f"{f'**{value}**' if best else value} | {result.cost.mean:.2f} | {result.speedup.median:.2f}×"


def parts() -> dict[str, dict[str, str]]:
    """The generated parts of every page, by their markers."""
    found = _result("frontier")
    return {
        "README.md": {"results": frontier_page.readme_part(found)},
        "docs/frontier.md": {"frontier": frontier_page.part(found), "features": features.table(_result("features"))},
        "docs/choosing-a-plan.md": {
            "prompts": calibration_tables.prompts_table(_result("calibration_prompts")),
            "bias": calibration_tables.bias_table(_result("judged_bias")),
            "seeds": calibration_tables.seeds_table(_result("seeds")),
        },
        "docs/results.md": {
            "compare": compare_tables(),
            "compare-video": clips_table(),
            "results": ablation_table(read_rows("ablation")),
            "video": ablation_table(read_rows("ablation-video"), printed()),
            "speed": speed_text(),
            "zoo": zoo_table(catalogue.IMAGE_NAMES),
            "zoo-video": zoo_table(catalogue.VIDEO_NAMES),
        },
        "docs/quantised-models.md": {"quantised": quantised_page.part(_result("quantised"))},
        "docs/split.md": {
            "switch": split_page.part(_result("split")),
            "small predictor": small_predictor.table(_result("small_predictor")),
        },
        "docs/sizes-steps-guidance.md": {"flux-grids": flux_grids_table(), "size-losses": size_losses_table()},
    }


def updated(page: str, made: dict[str, str]) -> str:
    """A page's text with generated parts between their markers.

    Raises:
        ValueError: a page that lacks the markers of a part.
    """
    for name, text in made.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        if begin not in page or end not in page:
            raise ValueError(f"no {begin} ... {end} on the page; put both where its table belongs")
        page = re.sub(f"{begin}.*{end}", lambda _, t=f"{begin}\n{text}\n{end}": t, page, flags=re.DOTALL)
    return page


def speed_text() -> str:
    """What benchmarks/speed.py measured."""
    rows = [
        "| K = 15 of 30 | speed-up of the denoising loop | share of T/K | a predicted step, of a computed one |",
        "|---|---:|---:|---:|",
    ]
    for name, row in _result("speed")["results"].items():
        price = f"{row['predicted_over_computed_step']:.1%}"
        rows.append(f"| {name} | {row['speedup_median']:.2f}× | {row['share_of_ideal']:.1%} | {price} |")
    return "\n".join(rows)


def flux_grids_table() -> str:
    """How far the grids of FLUX.1-dev are from that of its default size, by benchmarks/sizes.py."""
    rows = _result("sizes")["flux"]
    steps = [name for name in rows[0] if name.endswith("steps")]
    heads = ["1024×1024 to", "σ differs by up to", *(f"of what {name} allow" for name in steps)]
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(steps) + 1)]
    for row in rows:
        cells = [f"{row[name]['of_limit']:.0%}" + ("" if row[name]["same"] else ", another grid") for name in steps]
        largest = max(row[name]["largest"] for name in steps)
        lines.append(f"| {row['height']}×{row['width']} | {largest:.3f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def size_losses_table() -> str:
    """What tiny-flux loses at other sizes, by benchmarks/sizes.py."""
    names = {
        "retargeted": "retargeted", "calibrated": "calibrated there", "reuse": "residual reuse", "fewer": "fewer steps"
    }  # fmt: skip
    heads = ["64×64 to", "σ differs by up to", "computed of 30", *names.values()]
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    for row in _result("sizes")["rows"]:
        cells = [f"{row[name]['mean']:.1f} ± {row[name]['standard_error']:.1f}" for name in names]
        size = f"{row['height']}×{row['width']}"
        lines.append(f"| {size} | {row['distance']:.3f} | {row['K']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def zoo_table(names: Sequence[str]) -> str:
    """What `ertacache zoo check` measured on 200 held-out captions."""
    found = [_result(f"zoo-{name}") for name in names]
    keys = [key for key in found[0] if f"judge_{key}" in found[0]]
    heads = [f"{found[0]['captions']} held-out captions", *(f"{key.replace('_', ' ')} right" for key in keys)]
    rows = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * len(keys)]
    truth = {key: found[0][f"judge_{key}"] for key in keys}
    for name, shares in [*zip(names, found, strict=True), ("the generator's own", truth)]:
        rows.append(f"| {name} | " + " | ".join(f"{shares[key]:.1%}" for key in keys) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    for name, made in parts().items():
        path = ROOT / name
        path.write_text(updated(path.read_text(), made))
