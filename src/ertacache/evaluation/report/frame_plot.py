"""PSNR of every frame of a clip as a drawing: one curve for each measured row."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from ertacache.evaluation.report.svg import rows_of_grid, scale, svg, text, ticks

_WIDTH, _HEIGHT, _BOTTOM = 520, 320, 272
_LEFT, _RIGHT, _TOP = 52, 40, 34
_TAG_HEIGHT = 11.0


@dataclass(frozen=True, slots=True)
class Curve:
    """PSNR in dB of frame 0 to F − 1. `kind` is a class of the style sheet, `tag` stands at the end of the line."""

    kind: str
    label: str
    values: Sequence[float]
    tag: str = ""


def frame_curves(curves: Sequence[Curve]) -> str:
    """The curves over the frames; nothing where there is none, or only one frame."""
    frames = max((len(curve.values) for curve in curves), default=0)
    if frames < 2:
        return ""
    everything = [value for curve in curves for value in curve.values]
    marks = ticks(min(everything), max(everything), 5)
    x = scale(0, frames - 1, _LEFT + 8, _WIDTH - _RIGHT)
    y = scale(marks[0], marks[-1], _BOTTOM, _TOP)
    parts = rows_of_grid(marks, y, _LEFT, _WIDTH - _RIGHT)
    every = max(1, round(frames / 12))
    parts += [text(x(f), _BOTTOM + 18, str(f)) for f in range(0, frames, every)]
    parts += [text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, "frame", "axis")]
    parts.append(text(_LEFT - 44, 14, "PSNR, dB", "axis", "start"))
    heights = _apart([y(curve.values[-1]) for curve in curves])
    for curve, height in zip(curves, heights, strict=True):
        points = " ".join(f"{x(f):.1f},{y(value):.1f}" for f, value in enumerate(curve.values))
        span = f"{min(curve.values):.1f} to {max(curve.values):.1f} dB"
        tag = text(_WIDTH - _RIGHT + 6, height + 4, curve.tag, "tag", "start") if curve.tag else ""
        parts.append(
            f'<g class="{curve.kind}"><polyline class="frames" points="{points}"/>{tag}'
            f"<title>{escape(curve.label)}: {span}</title></g>"
        )
    best = max(curves, key=lambda curve: sum(curve.values))
    return svg(_WIDTH, _HEIGHT, f"PSNR of each frame; highest: {best.label}", parts)


def _apart(heights: Sequence[float]) -> list[float]:
    """The heights, moved down where tags would overlap, then up where they would leave the plot."""
    moved = list(heights)
    order = sorted(range(len(heights)), key=lambda n: heights[n])
    lowest = float("-inf")
    for index in order:
        moved[index] = lowest = max(moved[index], lowest + _TAG_HEIGHT)
    highest = float(_BOTTOM)
    for index in reversed(order):
        moved[index] = highest = min(moved[index], highest)
        highest -= _TAG_HEIGHT
    return moved
