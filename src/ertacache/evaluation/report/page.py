"""What both kinds of report share: the page around them, their tables, and the sentence on top."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from ertacache.evaluation.report.figures import Stat
from ertacache.files import write_atomic

#: What was run on what: names, and under each its parts with their text.
Facts = dict[str, list[tuple[str, str]]]


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure: its text, the value that it is sorted by, and what stands below it. `top`: the best of its column."""

    text: str
    value: float | str = ""
    note: str = ""
    top: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """One method of a table: its name, what stands below it, and its cells.

    Attributes:
        mark: number and kind of the method in plots.
        warning: such as a cost that was missed.
    """

    name: str
    cells: Sequence[Cell]
    note: str = ""
    best: bool = False
    mark: tuple[int, str] | None = None
    warning: str = ""


@dataclass(frozen=True, slots=True)
class Body:
    """Lines under one heading, and whoever is absent with the reason."""

    heading: str
    lines: Sequence[Line]
    absent: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """A table that scrolls sideways where it has to; the first column, of names, and the headings stay in sight."""

    label: str
    columns: Sequence[str]
    bodies: Sequence[Body]
    caption: str = ""
    first: str = "Method"
    sortable: bool = False


@dataclass(frozen=True, slots=True)
class Contender:
    """A method as the sentence on top speaks of it.

    Attributes:
        speedup: None where it was not measured.
        effort: what it takes, in words, where there is no speed-up.
    """

    name: str
    ours: bool
    psnr: Stat
    speedup: float | None
    effort: str = ""
    fewer_steps: bool = False


@dataclass(frozen=True, slots=True)
class Links:
    """An entry of the contents with those below it; an anchor and its name each."""

    anchor: str
    name: str
    below: Sequence[tuple[str, str]] = field(default=())


def verdict(contenders: Sequence[Contender]) -> str:
    """One sentence on contenders of equal cost: how fast and how near the best is, and how far above fewer steps.

    Where the best is not ours, or is fewer steps, the sentence says so.
    """
    best = max(contenders, key=lambda one: one.psnr.mean)
    fewer = next((one for one in contenders if one.fewer_steps), None)
    ours = max((one for one in contenders if one.ours), key=lambda one: one.psnr.mean, default=None)
    if best.ours:
        return f"{_reached(best)}{_above(best, fewer)}"
    start = "No method beats fewer steps" if best is fewer else f"{best.name} is best"
    start += f": {_reached(best)}" + ("" if best is fewer else _above(best, fewer))
    if ours is None:
        return start
    behind = f"{best.psnr.mean - ours.psnr.mean:.1f}\u00a0dB lower"
    return f"{start}; our best, {ours.name}, is {_reached(ours)}, {behind}"


def _reached(one: Contender) -> str:
    quality = f"{one.psnr.mean:.1f}\u00a0±\u00a0{one.psnr.standard_error:.1f}\u00a0dB"
    if one.speedup is not None:
        return f"{one.speedup:.1f}× faster at {quality}"
    return f"{quality} with {one.effort}" if one.effort else quality


def _above(one: Contender, fewer: Contender | None) -> str:
    if fewer is None:
        return ""
    gain = one.psnr.mean - fewer.psnr.mean
    return f", {abs(gain):.1f}\u00a0dB {'above' if gain >= 0 else 'below'} fewer steps"


def flat(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Settings as names and text."""
    return [(name, value if isinstance(value, str) else repr(value)) for name, value in values.items()]


def write_page(template: str, context: dict[str, Any], out: Path) -> Path:
    """Fill a template of this folder; `out` is written whole or not at all, its folder is made, and it is returned."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ertacache.evaluation.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template(template).render(context)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, html.encode("utf-8", "replace"))
    return out
