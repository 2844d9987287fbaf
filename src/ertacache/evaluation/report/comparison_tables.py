"""The tables of a comparison's report: the best at each cost, all results, and what the methods are."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ertacache.evaluation.report.comparison_file import TOLERANCE, ComparisonFile, Result, Section
from ertacache.evaluation.report.comparison_plots import kind_of
from ertacache.evaluation.report.comparison_rows import FEWER_STEPS, UNIFORM, Entrant
from ertacache.evaluation.report.figures import Stat
from ertacache.evaluation.report.page import Body, Cell, Line, Table

_ABSENT = Cell("–")


@dataclass(frozen=True, slots=True)
class Metric:
    """How a metric is shown. `higher`: whether more is better; None where that is not known."""

    title: str
    digits: int
    higher: bool | None
    absolute: bool = False  # not a distance from the uncached run, which then has a level of its own


METRICS = {
    "psnr": Metric("PSNR, dB", 2, True),
    "ssim": Metric("SSIM", 4, True),
    "ms_ssim": Metric("MS-SSIM", 4, True),
    "lpips": Metric("LPIPS", 4, False),
    "clip_image": Metric("CLIP, image", 4, True),
    "clip_text": Metric("CLIP, text", 4, True, absolute=True),
    "flicker": Metric("Flicker", 5, False),
    "latent_error": Metric("Error of the latent, log₁₀", 2, False),
}


@dataclass(frozen=True, slots=True)
class _Column:
    heading: str
    cell: Callable[[Result], Cell]


@dataclass
class Tables:
    """Tables of one comparison.

    Args:
        numbers: of the methods, as plots have them.
    """

    comparison: ComparisonFile
    numbers: dict[str, int]

    def __post_init__(self) -> None:
        self.metrics = {name: METRICS.get(name, Metric(name, 4, None)) for name in self.comparison.header.metrics}

    def best(self, sections: Sequence[Section]) -> Table:
        """The best of each cost against fewer steps and uniform reuse."""
        lines: list[Line] = []
        for section in sections:
            if (best := section.best) is not None:
                gains = [_gain(best, section.of(method)) for method in (FEWER_STEPS, UNIFORM)]
                cells = [self._metric("psnr", best, bold=False), _speedup(best), *gains, _cost(best)]
                lines.append(Line(best.entrant.label, cells, heading(section.target), mark=self._mark(best)))
        columns = ["PSNR, dB", "Speed-up", "Over fewer steps, dB", "Over uniform reuse, dB", "Cost"]
        caption = (
            f"The highest mean PSNR among the methods that cost at most {TOLERANCE:.0%} of the uncached run more than "
            "asked; its mean gain over fewer steps and over uniform residual reuse at that cost, with the number of "
            "runs in which it is higher; and the median speed-up."
        )
        return Table("Best at each cost", columns, [Body("", lines)], caption, first="Best")

    def results(self) -> Table:
        """Every method, the best of each cost first, those that are too dear last."""
        columns, bodies = self._columns(), list[Body]()

        def line(result: Result, best: bool = False) -> Line:
            warning = f"cost {result.cost.mean:.0%}, not {result.entrant.target:.0%}" if result.missed else ""
            cells = [column.cell(result) for column in columns]
            return Line(result.entrant.label, cells, best=best, mark=self._mark(result), warning=warning)

        for section in self.comparison.sections:
            ranked = sorted(section.results, key=lambda result: (result.too_dear, -result.psnr.mean))
            absent = [(one.label, _reason(one)) for one in section.absent]
            bodies.append(Body(heading(section.target), [line(r, r is section.best) for r in ranked], absent))
        bodies.append(Body("For comparison", [line(self.comparison.reference)]))
        names = [column.heading for column in columns]
        return Table("All results", names, bodies, self._caption(), sortable=True)

    def methods(self) -> list[dict[str, Any]]:
        """Every method with its settings at each cost."""
        made: list[dict[str, Any]] = []
        results = [result for section in self.comparison.sections for result in section.results]
        for method, number in self.numbers.items():
            own = [result for result in results if result.entrant.method == method]
            settings = [(heading(result.entrant.target), _settings(result)) for result in own]
            made.append({"number": number, "kind": kind_of(method), "entrant": own[0].entrant, "settings": settings})
        return made

    def _mark(self, result: Result) -> tuple[int, str] | None:
        method = result.entrant.method
        return (self.numbers[method], kind_of(method)) if method in self.numbers else None

    def _caption(self) -> str:
        lower = [metric.title for metric in self.metrics.values() if metric.higher is False]
        better = f"Lower is better for {'; '.join(lower)}. " if lower else ""
        return (
            "Mean ± standard error over the runs. Cost and calls show their range where they differ from prompt to "
            f"prompt; calls are those that really ran in one {'clip' if self.comparison.header.video else 'picture'}. "
            "Speed-up is the median of the paired ratios of the denoising times [quartiles]. "
            f"{better}Bold is the best of its cost. A heading sorts within each cost."
        )

    def _columns(self) -> list[_Column]:
        """PSNR, speed-up and cost first: they have to be seen on a narrow screen."""
        everyone = [self.comparison.reference, *self.comparison.results]
        columns = [self._column("psnr")]
        columns += [_Column("Speed-up", _speedup)] if any(result.ratios for result in everyone) else []
        columns += [_Column("Cost", _cost), *(self._column(name) for name in self.metrics if name != "psnr")]
        for part in ("denoiser", "block", "attention"):
            columns.append(_Column(f"{part.title()} calls", functools.partial(_calls, f"{part}_calls")))
        measured = any(result.peak_bytes is not None for result in everyone)
        return [*columns, *([_Column("Peak memory", _memory)] if measured else [])]

    def _column(self, name: str) -> _Column:
        return _Column(self.metrics[name].title, functools.partial(self._metric, name))

    def _metric(self, name: str, result: Result, *, bold: bool = True) -> Cell:
        metric, stat = self.metrics[name], result.metric(name)
        if name == "latent_error" and result.equal:
            return Cell("equal", stat.mean)
        text, note = (f"{value:.{metric.digits}f}" for value in (stat.mean, stat.standard_error))
        top = bold and stat.mean == self._tops.get((result.entrant.target, name))
        return Cell(text, stat.mean, f"± {note}", top)

    @functools.cached_property
    def _tops(self) -> dict[tuple[float | None, str], float]:
        """The best mean of each metric at each target, of those that are not too dear."""
        tops: dict[tuple[float | None, str], float] = {}
        for section in self.comparison.sections:
            fair = [result for result in section.results if not result.too_dear]
            for name, metric in self.metrics.items():
                if fair and section.target is not None and metric.higher is not None:
                    choose = max if metric.higher else min
                    tops[section.target, name] = choose(result.metric(name).mean for result in fair)
        return tops


def heading(target: float | None) -> str:
    """A cost in words."""
    return "Settings as published" if target is None else f"{percent(target)} of the operations"


def percent(share: float) -> str:
    """A share with as many digits as it needs, at most one behind the point."""
    return f"{round(100 * share, 1):g}%"


def _reason(absent: Entrant) -> str:
    return "no rows yet" if absent.refusal is None else f"cannot run here: {absent.refusal}"


def _gain(best: Result, other: Result | None) -> Cell:
    gain = best.gain_over(other) if other and other is not best else None
    return Cell(f"{gain.mean:+.2f}", gain.mean, f"{gain.wins} of {gain.pairs}") if gain else _ABSENT


def _settings(result: Result) -> str:
    """The settings in short, and where tuning ended on calibration prompts."""
    entrant = result.entrant
    parts = [f"{name} {_value(value)}" for name, value in entrant.settings.items() if value is not None]
    if entrant.tuned_cost is not None and entrant.target is not None:
        parts.append(f"tuned to {percent(entrant.tuned_cost)}")
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


def _cost(result: Result) -> Cell:
    cost, low, high = result.cost, min(result.cost.values), max(result.cost.values)
    return Cell(f"{cost.mean:.1%}", cost.mean, f"{low:.1%}–{high:.1%}" if high - low > 5e-4 else "")


def _calls(name: str, result: Result) -> Cell:
    stat: Stat = result.stat(lambda row: getattr(row, name))
    low, high = min(stat.values), max(stat.values)
    text = f"{stat.mean:.0f}" if low == high else f"{stat.mean:.1f}"
    return Cell(text, stat.mean, "" if low == high else f"{low:g}–{high:g}")


def _speedup(result: Result) -> Cell:
    speed = result.speedup
    return Cell(f"{speed.median:.2f}×", speed.median, f"[{speed.low:.2f}–{speed.high:.2f}]") if speed else _ABSENT


def _memory(result: Result) -> Cell:
    peak = result.peak_bytes
    return _ABSENT if peak is None else Cell(f"{peak / 2**30:.2f} GiB", peak)
