"""The committed result of benchmarks/quantised.py, and the tables that docs/quantised-models.md makes of it.

`python benchmarks/readme_table.py` puts them on the page.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frontier_merge import mean_and_error
from quantised_rows import ROWS
from quantised_setting import FULL, MODELS, SCHEMES

from ertacache.files import write_atomic

#: By scheme, what the best correction shall gain in dB.
GOALS = {"w4a4": 3.0, "w4a8": 1.2}
#: By scheme, how far a plan on the quantised model may be behind one on the full-precision model, in dB.
BEHIND = {"w8a8": 0.5}
#: What a correction may take of a step.
SHARE = 0.005
_CORRECTIONS = ("scalar-k", "channel-k", "bias", "ptqd", "affine", "window", "ours")
_GRIDS = ("grids-2", "grids-4", "grids-8", "grids-4-ours")
_PLANS = ("cached", "own-plan", "one-after-the-other", "grids-4-cached")


def merged(files: Sequence[Path], facts: dict[str, Any]) -> dict[str, Any]:
    """The figures of these files, a row each: mean PSNR and SSIM over the judged prompts, and the gain, prompt by
    prompt: of a correction over the quantised run, of a plan over the plan of the full-precision model.

    Raises:
        SystemExit: files that were made with different settings.
    """
    cells = [json.loads(path.read_text()) for path in files]
    settings = [cell["settings"] for cell in cells]
    for path, own in zip(files, settings, strict=True):
        if own != settings[0]:
            raise SystemExit(f"{path} was made with {own}, not {settings[0]} as {files[0]}; choose another --work")
    by = {(cell["model"], cell["scheme"], cell["row"]): cell for cell in cells}
    order = MODELS, (*SCHEMES, FULL), tuple(ROWS)
    keys = sorted(by, key=lambda key: [known.index(one) for known, one in zip(order, key, strict=True)])
    return {
        "header": {**facts, **(settings[0] if settings else {}), "goals": GOALS, "behind": BEHIND},
        "rows": [_row(by[key], by) for key in keys],
    }


def _row(cell: dict[str, Any], by: dict[tuple[str, str, str], dict[str, Any]]) -> dict[str, Any]:
    psnr, error = mean_and_error(cell["psnr"])
    found = {name: cell[name] for name in ("model", "scheme", "row", "what", "T")}
    found |= {"prompts": len(cell["psnr"]), "psnr": psnr, "standard_error": error}
    found["ssim"] = round(sum(cell["ssim"]) / len(cell["ssim"]), 4)
    found["latent_error_dB"] = round(10 * sum(cell["error"]) / len(cell["error"]), 2)
    other = None
    if cell["row"] in (*_CORRECTIONS, *_GRIDS):
        other = by.get((cell["model"], cell["scheme"], "quantised"))
    elif cell["row"] in _PLANS:
        other = by.get((cell["model"], FULL, "full-cached"))
    if other is not None:
        gains = [a - b for a, b in zip(cell["psnr"], other["psnr"], strict=True)]
        found |= dict(zip(("gain", "gain_error"), mean_and_error(gains), strict=True))
    if cell["price"] is not None:
        found["price"] = {name: float(f"{value:.4g}") for name, value in cell["price"].items()}
    return found


def write(result: dict[str, Any], path: Path) -> None:
    """A row on a line.

    Raises:
        SystemExit: there is none.
    """
    if not result["rows"]:
        raise SystemExit("nothing is measured yet; run benchmarks/quantised.py without --merge first")
    rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in result["rows"])
    head = json.dumps({"header": result["header"]}, ensure_ascii=False)[:-1]
    write_atomic(path, f'{head},\n"rows": [\n{rows}\n]}}\n'.encode())


def part(result: dict[str, Any]) -> str:
    """All that is written between the markers."""
    head, rows = result["header"], result["rows"]
    text = (
        f"{head['judged']} judged prompts, {head['fitted']} fitted to and {head['chosen']} that chose; "
        f"{head['machine']}; torch {head['versions']['torch']}, diffusers {head['versions']['diffusers']}."
    )
    tables = [corrections_table(rows, scheme) for scheme in SCHEMES]
    found = [text, *tables, plans_table(rows), prices_table(rows)]
    return "\n\n".join(filter(None, found))


def corrections_table(rows: list[dict[str, Any]], scheme: str) -> str:
    """Corrections down, models across; empty where nothing of the scheme was measured."""
    own = [row for row in rows if row["scheme"] == scheme and row["row"] in ("quantised", *_CORRECTIONS, *_GRIDS)]
    models = list(dict.fromkeys(row["model"] for row in own))
    if not own:
        return ""
    by = {(row["row"], row["model"]): row for row in own}
    lines = [f"| {scheme}, dB | {' | '.join(models)} |", "|---|" + "---:|" * len(models)]
    for name in ("quantised", *_CORRECTIONS, *_GRIDS):
        if any(row["row"] == name for row in own):
            cells = [_quality(by.get((name, model))) for model in models]
            title = f"**{ROWS[name].title}**" if name == "ours" else ROWS[name].title
            lines.append(f"| {title} | {' | '.join(cells)} |")
    if scheme in GOALS:
        for title, group in (("best correction", _CORRECTIONS), ("several grids", _GRIDS)):
            cells = [_best(own, model, scheme, group) for model in models]
            lines.append(f"| {title}, goal +{GOALS[scheme]:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _quality(row: dict[str, Any] | None) -> str:
    """PSNR with its error, or the gain with its own, and SSIM."""
    if row is None:
        return "–"
    shown = f"{row['psnr']:.2f} ± {row['standard_error']:.2f}"
    if "gain" in row and row["row"] in (*_CORRECTIONS, *_GRIDS):
        shown = f"{row['psnr']:.2f} ({row['gain']:+.2f} ± {row['gain_error']:.2f})"
    return f"{shown}, {row['ssim']:.3f}"


def _best(rows: list[dict[str, Any]], model: str, scheme: str, group: Sequence[str]) -> str:
    gains = [row["gain"] for row in rows if row["model"] == model and row["row"] in group and "gain" in row]
    return f"{max(gains):+.2f}: {'met' if max(gains) >= GOALS[scheme] else 'not met'}" if gains else "–"


def plans_table(rows: list[dict[str, Any]]) -> str:
    """Models and schemes down; what computes half of the steps across."""
    own = [row for row in rows if row["row"] in _PLANS]
    by = {(row["model"], row["scheme"], row["row"]): row for row in rows}
    if not own:
        return ""
    names = {
        "quantised": "quantised, T steps",
        "full-fewer-steps": "full precision, T/2 steps", "full-cached": "full precision, plan", "cached": "**ours**",
        "own-plan": "own plan, no correction", "one-after-the-other": "one after the other",
        "grids-4-cached": "ours on 4 grids",
    }  # fmt: skip
    heads = ["T/2, dB", *names.values(), "ours minus full precision, plan"]
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    for model, scheme in dict.fromkeys((row["model"], row["scheme"]) for row in own):
        found = [by.get((model, FULL if ROWS[name].full else scheme, name)) for name in names]
        cells = ["–" if row is None else f"{row['psnr']:.2f} ± {row['standard_error']:.2f}" for row in found]
        lines.append(f"| {model} {scheme} | {' | '.join(cells)} | {_behind(by.get((model, scheme, 'cached')))} |")
    return "\n".join(lines)


def _behind(row: dict[str, Any] | None) -> str:
    if row is None or "gain" not in row:
        return "–"
    least = BEHIND.get(row["scheme"])
    goal = "" if least is None else f", goal −{least:g}: {'met' if row['gain'] >= -least else 'not met'}"
    return f"{row['gain']:+.2f} ± {row['gain_error']:.2f}{goal}"


def prices_table(rows: list[dict[str, Any]]) -> str:
    """What our corrections are, and take: of a step, in the file and while they run."""
    own = [row for row in rows if row["row"] == "ours" and "price" in row]
    if not own:
        return ""
    heads = ["ours", "is", "of a step", "of how many ms", "file", "held"]
    lines = [f"| {' | '.join(heads)} |", "|---|---|" + "---:|" * 4]
    for row in own:
        paid = row["price"]
        share = f"{100 * paid['share']:.2f} %{'' if paid['share'] < SHARE else ', over .5 %'}"
        cells = [f"{row['model']} {row['scheme']}", row["what"], share, f"{1000 * paid['step_seconds']:.1f}"]
        cells += [f"{paid['file_bytes'] / 1024:.1f} KiB", f"{paid['held_bytes'] / 1024:.1f} KiB"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
