"""One self-contained report.html from the folder of a comparison."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ertacache.evaluation.report import comparison_plots
from ertacache.evaluation.report.ablation_plots import error_panels
from ertacache.evaluation.report.comparison_file import TOLERANCE, ComparisonFile, Result, Section, read_comparison
from ertacache.evaluation.report.comparison_plots import KINDS, Point, kind_of
from ertacache.evaluation.report.comparison_rows import FEWER_STEPS
from ertacache.evaluation.report.comparison_tables import METRICS, Tables, heading, percent
from ertacache.evaluation.report.frame_plot import Curve, frame_curves
from ertacache.evaluation.report.page import Contender, Facts, Links, flat, verdict, write_page
from ertacache.evaluation.report.samples import Run, Sample, Sampled, Sheet, sheet


def write_comparison_report(folder: Path, out: Path | None = None) -> Path:
    """Write the report of a comparison, finished or not, as one file that loads nothing, and return its path.

    Args:
        folder: that `ertacache compare` wrote.
        out: the file; `folder`/report.html by default.

    Raises:
        InvalidArgument: a malformed line, or a sample that is missing, cannot be read or has another size than its
            reference; the message names the file and the line.
    """
    page = _Page(read_comparison(folder))
    return write_page("comparison.html", page.context(), out or folder / "report.html")


@dataclass
class _Page:
    """What the template is given."""

    comparison: ComparisonFile

    def __post_init__(self) -> None:
        self.sections = self.comparison.sections
        self.results = [result for section in self.sections for result in section.results]
        self.numbers = {method: n for n, method in enumerate(dict.fromkeys(r.entrant.method for r in self.results), 1)}
        self.tables = Tables(self.comparison, self.numbers)

    def context(self) -> dict[str, Any]:
        comparison, header = self.comparison, self.comparison.header
        ranked = [section for section in self.sections if section.best]
        parts = {
            "best": self.tables.best(ranked) if ranked else None,
            "frames": [(heading(section.target), svg) for section in self.sections if (svg := self._frames(section))],
            "errors": self._decompositions(),
            "changes": comparison.changes,
            "sheets": [made for made in map(self._sheet, self.sections) if made],
        }
        contents = {
            "best": "Best at each cost",
            "results": "All results",
            "plots": "Quality against cost",
            "frames": "Quality of each frame",
            "schedules": "Schedules",
            "errors": "Errors",
            "changes": "Change of the output",
            "sheets": "Samples",
        }
        return {
            "title": f"Caching methods on {header.model}",
            "verdict": _verdict(ranked[0]) if ranked else f"Caching methods on {header.model}, as published",
            "winner": ranked[0] if ranked else None,
            "contents": [Links(anchor, name) for anchor, name in contents.items() if parts.get(anchor, True)],
            "comparison": comparison,
            "header": header,
            "facts": self._facts(),
            "prompts": header.prompts,
            "words": [_words(section) for section in ranked if section.of(FEWER_STEPS)],
            "results": self.tables.results(),
            "sections": self.sections,
            "numbers": self.numbers,
            "methods": self.tables.methods(),
            "plots": [self._plot(name) for name in self.tables.metrics],
            "equal": [result.entrant.label for result in self.results if result.equal],
            "kinds": KINDS,
            "kind_of": kind_of,
            "draw": comparison_plots,
            "heading": heading,
            "percent": percent,
            "clips": header.video,
            **parts,
        }

    def _facts(self) -> Facts:
        """What was run on what."""
        comparison, header = self.comparison, self.comparison.header
        everything = comparison.timed == comparison.rows_found
        timed = "all rows" if everything else f"{comparison.timed} of {comparison.rows_found} rows"
        facts: Facts = {
            "Model": [("", header.model)],
            "Call": flat(header.call) or [("", "pipeline defaults")],
            "Seeds": [("", f"{header.seeds} for each prompt, from {header.seed}")],
            "Machine": [("", header.machine)],
            "Times": [("", timed if comparison.timed else "none")],
            "Versions": flat(header.versions),
        }
        if missing := header.missing_metrics:
            facts["Not measured"] = [(METRICS[n].title if n in METRICS else n, why) for n, why in missing.items()]
        return facts

    def _frames(self, section: Section) -> str:
        """PSNR of each frame of the clips at one cost."""
        drawn = [result for result in section.results if result.frame_psnr and not result.equal]
        return frame_curves([self._curve(result) for result in drawn])

    def _curve(self, result: Result) -> Curve:
        method, label = result.entrant.method, result.entrant.label
        return Curve(kind=kind_of(method), label=label, values=result.frame_psnr, tag=str(self.numbers[method]))

    def _plot(self, name: str) -> dict[str, Any]:
        """A metric against the cost, where there is more than one, and against the time."""
        metric = self.tables.metrics[name]
        drawn = [result for result in self.results if not result.equal]
        level = self.comparison.reference.metric(name).mean if metric.absolute else None
        note = {True: "", False: " (lower is better)", None: " (unknown direction)"}[metric.higher]
        svgs: list[str] = []
        if len(self.sections) > 1:
            costs = [self._point(result, name, result.cost.mean) for result in drawn]
            names = "share of the uncached operations", metric.title + note
            svgs.append(comparison_plots.pareto(costs, names, higher=metric.higher, level=level))
        times = [self._point(result, name, 1 / result.speedup.median) for result in drawn if result.speedup]
        names = "share of the uncached time", metric.title + note
        svgs.append(comparison_plots.pareto(times, names, higher=metric.higher, level=level))
        return {"id": name, "label": metric.title, "svgs": [svg for svg in svgs if svg], "shown": name == "psnr"}

    def _point(self, result: Result, name: str, x: float) -> Point:
        entrant, stat, metric = result.entrant, result.metric(name), self.tables.metrics[name]
        quality = f"{metric.title} {stat.mean:.{metric.digits}f} ± {stat.standard_error:.{metric.digits}f}"
        speed = f", {result.speedup.median:.2f}×" if result.speedup else ""
        label = f"{_named(result)}: cost {percent(result.cost.mean)}, {quality}{speed}"
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
            label = _named(result)
            svg = error_panels(label, data, computed)
            figures.append({"id": result.entrant.id, "label": label, "svgs": [svg]})
        shown = next((figure for figure in figures if figure["id"] in best), None)
        return [{**figure, "shown": figure is shown} for figure in figures]

    def _sheet(self, section: Section) -> Sheet | None:
        """Samples of one cost, from the highest mean PSNR to the lowest."""
        ranked = sorted(section.results, key=lambda result: -result.psnr.mean)
        reference = self._sampled(self.comparison.reference)
        return sheet(heading(section.target), reference, [self._sampled(result) for result in ranked])

    def _sampled(self, result: Result) -> Sampled:
        samples: dict[Run, Sample] = {}
        for row in result.rows:
            if row.sample:
                where = f"sample {row.sample} (results.jsonl, line {row.line})"
                frames = None if row.frame_psnr is None else len(row.frame_psnr)
                path = self.comparison.folder / row.sample
                samples[row.seed, row.prompt] = Sample(path, where, frames, row.metrics["psnr"])
        return Sampled(result.entrant.label, samples)


def _named(result: Result) -> str:
    target = result.entrant.target
    return f"{result.entrant.label}, {'as published' if target is None else f'{percent(target)} of the operations'}"


def _verdict(section: Section) -> str:
    """The sentence on top, on the first cost."""
    fair = [result for result in section.results if not result.too_dear]
    return verdict(
        [
            Contender(
                name=result.entrant.label,
                ours=kind_of(result.entrant.method) == "ours",
                psnr=result.psnr,
                speedup=result.speedup.median if result.speedup else None,
                fewer_steps=result.entrant.method == FEWER_STEPS,
            )
            for result in fair
        ]
    )


def _words(section: Section) -> dict[str, Any]:
    """Which methods lose to fewer steps at one cost."""
    fewer = section.of(FEWER_STEPS)
    dear: list[Result] = []
    beaten: list[Result] = []
    if fewer is not None:
        others = [result for result in section.results if result is not fewer]
        dear = [result for result in others if result.cost.mean >= fewer.cost.mean - TOLERANCE]
        gains = [(result, fewer.gain_over(result)) for result in dear]
        beaten = sorted((r for r, gain in gains if gain and gain.mean > 0), key=lambda r: -r.psnr.mean)
    return {"heading": heading(section.target), "best": section.best, "fewer": fewer, "dear": dear, "beaten": beaten}
