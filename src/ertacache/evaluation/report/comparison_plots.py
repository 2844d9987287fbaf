"""Drawings of the comparison: quality against cost, schedules by cost of each step, and TeaCache's calibration."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from ertacache.evaluation.report.ablation_plots import STRIP_WIDTH, grid_ticks, step_axis
from ertacache.evaluation.report.comparison_file import Result
from ertacache.evaluation.report.comparison_rows import FEWER_STEPS, OutputChange
from ertacache.evaluation.report.svg import Scale, line, rows_of_grid, scale, svg, text, ticks

_WIDTH, _HEIGHT, _BOTTOM = 520, 420, 372
_LEFT, _RIGHT, _TOP = 52, 16, 34
_TAG_HEIGHT = 11.0
_REACH = 11  # columns to each side that a tag may move to

#: What a mark says: whose the method is, so that colour is not needed.
KINDS = {
    "ours": "ERTACache and fitted predictors (this package)",
    "published": "other published methods",
    "plain": "fewer steps and uniform schedules",
}

#: The denoiser's calls of one step, in words.
CONTEXTS = {"cond": "with the prompt", "uncond": "without the prompt", "cond_uncond": "both at once"}

_Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Point:
    """An entrant in a plot. `number` and `kind` (of `KINDS`) are its method's; `label` is its tooltip."""

    number: int
    method: str
    kind: str
    published: bool
    x: float
    y: float
    label: str


def kind_of(method: str) -> str:
    """One of `KINDS`, by the key of a method."""
    if method.startswith(("ertacache", "fitted")):
        return "ours"
    return "plain" if method == FEWER_STEPS or method.startswith("uniform") else "published"


def mark(kind: str, x: float, y: float) -> str:
    """The shape of a kind at a place."""
    match kind:
        case "ours":
            return f'<path class="mark" d="M{x:.1f} {y - 5.5:.1f}l5.5 5.5l-5.5 5.5l-5.5 -5.5z"/>'
        case "plain":
            return f'<path class="mark open" d="M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8"/>'
        case _:
            return f'<circle class="mark open" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'


def swatch(kind: str) -> str:
    """The mark of a kind for a key."""
    return f'<svg class="key {kind}" viewBox="0 0 14 14" aria-hidden="true">{mark(kind, 7, 7)}</svg>'


def pareto(points: Sequence[Point], names: tuple[str, str], *, higher: bool | None, level: float | None = None) -> str:
    """Entrants by cost and quality, each with the number of its method beside its mark.

    Args:
        names: of both axes.
        higher: whether a higher figure is better; None where that is not known.
        level: of the uncached run, drawn as a line; None where it says nothing.
    """
    if not points:
        return ""
    values = [point.y for point in points] + ([] if level is None else [level])
    across = ticks(min(point.x for point in points), max(point.x for point in points), 6)
    up = ticks(min(values), max(values), 6)
    x = scale(across[0], across[-1], _LEFT + 34, _WIDTH - _RIGHT - 34)
    y = scale(up[0], up[-1], _BOTTOM, _TOP)
    parts = rows_of_grid(up, y, _LEFT, _WIDTH - _RIGHT)
    parts += [text(x(tick), _BOTTOM + 18, f"{round(100 * tick, 1):g}%") for tick in across]
    parts.append(text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, names[0], "axis"))
    parts.append(text(4, 14, names[1], "axis", "start"))
    if level is not None:
        parts.append(line(_LEFT, y(level), _WIDTH - _RIGHT, y(level), "level"))
        parts.append(text(_WIDTH - _RIGHT, y(level) - 5, "no cache", anchor="end"))
    if higher is not None:
        parts.append(_path(sorted(_front(points, higher), key=lambda point: point.x), x, y, "front"))
    fewer = [point for point in points if point.method == FEWER_STEPS and not point.published]
    parts.append(_path(sorted(fewer, key=lambda point: point.x), x, y, "fewer"))
    places = _tags([(x(point.x), y(point.y), _tag(point)) for point in points])
    parts += [_drawn(point, x(point.x), y(point.y), place) for point, place in zip(points, places, strict=True)]
    label = f"{names[1]} against {names[0]}"
    if higher is not None:
        label += f"; best: {(max if higher else min)(points, key=lambda point: point.y).label}"
    return svg(_WIDTH, _HEIGHT, label, parts)


def _front(points: Sequence[Point], higher: bool) -> list[Point]:
    """Points that no other one beats in both cost and quality."""
    sign = 1 if higher else -1

    def beaten(point: Point) -> bool:
        return any(
            other.x <= point.x and sign * other.y >= sign * point.y and (other.x, other.y) != (point.x, point.y)
            for other in points
        )

    return [point for point in points if not beaten(point)]


def _path(points: Sequence[Point], x: Scale, y: Scale, kind: str) -> str:
    if len(points) < 2:
        return ""
    return f'<polyline class="{kind}" points="{" ".join(f"{x(p.x):.1f},{y(p.y):.1f}" for p in points)}"/>'


def _tag(point: Point) -> str:
    return f"{point.number}*" if point.published else str(point.number)


def _drawn(point: Point, x: float, y: float, place: tuple[float, float]) -> str:
    left, middle = place
    tag = _tag(point)
    right = left + _tag_width(tag)
    end = left if left > x else right
    leader = line(x, y, end, middle, "leader") if min(abs(left - x), abs(right - x)) > 9 or middle != y else ""
    return (
        f'<g class="{point.kind}" data-method="{point.number}"><title>{escape(point.label)}</title>{leader}'
        f"{mark(point.kind, x, y)}{text((left + right) / 2, middle + 3.5, tag, 'tag')}</g>"
    )


def _tag_width(tag: str) -> float:
    return 6.2 * len(tag) + 2


def _tags(marks: Sequence[tuple[float, float, str]]) -> list[tuple[float, float]]:
    """Left edge and middle of every tag: the nearest place beside its mark that covers no mark and no other tag."""
    taken: list[_Box] = [(x - 4.5, y - 4.5, x + 4.5, y + 4.5) for x, y, _ in marks]
    places: dict[int, tuple[float, float]] = {}
    for index in sorted(range(len(marks)), key=lambda index: marks[index][1]):
        x, y, tag = marks[index]
        width = _tag_width(tag)
        choices = [
            (left, y + down)
            for column in range(_REACH)
            for down in (0, -6, 6, -12, 12)
            for left in (x + 7 + column * 16, x - 7 - column * 16 - width)
            if left > _LEFT and left + width < _WIDTH - _RIGHT and _TOP - 10 < y + down <= _BOTTOM
        ]
        free = (place for place in choices if not _covered(_box(*place, width), taken))
        place = next(free, (x + 7, y))
        taken.append(_box(*place, width))
        places[index] = place
    return [places[index] for index in range(len(marks))]


def _box(left: float, middle: float, width: float) -> _Box:
    return left, middle - _TAG_HEIGHT / 2, left + width, middle + _TAG_HEIGHT / 2


def _covered(box: _Box, taken: Iterable[_Box]) -> bool:
    left, top, right, bottom = box
    return any(left < b[2] and b[0] < right and top < b[3] and b[1] < bottom for b in taken)


def strip(result: Result, base_sigmas: Sequence[float]) -> str:
    """One cell per step, filled as high as its share of an uncached step's operations; below it a grid of its own."""
    costs = result.step_cost
    cell = STRIP_WIDTH / len(costs)
    width = f"{cell - 1.2:.2f}"
    frame = "".join(f"M{i * cell + 0.6:.2f} 1h{width}v12h-{width}z" for i in range(len(costs)))
    heights = [min(1.0, max(0.0, cost)) * 12 for cost in costs]
    filled = "".join(
        f"M{i * cell + 0.6:.2f} 13v-{height:.2f}h{width}v{height:.2f}z"
        for i, height in enumerate(heights)
        if height > 0
    )
    rows = [row for row in result.rows if row.sigmas is not None]
    ticks_below = grid_ticks(rows[0].sigmas or (), base_sigmas) if rows else []
    label = f"{result.entrant.label}: {len(costs)} steps, cost of each: {', '.join(f'{cost:.2g}' for cost in costs)}"
    if ticks_below:
        label += "; on a time grid of its own"
    height = 31 if ticks_below else 14
    parts = [f'<path class="predicted" d="{frame}"/><path class="computed" d="{filled}"/>', *ticks_below]
    attributes = f'class="strip" preserveAspectRatio="none" style="height:{height}px"'
    return svg(STRIP_WIDTH, height, label, parts, attributes)


def output_change(context: str, change: OutputChange) -> str:
    """Fig. 2a of the paper: relative l1 change of the output over the steps, measured and as the polynomial has it.

    Lines are means over the prompts, bands go from the lowest to the highest prompt.
    """
    count, bottom = len(change.truth[0]), 262
    x = scale(0, count + 1, _LEFT, _WIDTH - _RIGHT)
    tables = {"truth": change.truth, "guess": change.predicted}
    values = [value for table in tables.values() for row in table for value in row]
    up = ticks(min(0.0, *values), max(values), 5)
    y = scale(up[0], up[-1], bottom, _TOP)
    parts = rows_of_grid(up, y, _LEFT, _WIDTH - _RIGHT)
    parts.append(text(4, 14, "relative l1 change of the output", "axis", "start"))
    for kind, table in tables.items():
        steps = [(x(i + 1.5), column) for i, column in enumerate(zip(*table, strict=True))]
        band = [f"{at:.1f},{y(max(column)):.1f}" for at, column in steps]
        band += [f"{at:.1f},{y(min(column)):.1f}" for at, column in reversed(steps)]
        mean = [f"{at:.1f},{y(sum(column) / len(column)):.1f}" for at, column in steps]
        parts.append(f'<polygon class="band {kind}" points="{" ".join(band)}"/>')
        parts.append(f'<polyline class="{kind}" points="{" ".join(mean)}"/>')
    parts += step_axis(count + 1, x, bottom)
    name = f"Relative l1 change of the {context} output at steps 1 to {count}, {len(change.truth)} prompts"
    return svg(_WIDTH, bottom + 44, name, parts)
