"""Pieces of an inline SVG drawing as text, coloured by the report's style sheet.

Nothing here is a full SVG file, so no namespace is needed. Text goes through `escape`.
"""

import math
from collections.abc import Callable, Sequence
from html import escape

#: One axis: from a value to a coordinate.
Scale = Callable[[float], float]


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round values that span [low, high]."""
    span = max(high - low, abs(high) * 1e-6, 1e-12)
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(m * power for m in (1, 2, 5, 10) if m * power * count >= span * 0.999)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [index * step for index in range(first, last + 1)]


def scale(low: float, high: float, start: float, end: float) -> Scale:
    """The linear map of [low, high] to [start, end]."""
    return lambda value: start + (value - low) / (high - low) * (end - start)


def text(x: float, y: float, content: str, kind: str = "tick", anchor: str = "middle") -> str:
    """Escaped text of the style `kind`."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A straight line of the style `kind`."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def svg(width: float, height: float, label: str, parts: Sequence[str], attributes: str = 'class="plot"') -> str:
    """A drawing of `parts` that `label` describes in words."""
    box = f'viewBox="0 0 {width:g} {height:g}"'
    return f'<svg {attributes} {box} role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def rows_of_grid(values: Sequence[float], y: Scale, left: float, right: float) -> list[str]:
    """Horizontal grid lines with their values to the left."""
    return [line(left, y(v), right, y(v), "grid") + text(left - 8, y(v) + 4, f"{v:g}", anchor="end") for v in values]
