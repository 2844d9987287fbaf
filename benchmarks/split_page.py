"""The committed result of benchmarks/split.py, and the tables that docs/split.md makes of it.

`python benchmarks/readme_table.py` puts them on the page.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frontier_merge import mean_and_error

from ertacache.files import write_atomic
from ertacache.split.judged import grid_of

#: What a split shall keep with a third of the large model's operations: dB to it, or its captions to so much.
GOAL_SHARE, GOAL_PSNR, GOAL_CAPTIONS = 0.34, 30.0, 0.02
_ORDER = ("switch", "fewer", "measured", "any", "target", "times", "cached")


def merged(files: Sequence[Path], facts: dict[str, Any]) -> dict[str, Any]:
    """The figures of these files, a row each: mean PSNR and SSIM over the judged prompts in place of all values."""
    cells = [json.loads(path.read_text()) for path in files]
    cells.sort(key=lambda cell: (_ORDER.index(kind_of(cell)), float(cell["row"].split()[1])))
    return {"header": facts, "rows": [_row(cell) for cell in cells]}


def kind_of(row: dict[str, Any]) -> str:
    """What a row is of."""
    return row["row"].partition(" ")[0]


def _row(cell: dict[str, Any]) -> dict[str, Any]:
    own = {key: value for key, value in cell.items() if key not in ("settings", "psnr", "ssim", "error", "seconds")}
    if not isinstance(cell.get("psnr"), list):
        return {**own, **({"psnr": round(cell["psnr"], 2)} if "psnr" in cell else {})}
    psnr, error = mean_and_error(cell["psnr"])
    own |= {"psnr": psnr, "standard_error": error, "worst": round(min(cell["psnr"]), 2)}
    own["ssim"] = round(sum(cell["ssim"]) / len(cell["ssim"]), 4)
    return own | {"latent_log10_error": round(sum(cell["error"]) / len(cell["error"]), 4)}


def write(result: dict[str, Any], path: Path) -> None:
    """A row on a line.

    Raises:
        SystemExit: there is none.
    """
    if not result["rows"]:
        raise SystemExit("nothing is measured yet; run benchmarks/split.py without --merge first")
    rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in result["rows"])
    head = json.dumps({"header": result["header"]}, ensure_ascii=False)[:-1]
    write_atomic(path, f'{head},\n"rows": [\n{rows}\n]}}\n'.encode())


def of_kind(result: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """The rows of a kind, in rising order."""
    return [row for row in result["rows"] if kind_of(row) == kind]


def steps_of(result: dict[str, Any]) -> int:
    """Of a run."""
    return max(row["steps"] for row in of_kind(result, "switch"))


def part(result: dict[str, Any]) -> str:
    """All that is written between the markers."""
    head = result["header"]
    text = (
        f"{head['large']} and {head['small']}, {head['judged']} judged prompts, {head['fitted']} priced on and "
        f"{head['chosen']} that chose; {head['machine']}; torch {head['versions']['torch']}."
    )
    model, _, blocks = head["small"].partition(":")
    if blocks:
        text += f" {head['small']} is {model} with the first {blocks} blocks of its longest stack, not trained for it."
    found = [text, switches_table(result), measured_table(result), cached_table(result), goal(result)]
    return "\n\n".join(filter(None, found))


def switches_table(result: dict[str, Any]) -> str:
    """Switches down, every tenth of the run, the paper's grid and the measured ones; fewer steps beside them."""
    T = steps_of(result)
    chosen = {row["models"].count(0) for row in of_kind(result, "measured") if "models" in row}
    shown = sorted({round(T * n / 10) for n in range(11)} | set(grid_of(T)) | chosen)
    rows = {row["steps"]: row for row in of_kind(result, "switch")}
    fewer = {row["steps"]: row for row in of_kind(result, "fewer")}
    times = next((row["milliseconds"] for row in of_kind(result, "times")), None)
    heads = ["switch", "cloud, device: G operations", "ms", "PSNR, dB", "captions", "priced, dB", "fewer steps, dB"]
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    for s in (s for s in shown if s in rows):
        row = rows[s]
        name = f"{s}{' (paper)' * (s in grid_of(T) or s == T)}{' **measured**' * (s in chosen)}"
        each = "–" if times is None else f"{s * times['large']:.0f}, {(T - s) * times['small']:.0f}"
        off = "" if s == T else f"{-10 * row['price']:.1f}, in fact {-10 * row['latent_log10_error']:.1f}"
        cells = [name, f"{row['cloud']:.2f}, {row['device']:.2f}", each, _psnr(row, s == T), _captions(row), off]
        lines.append(f"| {' | '.join(cells)} | {_psnr(fewer[s]) if s in fewer else ''} |")
    return "\n".join(lines)


def measured_table(result: dict[str, Any]) -> str:
    """What `calibrate_split` chose, by budget; with other orders than a switch beside."""
    any_order = {row["row"].split()[1]: row for row in of_kind(result, "any")}
    lines = ["| budget | switch | PSNR, dB | any order | PSNR, dB |", "|---|---|---:|---|---:|"]
    for row in of_kind(result, "measured"):
        other = any_order.get(row["row"].split()[1])
        cells = ["–", "–"] if other is None else [f"`{''.join(map(str, other['models']))}`", _psnr(other)]
        lines.append(f"| {row['row'].split()[1]} | {row['models'].count(0)} | {_psnr(row)} | {' | '.join(cells)} |")
    for row in of_kind(result, "target"):
        found = ["none", "–"] if "refused" in row else [str(row["models"].count(0)), _psnr(row)]
        lines.append(f"| {row['row'].split()[1]} dB | {' | '.join(found)} | | |")
    return "\n".join(lines) if len(lines) > 2 else ""


def cached_table(result: dict[str, Any]) -> str:
    """Plans over both sides, beside what the split alone takes in the cloud for the same quality."""
    T = steps_of(result)
    heads = ["switch, half of the steps computed", "cloud, device: G operations", "PSNR, dB", "captions"]
    heads.append("cloud operations of a plain split as good")
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    for row in of_kind(result, "cached"):
        s = int(row["row"].split()[1])
        name = f"{s}" if s < T else "large model alone"
        cells = [f"{name} `{row['schedule']}`", f"{row['cloud']:.2f}, {row['device']:.2f}", _psnr(row), _captions(row)]
        lines.append(f"| {' | '.join(cells)} | {_as_good(result, row['psnr'])} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _as_good(result: dict[str, Any], psnr: float) -> str:
    """The least of the cloud that a split without a cache needs for a PSNR."""
    able = [row["cloud"] for row in of_kind(result, "switch") if row["psnr"] >= psnr]
    return f"{min(able):.2f}"


def goal(result: dict[str, Any]) -> str:
    """Whether a third of the large model's operations keeps what it shall."""
    alone = next(row for row in of_kind(result, "switch") if row["steps"] == steps_of(result))
    rows = [row for row in result["rows"] if kind_of(row) in ("switch", "cached") and row["share"] <= GOAL_SHARE]
    if not rows:
        return ""
    best = max(rows, key=lambda row: row["psnr"])
    right = max(rows, key=_right)
    met = best["psnr"] >= GOAL_PSNR or _right(right) >= _right(alone) - GOAL_CAPTIONS
    return (
        f"Goal: {1 - GOAL_SHARE:.0%} of the cloud's operations less at {GOAL_PSNR:g} dB, or captions within "
        f"{100 * GOAL_CAPTIONS:g} points of the large model: **{'met' if met else 'not met'}** ({best['row']}: "
        f"{best['psnr']:.1f} dB; {right['row']}: captions {_right(right):.1%}, of the large model {_right(alone):.1%})."
    )


def _right(row: dict[str, Any]) -> float:
    """Of the objects of the captions, those that are there in colour, place and shape."""
    return row["shape"]


def _captions(row: dict[str, Any]) -> str:
    return f"{row['colour_and_place']:.1%}, {row['shape']:.1%}"


def _psnr(row: dict[str, Any], same: bool = False) -> str:
    return "–" if same else f"{row['psnr']:.2f} ± {row['standard_error']:.2f}"
