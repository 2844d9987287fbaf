"""One self-contained report.html from results.jsonl and the sample images beside it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from ertacache.evaluation.report import ablation_plots
from ertacache.evaluation.report.ablation_rows import FEWER_STEPS, NO_CACHE, Header, Row, read_results
from ertacache.evaluation.report.embedded import DIFFERENCE_GAIN
from ertacache.evaluation.report.frame_plot import frame_curves
from ertacache.evaluation.report.sample_view import Frames, open_frames, view


@dataclass(frozen=True, slots=True)
class _Cell:
    text: str
    value: float | str
    note: str = ""


@dataclass(frozen=True, slots=True)
class _Column:
    heading: str
    numeric: bool
    cell: Callable[[Row], _Cell]


@dataclass(slots=True)
class _Budget:
    """Rows that were asked for the same number of computed steps; `best` has the highest mean PSNR."""

    steps: int
    rows: list[Row] = field(default_factory=list[Row])

    @property
    def best(self) -> Row:
        return max(self.rows, key=lambda row: row.psnr.mean)


def write_report(results: Path, out: Path) -> Path:
    """Write the report of `results` (a results.jsonl) to the file `out` and return `out`.

    Sample paths in the rows are relative to the folder of `results`. The file holds everything it shows:
    images as data URIs, plots as inline SVG, styles and a short script for sorting and zooming; it opens
    offline.
    Differences are taken from the samples of the group's "no cache" row and amplified four times.

    Raises `InvalidArgument` for a malformed line (named by number) and for a sample that is missing, is not
    an image or has another size than its reference.
    """
    header, rows = read_results(results)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ertacache.evaluation.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("ablation.html")
    html = template.render(
        header=header,
        versions=_flat(header.versions),
        call=_flat(header.call),
        summary=[line for name, members in groups.items() for line in _summary(name, members)],
        columns=_columns(rows),
        clips=any(row.frame_psnr for row in rows),
        groups=[
            _group(f"g{index}", name, members, header, results.parent)
            for index, (name, members) in enumerate(groups.items(), start=1)
        ],
        gain=DIFFERENCE_GAIN,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(html, encoding="utf-8")
    return out


def _flat(values: dict[str, Any]) -> list[tuple[str, str]]:
    return [(name, value if isinstance(value, str) else repr(value)) for name, value in values.items()]


def _budgets(rows: Sequence[Row]) -> list[_Budget]:
    budgets: dict[int, _Budget] = {}
    for row in rows:
        if row.stage != NO_CACHE:
            budgets.setdefault(row.budget, _Budget(row.budget)).rows.append(row)
    return [budgets[steps] for steps in sorted(budgets, reverse=True)]


def _reference(rows: Sequence[Row]) -> Row | None:
    return next((row for row in rows if row.stage == NO_CACHE), None)


def _summary(name: str, rows: Sequence[Row]) -> list[dict[str, Any]]:
    reference = _reference(rows)
    lines: list[dict[str, Any]] = []
    for budget in _budgets(rows):
        best = budget.best
        fewer = next((row for row in budget.rows if row.stage == FEWER_STEPS), None)
        lines.append(
            {
                "group": name,
                "budget": budget.steps,
                "best": best,
                "gain": f"{best.psnr.mean - fewer.psnr.mean:+.2f}" if fewer else "–",
                "speedup": f"{reference.denoise_seconds / best.denoise_seconds:.2f}×"
                if reference and best.denoise_seconds
                else "–",
            }
        )
    return lines


def _group(anchor: str, name: str, rows: list[Row], header: Header, folder: Path) -> dict[str, Any]:
    budgets, reference = _budgets(rows), _reference(rows)
    uniform = next((row for row in rows if row.stage == "uniform"), reference)
    base_sigmas = uniform.sigmas if uniform else None
    decomposed = [row for row in rows if row.decomposition is not None]
    best = {budget.best.line for budget in budgets}
    return {
        "anchor": anchor,
        "name": name,
        "reference": reference,
        "contexts": " + ".join(max((row.calls for row in rows), key=len)),
        "budgets": budgets,
        "best": best,
        "pareto": ablation_plots.pareto(rows),
        "legend": ablation_plots.legend(rows),
        "strips": {row.line: ablation_plots.strip(row, base_sigmas) for row in rows},
        "decompositions": [(row, ablation_plots.decomposition(row)) for row in decomposed],
        "shown": next((row.line for row in decomposed if row.line in best), None),
        "clips": any(row.frame_psnr for row in rows),
        "frames": [
            (budget, plot) for budget in budgets if (plot := frame_curves(ablation_plots.curves(budget.rows, rows)))
        ],
        "sheets": [_sheet(budget, reference, header.prompts, folder) for budget in budgets],
    }


def _sheet(budget: _Budget, reference: Row | None, prompts: Sequence[str], folder: Path) -> dict[str, Any]:
    """Samples of one budget: one line per prompt; the reference, then every row that has samples."""
    rows = [row for row in ([reference] if reference else []) + budget.rows if row.samples]
    lines: list[dict[str, Any]] = []
    for index in range(max((len(row.samples) for row in rows), default=0)):
        truth = _open(reference, index, folder) if reference and index < len(reference.samples) else None
        cells = [_sample(row, index, truth, folder) if index < len(row.samples) else None for row in rows]
        lines.append({"prompt": prompts[index], "cells": cells})
    return {"budget": budget, "rows": rows, "lines": lines}


def _sample(row: Row, index: int, truth: Frames | None, folder: Path) -> dict[str, Any]:
    shown = view(_open(row, index, folder), None if row.stage == NO_CACHE else truth, _where(row, index))
    return {
        "row": row,
        "view": shown,
        "psnr": f"{row.psnr.values[index]:.1f} dB" if index < len(row.psnr.values) else "",
    }


def _open(row: Row, index: int, folder: Path) -> Frames:
    count = None if row.frame_psnr is None else len(row.frame_psnr)
    return open_frames(folder / row.samples[index], _where(row, index), count)


def _where(row: Row, index: int) -> str:
    return f"sample {row.samples[index]} of {row.label!r} (line {row.line})"


def _bytes(count: float) -> str:
    if count < 1024:
        return f"{count:.0f} B"
    return f"{count / 1024:.1f} KiB" if count < 1024**2 else f"{count / 1024**2:.1f} MiB"


def _label(row: Row) -> _Cell:
    tuned = (("λ", row.threshold), ("γ", row.strength))
    note = ", ".join(f"{name} {value:.4g}" for name, value in tuned if value is not None)
    return _Cell(row.label, row.label, note)


def _calls(row: Row) -> str:
    return " + ".join(str(count) for count in row.calls.values())


def _number(text: str, value: float, note: str = "") -> _Cell:
    return _Cell(text, value, note)


def _flicker(row: Row) -> _Cell:
    return _number(f"{row.flicker.mean:.5f}", row.flicker.mean) if row.flicker else _Cell("–", "")


def _columns(rows: Sequence[Row]) -> tuple[_Column, ...]:
    """The columns of the table; clips have one more."""
    if not any(row.flicker for row in rows):
        return _COLUMNS
    after = 1 + next(index for index, column in enumerate(_COLUMNS) if column.heading == "SSIM")
    return *_COLUMNS[:after], _Column("Flicker", True, _flicker), *_COLUMNS[after:]


_COLUMNS = (
    _Column("Method", False, _label),
    _Column("Site", False, lambda row: _Cell(row.site or "–", row.site or "")),
    _Column("Basis", False, lambda row: _Cell(row.basis or "–", row.basis or "")),
    _Column("Stage", False, lambda row: _Cell(row.stage, row.stage)),
    _Column("K\u00a0of\u00a0T", True, lambda row: _number(f"{row.K} / {row.T}", row.K)),
    _Column("Calls", True, lambda row: _number(_calls(row), sum(row.calls.values()))),
    _Column("PSNR, dB", True, lambda row: _number(f"{row.psnr.mean:.2f}", row.psnr.mean, f"± {row.psnr.std:.2f}")),
    _Column("SSIM", True, lambda row: _number(f"{row.ssim.mean:.4f}", row.ssim.mean, f"± {row.ssim.std:.4f}")),
    _Column("Latent error", True, lambda row: _number(f"{row.latent_error:.4f}", row.latent_error)),
    _Column("Denoise,\u00a0s", True, lambda row: _number(f"{row.denoise_seconds:.3f}", row.denoise_seconds)),
    _Column("Image,\u00a0s", True, lambda row: _number(f"{row.image_seconds:.3f}", row.image_seconds)),
    _Column("Extra memory", True, lambda row: _number(_bytes(row.extra_bytes), row.extra_bytes)),
)
