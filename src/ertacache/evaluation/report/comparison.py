"""One self-contained report.html from the folder of a comparison."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from ertacache.evaluation.report import comparison_plots
from ertacache.evaluation.report.ablation_plots import error_panels
from ertacache.evaluation.report.ablation_rows import Stat
from ertacache.evaluation.report.comparison_file import TOLERANCE, ComparisonFile, Result, Section, read_comparison
from ertacache.evaluation.report.comparison_plots import KINDS, Point, kind_of, short
from ertacache.evaluation.report.comparison_rows import FEWER_STEPS, UNIFORM
from ertacache.evaluation.report.comparison_samples import Samples
from ertacache.evaluation.report.embedded import DIFFERENCE_GAIN
from ertacache.evaluation.report.frame_plot import Curve, frame_curves
from ertacache.files import write_atomic


@dataclass(frozen=True, slots=True)
class _Metric:
    """How a metric is shown. `higher`: whether more is better; None where that is not known."""

    title: str
    digits: int
    higher: bool | None
    absolute: bool = False  # not a distance from the uncached run, which then has a level of its own


_METRICS = {
    "psnr": _Metric("PSNR, dB", 2, True),
    "ssim": _Metric("SSIM", 4, True),
    "ms_ssim": _Metric("MS-SSIM", 4, True),
    "lpips": _Metric("LPIPS", 4, False),
    "clip_image": _Metric("CLIP, image", 4, True),
    "clip_text": _Metric("CLIP, text", 4, True, absolute=True),
    "flicker": _Metric("Flicker", 5, False),
    "latent_error": _Metric("Latent error, log₁₀", 2, False),
}


@dataclass(frozen=True, slots=True)
class _Cell:
    text: str
    value: float | str = ""
    note: str = ""
    top: bool = False


@dataclass(frozen=True, slots=True)
class _Column:
    heading: str
    cell: Callable[[Result], _Cell]


def write_comparison_report(folder: Path, out: Path | None = None) -> Path:
    """Write the report of a comparison, finished or not, as one file that loads nothing, and return its path.

    Args:
        folder: that `ertacache compare` wrote.
        out: the file; `folder`/report.html by default.

    Raises:
        InvalidArgument: a malformed line, or a sample that is missing, cannot be read or has another size than its
            reference; the message names the file and the line.
    """
    comparison = read_comparison(folder)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ertacache.evaluation.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("comparison.html").render(_Page(comparison).context())
    out = out or folder / "report.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, html.encode("utf-8", "replace"))
    return out


@dataclass
class _Page:
    """What the template is given."""

    comparison: ComparisonFile

    def __post_init__(self) -> None:
        self.sections = self.comparison.sections
        self.results = [result for section in self.sections for result in section.results]
        self.numbers = {method: n for n, method in enumerate(dict.fromkeys(r.entrant.method for r in self.results), 1)}
        self.metrics = {name: _METRICS.get(name, _Metric(name, 4, None)) for name in self.comparison.header.metrics}

    def context(self) -> dict[str, Any]:
        comparison, header = self.comparison, self.comparison.header
        samples = Samples(comparison)
        return {
            "comparison": comparison,
            "header": header,
            "versions": _flat(header.versions),
            "call": _flat(header.call),
            "missing": [(_METRICS[n].title if n in _METRICS else n, why) for n, why in header.missing_metrics.items()],
            "lower": [metric.title for metric in self.metrics.values() if metric.higher is False],
            "summary": [_summary(section) for section in self.sections if section.best],
            "sections": self.sections,
            "columns": self._columns(),
            "numbers": self.numbers,
            "methods": self._methods(),
            "plots": [self._plot(name) for name in self.metrics],
            "equal": [result.entrant.label for result in self.results if result.equal],
            "sigmas": header.sigmas,
            "decompositions": self._decompositions(),
            "changes": comparison.changes,
            "sheets": [sheet for sheet in map(samples.sheet, self.sections) if sheet],
            "kinds": KINDS,
            "kind_of": kind_of,
            "draw": comparison_plots,
            "heading": _heading,
            "settings": _settings,
            "short": short,
            "gain": DIFFERENCE_GAIN,
            "tolerance": TOLERANCE,
            "frames": [(section, svg) for section in self.sections if (svg := self._frames(section))],
        }

    def _frames(self, section: Section) -> str:
        """PSNR of each frame of the clips at one cost."""
        drawn = [result for result in section.results if result.frame_psnr and not result.equal]
        return frame_curves([self._curve(result) for result in drawn])

    def _curve(self, result: Result) -> Curve:
        method, label = result.entrant.method, result.entrant.label
        return Curve(kind=kind_of(method), label=label, values=result.frame_psnr, tag=str(self.numbers[method]))

    def _columns(self) -> list[_Column]:
        columns = [_Column("Cost", _cost)]
        for part in ("denoiser", "block", "attention"):
            columns.append(_Column(f"{part.title()} calls", functools.partial(_calls, f"{part}_calls")))
        columns += [_Column(m.title, functools.partial(self._metric, name)) for name, m in self.metrics.items()]
        everyone = [self.comparison.reference, *self.results]
        if any(result.ratios for result in everyone):
            columns.append(_Column("Speed-up", _speedup))
        if any(result.peak_bytes is not None for result in everyone):
            columns.append(_Column("Peak memory", _memory))
        return columns

    def _metric(self, name: str, result: Result) -> _Cell:
        metric, stat = self.metrics[name], result.metric(name)
        if name == "latent_error" and result.equal:
            return _Cell("equal", stat.mean)
        text, note = (f"{value:.{metric.digits}f}" for value in (stat.mean, stat.std))
        return _Cell(text, stat.mean, f"± {note}", stat.mean == self._tops.get((result.entrant.target, name)))

    @functools.cached_property
    def _tops(self) -> dict[tuple[float | None, str], float]:
        """The best mean of each metric at each target, of those that are not too dear."""
        tops: dict[tuple[float | None, str], float] = {}
        for section in self.sections:
            fair = [result for result in section.results if not result.too_dear]
            for name, metric in self.metrics.items():
                if fair and section.target is not None and metric.higher is not None:
                    choose = max if metric.higher else min
                    tops[section.target, name] = choose(result.metric(name).mean for result in fair)
        return tops

    def _methods(self) -> list[dict[str, Any]]:
        first = {result.entrant.method: result.entrant for result in reversed(self.results)}
        return [
            {"number": number, "kind": kind_of(method), "entrant": first[method]}
            for method, number in self.numbers.items()
        ]

    def _plot(self, name: str) -> dict[str, Any]:
        metric = self.metrics[name]
        drawn = [result for result in self.results if not result.equal]
        level = self.comparison.reference.metric(name).mean if metric.absolute else None
        note = {True: "", False: " (lower is better)", None: " (unknown direction)"}[metric.higher]
        names = ("share of the uncached operations", "share of the uncached time")
        costs = [self._point(result, name, result.cost.mean) for result in drawn]
        times = [self._point(result, name, 1 / result.speedup.median) for result in drawn if result.speedup]
        svgs = [
            comparison_plots.pareto(points, (axis, metric.title + note), higher=metric.higher, level=level)
            for axis, points in zip(names, (costs, times), strict=True)
        ]
        return {"id": name, "title": metric.title, "svgs": [svg for svg in svgs if svg]}

    def _point(self, result: Result, name: str, x: float) -> Point:
        entrant, stat, metric = result.entrant, result.metric(name), self.metrics[name]
        quality = f"{metric.title} {stat.mean:.{metric.digits}f} ± {stat.std:.{metric.digits}f}"
        speed = f", {result.speedup.median:.2f}×" if result.speedup else ""
        label = (
            f"{entrant.label}, {_heading(entrant.target).lower()}: cost {short(result.cost.mean, 3)}, {quality}{speed}"
        )
        number = self.numbers[entrant.method]
        return Point(number, entrant.method, kind_of(entrant.method), entrant.target is None, x, stat.mean, label)

    def _decompositions(self) -> list[dict[str, Any]]:
        best = {section.best.entrant.id for section in self.sections if section.best}
        figures: list[dict[str, Any]] = []
        for result in self.results:
            if (data := result.decomposition) is None:
                continue
            T, costs = self.comparison.header.T, result.step_cost
            computed = [cost > 0.5 for cost in costs] if len(costs) == T else [False] * T
            label = f"{result.entrant.label}, {_heading(result.entrant.target).lower()}"
            svg = error_panels(label, data, computed)
            figures.append({"id": result.entrant.id, "label": label, "target": result.entrant.target, "svg": svg})
        shown = next((figure for figure in figures if figure["id"] in best), None)
        return [{**figure, "shown": figure is shown} for figure in figures]


def _heading(target: float | None) -> str:
    return "As published" if target is None else f"Cost {short(target)}"


def _flat(values: dict[str, Any]) -> list[tuple[str, str]]:
    return [(name, value if isinstance(value, str) else repr(value)) for name, value in values.items()]


def _summary(section: Section) -> dict[str, Any]:
    """The best at one cost, and in words which methods lose to fewer steps."""
    best, fewer, uniform = section.best, section.of(FEWER_STEPS), section.of(UNIFORM)
    beaten: list[Result] = []
    dear: list[Result] = []
    if fewer is not None:
        others = [result for result in section.results if result is not fewer]
        dear = [result for result in others if result.cost.mean >= fewer.cost.mean - TOLERANCE]
        gains = [(result, fewer.gain_over(result)) for result in dear]
        beaten = sorted((r for r, gain in gains if gain and gain.mean > 0), key=lambda r: -r.psnr.mean)
    return {
        "section": section,
        "best": best,
        "over": [best.gain_over(other) if best and other and other is not best else None for other in (fewer, uniform)],
        "fewer": fewer,
        "dear": dear,
        "beaten": beaten,
    }


def _settings(result: Result) -> str:
    """The settings in short, and where tuning ended on calibration prompts."""
    entrant = result.entrant
    parts = [f"{name} {_value(value)}" for name, value in entrant.settings.items() if value is not None]
    if entrant.tuned_cost is not None and entrant.target is not None:
        parts.append(f"tuned to cost {short(entrant.tuned_cost, 3)}")
    return ", ".join(parts)


def _value(value: Any) -> str:
    match value:
        case bool() | None:
            return str(value).lower()
        case int() | float():
            return f"{value:.4g}"
        case list():
            items: Sequence[Any] = value
            return f"[{len(items)} values]" if len(items) > 4 else f"[{', '.join(map(_value, items))}]"
        case {"file": str(name)}:
            return name.rpartition("/")[2]
        case dict():
            return f"{{{len(value)} values}}"
        case _:
            text = str(value)
            return text if len(text) <= 40 else f"{text[:39]}…"


def _cost(result: Result) -> _Cell:
    cost, notes = result.cost, [] if result.entrant.target is None else [f"of {short(result.entrant.target)}"]
    if max(cost.values) - min(cost.values) > 5e-4:
        notes.append(f"{short(min(cost.values))}–{short(max(cost.values))}")
    return _Cell(short(cost.mean, 3), cost.mean, ", ".join(notes))


def _calls(name: str, result: Result) -> _Cell:
    stat: Stat = result.stat(lambda row: getattr(row, name))
    low, high = min(stat.values), max(stat.values)
    text = f"{stat.mean:.0f}" if low == high else f"{stat.mean:.1f}"
    return _Cell(text, stat.mean, "" if low == high else f"{low:g}–{high:g}")


def _speedup(result: Result) -> _Cell:
    speed = result.speedup
    if speed is None:
        return _Cell("–")
    return _Cell(f"{speed.median:.2f}×", speed.median, f"[{speed.low:.2f}–{speed.high:.2f}]")


def _memory(result: Result) -> _Cell:
    if result.peak_bytes is None:
        return _Cell("–")
    return _Cell(f"{result.peak_bytes / 2**30:.2f} GiB", result.peak_bytes)
