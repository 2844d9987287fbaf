"""A profile in a notebook: schedule strip, coefficients and what was measured, in the notebook's own colours."""

from collections.abc import Sequence
from html import escape

from ertacache.profile.content import Content
from ertacache.profile.foreign import printable
from ertacache.profile.profile_figures import Table, plans, tables
from ertacache.profile.profile_plot import coefficient_lines
from ertacache.profile.profile_summary import summary_rows

#: Middle tones, which read on white and on black.
_COLOURS = ("#3b82c4", "#d0702a", "#4a9a5b", "#b0609b", "#8f8a2f", "#7a7f88")
_STYLE = """<style>
.ertacache-profile{max-width:44rem;font-family:system-ui,sans-serif;font-size:14px;line-height:1.45}
.ertacache-profile svg{display:block;width:100%}
.ertacache-profile .note{opacity:.75;font-size:12px}
.ertacache-profile .key{display:inline-block;margin-right:1rem;white-space:nowrap}
.ertacache-profile .key i{display:inline-block;width:1em;height:.6em;margin-right:.35em;border-radius:2px}
.ertacache-profile dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem;margin:.9rem 0 0}
.ertacache-profile dt{opacity:.75;font-weight:normal}
.ertacache-profile dd{margin:0;overflow-wrap:anywhere}
.ertacache-profile .warning{color:#d0702a;opacity:1;font-weight:600}
.ertacache-profile *+section{margin-top:1.4rem}
.ertacache-profile .wide{overflow-x:auto;margin:.9rem 0 .2rem}
.ertacache-profile table{border-collapse:collapse;margin:0;font-size:13px;background:none}
.ertacache-profile caption{caption-side:top;text-align:left;color:inherit;padding:0 0 .3rem}
.ertacache-profile :is(th,td){padding:.15rem .4rem;text-align:right;white-space:nowrap;background:none;color:inherit}
.ertacache-profile :is(th,td):first-child{padding-left:0;text-align:left}
.ertacache-profile td:first-child{min-width:6rem;white-space:normal;overflow-wrap:anywhere}
.ertacache-profile th{font-weight:normal;opacity:.75}
.ertacache-profile td{border-top:1px solid;border-color:color-mix(in srgb,currentColor 20%,transparent)}
.ertacache-profile .marked{font-weight:600}
</style>"""


def draw_html(profile: Content) -> str:
    """A piece of HTML without script that stands by itself; every text of the file is escaped."""
    grids = "".join(_grid(own, profile) for own in (profile, *profile.others))
    return f'{_STYLE}<div class="ertacache-profile">{"".join(map(_table, plans(profile)))}{grids}</div>'


def _grid(profile: Content, first: Content) -> str:
    """What one time grid has: of several, one below the other."""
    schedule = profile.schedule
    head = f"<b>{_text(profile.provenance.model_class)}</b>, computes {schedule.K} of {schedule.T} steps"
    rows = "".join(_row(label, words) for label, words in summary_rows(profile, first))
    figures = "".join(map(_table, tables(profile)))
    return f"<section>{head}{_strip(schedule.computed)}{_curve(profile)}<dl>{rows}</dl>{figures}</section>"


def _text(value: str) -> str:
    return escape(printable(value))


def _row(label: str, words: str) -> str:
    kind = ' class="warning"' if label == "warning" else ""
    return f"<dt{kind}>{escape(label)}</dt><dd{kind}>{escape(words)}</dd>"


def _table(table: Table) -> str:
    """A table that scrolls by itself where the page is narrow."""
    head = "".join(f"<th>{escape(name)}</th>" for name in table.head)
    rows = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in table.rows]
    body = [f'<tr class="marked">{row}</tr>' if n == table.marked else f"<tr>{row}</tr>" for n, row in enumerate(rows)]
    remark = f'<div class="note">{escape(table.remark)}</div>' * bool(table.remark)
    return (
        f'<div class="wide"><table><caption>{escape(table.title)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>{remark}"
    )


def _strip(computed: Sequence[bool]) -> str:
    """One cell per step, computed ones filled; one path for each kind, since runs may be long."""

    def cells(kind: bool) -> str:
        return "".join(f"M{i + 0.06:g} 0h.88v1h-.88z" for i, marked in enumerate(computed) if marked is kind)

    return (
        f'<svg viewBox="0 0 {len(computed)} 1" height="20" preserveAspectRatio="none" role="img" '
        f'aria-label="{sum(computed)} of {len(computed)} steps computed" style="margin-top:.5rem">'
        f'<path d="{cells(True)}" fill="{_COLOURS[0]}"/>'
        f'<path d="{cells(False)}" fill="currentColor" fill-opacity=".15"/></svg>'
        '<span class="note">step 0, the noisiest, on the left; blue steps are computed, grey ones predicted</span>'
    )


def _curve(profile: Content) -> str:
    """The largest coefficients over the steps, under their cells of the strip."""
    lines = coefficient_lines(profile)
    largest = sorted(lines, key=lambda line: -max(map(abs, line[1])))[: len(_COLOURS)]
    shown = list(zip((line for line in lines if line in largest), _COLOURS, strict=False))
    steps = profile.schedule.predicted_steps
    if not shown:
        return ""
    values = [0.0, *(value for (_, row), _ in shown for value in row)]
    low, high = min(values), max(values)

    def y(value: float) -> float:
        return 2 + 96 * (high - value) / (high - low)

    stroke = 'fill="none" vector-effect="non-scaling-stroke" stroke-linecap="round"'
    zero = f'<path d="M0 {y(0):.2f}H{profile.schedule.T}" stroke="currentColor" stroke-opacity=".4" {stroke}/>'
    drawn, keys = [zero], list[str]()
    for (name, row), colour in shown:
        points = " ".join(f"{step + 0.5:g},{y(value):.2f}" for step, value in zip(steps, row, strict=True))
        dots = "".join(f"M{step + 0.5:g} {y(value):.2f}h0" for step, value in zip(steps, row, strict=True))
        drawn.append(f'<polyline points="{points}" stroke="{colour}" stroke-width="1.5" {stroke}/>')
        drawn.append(f'<path d="{dots}" stroke="{colour}" stroke-width="5" {stroke}/>')
        keys.append(f'<span class="key"><i style="background:{colour}"></i>{escape(name)}</span>')
    left_out = f", the {len(shown)} largest of {len(lines)}" if len(lines) > len(shown) else ""
    return (
        f'<div class="note" style="margin-top:.9rem">weights of past outputs on predicted steps, from {low:.2f} to '
        f"{high:.2f}{left_out}</div>"
        f'<svg viewBox="0 0 {profile.schedule.T} 100" height="120" preserveAspectRatio="none" role="img" '
        f'aria-label="coefficients by step">{"".join(drawn)}</svg><div class="note">{"".join(keys)}</div>'
    )
