"""Drawings of the report: SVG and legend fragments as text; those from a results file go through `escape`."""

from collections.abc import Callable, Sequence
from html import escape

from ertacache.evaluation.report.ablation_rows import FEWER_STEPS, NO_CACHE, Row
from ertacache.evaluation.report.ablation_words import STAGES, family_of, name_of
from ertacache.evaluation.report.figures import Decomposition
from ertacache.evaluation.report.frame_plot import Curve
from ertacache.evaluation.report.svg import Scale, line, rows_of_grid, scale, svg, text, ticks

_WIDTH = 520
_LEFT, _RIGHT, _TOP = 52, 14, 26
STRIP_WIDTH = 300
_SERIES_COLOURS = 7  # .s0 to .s6 in the style sheet

_MARKS: dict[str, Callable[[float, float], str]] = {
    FEWER_STEPS: lambda x, y: f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8",
    "uniform": lambda x, y: f"M{x - 4.5:.1f} {y:.1f}a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z",
    "policy": lambda x, y: f"M{x - 4:.1f} {y - 4:.1f}h8v8h-8z",
    "+ timesteps": lambda x, y: f"M{x:.1f} {y - 5.5:.1f}l5.5 5.5l-5.5 5.5l-5.5 -5.5z",
    "+ rectifier": lambda x, y: f"M{x:.1f} {y - 5.5:.1f}l5.2 9.5h-10.4z",
}


def _colour(families: list[str], row: Row) -> str:
    return f"s{families.index(family_of(row)) % _SERIES_COLOURS}"


def _mark(stage: str, x: float, y: float) -> str:
    plus = f"M{x - 5:.1f} {y:.1f}h10m-5 -5v10"  # for stages that the table lacks
    path = _MARKS[stage](x, y) if stage in _MARKS else plus
    kind = "mark" if stage in _MARKS and stage != FEWER_STEPS else "mark open"
    return f'<path class="{kind}" d="{path}"/>'


def pareto(rows: Sequence[Row]) -> str:
    """PSNR (mean over prompts, dB) against computed steps K; rows of one label are joined.

    The families of one K stand side by side, or their marks would cover each other.
    """
    rows = [row for row in rows if row.stage != NO_CACHE]
    if not rows:
        return ""
    height, bottom = 380, 332
    families = _families(rows)
    ks = sorted({row.K for row in rows})
    marks = ticks(min(row.psnr.mean for row in rows), max(row.psnr.mean for row in rows), 6)
    centre = scale(ks[0] - 0.6, ks[-1] + 0.6, _LEFT, _WIDTH - _RIGHT)
    y = scale(marks[0], marks[-1], bottom, _TOP + 8)
    apart = min(7.0, 0.7 * (centre(1) - centre(0)) / len(families))

    def at(row: Row) -> tuple[float, float]:
        side = families.index(family_of(row)) - (len(families) - 1) / 2
        return centre(row.K) + apart * side, y(row.psnr.mean)

    parts = rows_of_grid(marks, y, _LEFT, _WIDTH - _RIGHT)
    parts += [text(centre(k), bottom + 18, str(k)) for k in ks]
    parts.append(text((_LEFT + _WIDTH - _RIGHT) / 2, height - 8, "computed steps", "axis"))
    parts.append(text(_LEFT - 44, 14, "PSNR, dB", "axis", "start"))
    for name in dict.fromkeys(map(name_of, rows)):
        series = sorted((row for row in rows if name_of(row) == name), key=lambda row: row.K)
        parts.append(f'<g class="{_colour(families, series[0])}">{_joined(series, at)}</g>')
    for budget in {row.budget for row in rows}:
        best = max((row for row in rows if row.budget == budget), key=lambda row: row.psnr.mean)
        parts.append(text(at(best)[0], at(best)[1] - 10, f"{best.psnr.mean:.1f}", "value"))
    best = max(rows, key=lambda row: row.psnr.mean)
    label = f"PSNR against computed steps; highest: {name_of(best)}, {best.psnr.mean:.2f} dB at K = {best.K}"
    return svg(_WIDTH, height, label, parts)


def _joined(series: Sequence[Row], at: Callable[[Row], tuple[float, float]]) -> str:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(at, series))
    marks = "".join(
        f"<g>{_mark(row.stage, *at(row))}<title>{escape(name_of(row))}: K = {row.K}, "
        f"{row.psnr.mean:.2f} ± {row.psnr.standard_error:.2f} dB</title></g>"
        for row in series
    )
    return f'<polyline class="joined" points="{points}"/>{marks}'


def _families(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(family_of(row) for row in rows if row.stage != NO_CACHE))


def legend(rows: Sequence[Row]) -> str:
    """The key of `pareto`: colour says basis and site, shape says stage."""
    rows = [row for row in rows if row.stage != NO_CACHE]
    families = _families(rows)
    stages = list(dict.fromkeys(row.stage for row in rows if row.stage != FEWER_STEPS))
    swatch = '<svg class="key" viewBox="0 0 14 14" aria-hidden="true">{}</svg>'
    stroke = swatch.format('<line class="joined" x1="0" y1="7" x2="14" y2="7"/>')
    items: list[str] = []
    for index, name in enumerate(families):
        drawn = swatch.format(_mark(name, 7, 7)) if name == FEWER_STEPS else stroke
        items.append(f'<li class="s{index % _SERIES_COLOURS}">{drawn}<span>{escape(name)}</span></li>')
    for name in stages:
        drawn = swatch.format(_mark(name, 7, 7))
        items.append(f'<li class="neutral">{drawn}<span>{escape(STAGES.get(name, name))}</span></li>')
    return f'<ul class="legend" aria-label="Key to the plot">{"".join(items)}</ul>'


def curves(shown: Sequence[Row], rows: Sequence[Row]) -> list[Curve]:
    """Rows of clips for `frame_curves`, in the colours that `pareto` gives them among all rows of their group."""
    families = _families(rows)
    return [Curve(_colour(families, row), name_of(row), row.frame_psnr) for row in shown if row.frame_psnr]


def strip(row: Row, base_sigmas: Sequence[float] | None) -> str:
    """The schedule as one cell per step; below it the sigma grid of the row, if it is not `base_sigmas`."""
    count = len(row.computed)
    cell = STRIP_WIDTH / count
    size = f'y="1" width="{cell - 1.2:.2f}" height="12"'
    parts = [
        f'<rect class="{"computed" if done else "predicted"}" x="{i * cell + 0.6:.2f}" {size}/>'
        for i, done in enumerate(row.computed)
    ]
    grid = grid_ticks(row.sigmas, base_sigmas)
    parts += grid
    steps = ", ".join(str(i) for i, done in enumerate(row.computed) if done)
    label = f"{name_of(row)}: {row.K} of {count} steps computed: {steps}"
    if grid:
        label += "; on a time grid of its own"
    height = 31 if grid else 14
    attributes = f'class="strip" preserveAspectRatio="none" data-computed="{row.K}" style="height:{height}px"'
    return svg(STRIP_WIDTH, height, label, parts, attributes)


def grid_ticks(sigmas: Sequence[float], base: Sequence[float] | None) -> list[str]:
    """Both time grids along σ, below the cells of a strip; nothing if they are equal."""
    if base is None or not _differ(sigmas, base):
        return []
    x = scale(base[0], base[-1], 0.6, STRIP_WIDTH - 0.6)
    return [line(x(s), 17, x(s), 22, "base") for s in base] + [line(x(s), 22, x(s), 30, "moved") for s in sigmas]


def _differ(sigmas: Sequence[float], base: Sequence[float]) -> bool:
    """Float32 grids that were written and read again still count as equal."""
    return len(sigmas) != len(base) or any(abs(a - b) > 1e-6 for a, b in zip(sigmas, base, strict=True))


def decomposition(row: Row) -> str:
    """`error_panels` of a row."""
    if row.decomposition is None:
        return ""
    return error_panels(f"{name_of(row)}, K = {row.K}", row.decomposition, row.computed)


def error_panels(label: str, data: Decomposition, computed: Sequence[bool]) -> str:
    """Three panels over the steps: feature shift, its amplified share, and the accumulated deviation."""
    steps, panel, gap = len(computed), 92, 40
    x = scale(0, steps, _LEFT, _WIDTH - _RIGHT)
    panels = (
        ("Feature shift: RMS of ε at each step", data.feature_shift),
        ("Amplified: |Δσ| times the feature shift", data.amplified),
        ("Accumulated deviation of the latent, RMS", data.deviation),
    )
    parts: list[str] = []
    for index, (title, values) in enumerate(panels):
        top = 24 + index * (panel + gap)
        bottom = top + panel
        marks = ticks(0.0, max(values), 3)
        y = scale(0.0, marks[-1], bottom, top)
        parts.append(text(_LEFT, top - 9, title, "axis", "start"))
        parts += rows_of_grid(marks, y, _LEFT, _WIDTH - _RIGHT)
        parts += _bars(computed, values, x, y, bottom) if len(values) == steps else _curve(values, x, y)
    bottom = 24 + 3 * panel + 2 * gap
    parts += step_axis(steps, x, bottom)
    name = f"Error decomposition of {label}: final deviation {data.deviation[-1]:.4g}"
    return svg(_WIDTH, bottom + 44, name, parts)


def step_axis(steps: int, x: Scale, bottom: float) -> list[str]:
    """Numbers of steps under their cells, and the axis's name."""
    every = 5 if steps > 12 else 1
    numbers = [text((x(i) + x(i + 1)) / 2, bottom + 17, str(i)) for i in range(0, steps, every)]
    return [*numbers, text((x(0) + x(steps)) / 2, bottom + 36, "step", "axis")]


def _bars(computed: Sequence[bool], values: Sequence[float], x: Scale, y: Scale, bottom: float) -> list[str]:
    return [
        f'<rect class="{"computed" if done else "shift"}" x="{x(i + 0.14):.1f}" y="{y(value):.1f}" '
        f'width="{x(0.72) - x(0):.1f}" height="{bottom - y(value):.1f}">'
        f"<title>step {i}: {value:.4g}</title></rect>"
        for i, (done, value) in enumerate(zip(computed, values, strict=True))
    ]


def _curve(values: Sequence[float], x: Scale, y: Scale) -> list[str]:
    points = " ".join(f"{x(i):.1f},{y(value):.1f}" for i, value in enumerate(values))
    dots = "".join(
        f'<circle class="dot" cx="{x(i):.1f}" cy="{y(value):.1f}" r="2.2">'
        f"<title>before step {i}: {value:.4g}</title></circle>"
        for i, value in enumerate(values)
    )
    return [f'<polyline class="curve" points="{points}"/>{dots}']
