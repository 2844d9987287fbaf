"""Drawings of the report: SVG and legend fragments as text, coloured by the report's style sheet.

Nothing here is a full SVG file, so no namespace is needed. Text from a results file goes through `escape`.
"""

import math
from collections.abc import Callable, Sequence
from html import escape

from ertacache.report_rows import FEWER_STEPS, NO_CACHE, Row

_WIDTH = 640
_LEFT, _RIGHT, _TOP = 52, 14, 14
_STRIP_WIDTH = 300
_SERIES_COLOURS = 7  # .s0 to .s6 in the style sheet

_MARKS: dict[str, Callable[[float, float], str]] = {
    FEWER_STEPS: lambda x, y: f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8",
    "uniform": lambda x, y: f"M{x - 4.5:.1f} {y:.1f}a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z",
    "policy": lambda x, y: f"M{x - 4:.1f} {y - 4:.1f}h8v8h-8z",
    "+ timesteps": lambda x, y: f"M{x:.1f} {y - 5.5:.1f}l5.5 5.5l-5.5 5.5l-5.5 -5.5z",
    "+ rectifier": lambda x, y: f"M{x:.1f} {y - 5.5:.1f}l5.2 9.5h-10.4z",
}


def family(row: Row) -> str:
    """Rows of one family share a colour: how and where they predict."""
    if row.stage in (FEWER_STEPS, NO_CACHE):
        return row.stage
    return " · ".join(part for part in (row.basis, row.site) if part) or row.stage


def _colour(families: list[str], row: Row) -> str:
    return f"s{families.index(family(row)) % _SERIES_COLOURS}"


def _mark(stage: str, x: float, y: float) -> str:
    plus = f"M{x - 5:.1f} {y:.1f}h10m-5 -5v10"  # for stages that the table lacks
    path = _MARKS[stage](x, y) if stage in _MARKS else plus
    kind = "mark" if stage in _MARKS and stage != FEWER_STEPS else "mark open"
    return f'<path class="{kind}" d="{path}"/>'


def _ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round values that span [low, high]."""
    span = max(high - low, abs(high) * 1e-6, 1e-12)
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(m * power for m in (1, 2, 5, 10) if m * power * count >= span * 0.999)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [index * step for index in range(first, last + 1)]


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _text(x: float, y: float, text: str, kind: str = "tick", anchor: str = "middle") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _svg(width: float, height: float, label: str, parts: Sequence[str], attributes: str = 'class="plot"') -> str:
    box = f'viewBox="0 0 {width:g} {height:g}"'
    return f'<svg {attributes} {box} role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


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
    ticks = _ticks(min(row.psnr.mean for row in rows), max(row.psnr.mean for row in rows), 6)
    centre = _scale(ks[0] - 0.6, ks[-1] + 0.6, _LEFT, _WIDTH - _RIGHT)
    y = _scale(ticks[0], ticks[-1], bottom, _TOP + 8)
    apart = min(7.0, 0.7 * (centre(1) - centre(0)) / len(families))

    def at(row: Row) -> tuple[float, float]:
        side = families.index(family(row)) - (len(families) - 1) / 2
        return centre(row.K) + apart * side, y(row.psnr.mean)

    parts = [
        _line(_LEFT, y(t), _WIDTH - _RIGHT, y(t), "grid") + _text(_LEFT - 8, y(t) + 4, f"{t:g}", anchor="end")
        for t in ticks
    ]
    parts += [_text(centre(k), bottom + 18, str(k)) for k in ks]
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, height - 8, "computed steps K", "axis"))
    parts.append(_text(_LEFT - 44, 10, "PSNR, dB", "axis", "start"))
    for label in dict.fromkeys(row.label for row in rows):
        series = sorted((row for row in rows if row.label == label), key=lambda row: row.K)
        parts.append(f'<g class="{_colour(families, series[0])}">{_joined(series, at)}</g>')
    for budget in {row.budget for row in rows}:
        best = max((row for row in rows if row.budget == budget), key=lambda row: row.psnr.mean)
        parts.append(_text(at(best)[0], at(best)[1] - 10, f"{best.psnr.mean:.1f}", "value"))
    best = max(rows, key=lambda row: row.psnr.mean)
    label = f"PSNR against computed steps; highest: {best.label}, {best.psnr.mean:.2f} dB at K = {best.K}"
    return _svg(_WIDTH, height, label, parts)


def _joined(series: Sequence[Row], at: Callable[[Row], tuple[float, float]]) -> str:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(at, series))
    marks = "".join(
        f"<g>{_mark(row.stage, *at(row))}<title>{escape(row.label)}: K = {row.K}, "
        f"{row.psnr.mean:.2f} ± {row.psnr.std:.2f} dB</title></g>"
        for row in series
    )
    return f'<polyline class="joined" points="{points}"/>{marks}'


def _families(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(family(row) for row in rows if row.stage != NO_CACHE))


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
        items.append(f'<li class="s{index % _SERIES_COLOURS}">{drawn}{escape(name)}</li>')
    items += [f'<li class="neutral">{swatch.format(_mark(name, 7, 7))}{escape(name)}</li>' for name in stages]
    return f'<ul class="legend" aria-label="Key to the plot">{"".join(items)}</ul>'


def strip(row: Row, base_sigmas: Sequence[float] | None) -> str:
    """The schedule as one cell per step; below it the sigma grid of the row, if it is not `base_sigmas`."""
    count = len(row.computed)
    cell = _STRIP_WIDTH / count
    size = f'y="1" width="{cell - 1.2:.2f}" height="12"'
    parts = [
        f'<rect class="{"computed" if done else "predicted"}" x="{i * cell + 0.6:.2f}" {size}/>'
        for i, done in enumerate(row.computed)
    ]
    moved = base_sigmas is not None and _differ(row.sigmas, base_sigmas)
    if base_sigmas is not None and moved:
        x = _scale(base_sigmas[0], base_sigmas[-1], 0.6, _STRIP_WIDTH - 0.6)
        parts += [_line(x(sigma), 17, x(sigma), 22, "base") for sigma in base_sigmas]
        parts += [_line(x(sigma), 22, x(sigma), 30, "moved") for sigma in row.sigmas]
    steps = ", ".join(str(i) for i, done in enumerate(row.computed) if done)
    label = f"{row.label}: {row.K} of {count} steps computed: {steps}"
    if moved:
        label += "; on a time grid of its own"
    height = 31 if moved else 14
    attributes = f'class="strip" preserveAspectRatio="none" data-computed="{row.K}" style="height:{height}px"'
    return _svg(_STRIP_WIDTH, height, label, parts, attributes)


def _differ(sigmas: Sequence[float], base: Sequence[float]) -> bool:
    """Float32 grids that were written and read again still count as equal."""
    return len(sigmas) != len(base) or any(abs(a - b) > 1e-6 for a, b in zip(sigmas, base, strict=True))


def decomposition(row: Row) -> str:
    """Three panels over the steps: feature shift, its amplified share, and the accumulated deviation."""
    if row.decomposition is None:
        return ""
    steps, panel, gap = len(row.computed), 92, 40
    x = _scale(0, steps, _LEFT, _WIDTH - _RIGHT)
    data = row.decomposition
    panels = (
        ("Feature shift: RMS of ε at each step", data.feature_shift),
        ("Amplified: |Δσ| times the feature shift", data.amplified),
        ("Accumulated deviation of the latent, RMS", data.deviation),
    )
    parts: list[str] = []
    for index, (title, values) in enumerate(panels):
        top = 24 + index * (panel + gap)
        bottom = top + panel
        ticks = _ticks(0.0, max(values), 3)
        y = _scale(0.0, ticks[-1], bottom, top)
        parts.append(_text(_LEFT, top - 9, title, "axis", "start"))
        for tick in ticks:
            parts.append(_line(_LEFT, y(tick), _WIDTH - _RIGHT, y(tick), "grid"))
            parts.append(_text(_LEFT - 8, y(tick) + 4, f"{tick:g}", anchor="end"))
        parts += _bars(row, values, x, y, bottom) if len(values) == steps else _curve(values, x, y)
    bottom = 24 + 3 * panel + 2 * gap
    every = 5 if steps > 12 else 1
    parts += [_text((x(i) + x(i + 1)) / 2, bottom + 17, str(i)) for i in range(0, steps, every)]
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, bottom + 36, "step", "axis"))
    label = f"Error decomposition of {row.label}, K = {row.K}: final deviation {data.deviation[-1]:.4g}"
    return _svg(_WIDTH, bottom + 44, label, parts)


def _bars(
    row: Row, values: Sequence[float], x: Callable[[float], float], y: Callable[[float], float], bottom: float
) -> list[str]:
    return [
        f'<rect class="{"computed" if done else "shift"}" x="{x(i + 0.14):.1f}" y="{y(value):.1f}" '
        f'width="{x(0.72) - x(0):.1f}" height="{bottom - y(value):.1f}">'
        f"<title>step {i}: {value:.4g}</title></rect>"
        for i, (done, value) in enumerate(zip(row.computed, values, strict=True))
    ]


def _curve(values: Sequence[float], x: Callable[[float], float], y: Callable[[float], float]) -> list[str]:
    points = " ".join(f"{x(i):.1f},{y(value):.1f}" for i, value in enumerate(values))
    dots = "".join(
        f'<circle class="dot" cx="{x(i):.1f}" cy="{y(value):.1f}" r="2.2">'
        f"<title>before step {i}: {value:.4g}</title></circle>"
        for i, value in enumerate(values)
    )
    return [f'<polyline class="curve" points="{points}"/>{dots}']
