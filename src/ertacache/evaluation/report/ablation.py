"""One self-contained report.html from results.jsonl and the sample images beside it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ertacache.evaluation.report import ablation_plots
from ertacache.evaluation.report.ablation_rows import FEWER_STEPS, NO_CACHE, Header, Row, read_results
from ertacache.evaluation.report.ablation_words import group_of, name_of, note_of
from ertacache.evaluation.report.figures import Stat
from ertacache.evaluation.report.frame_plot import frame_curves
from ertacache.evaluation.report.page import Body, Cell, Contender, Facts, Line, Links, Table, flat, verdict, write_page
from ertacache.evaluation.report.samples import Sample, Sampled, Sheet, sheet

#: Stages of rows that are no method of this package.
_PLAIN = (NO_CACHE, FEWER_STEPS, "uniform")
_TIMES = "Speed-ups are of one timing of the denoising loop, maybe beside other jobs; a comparison pairs them."
_BEST = ("PSNR, dB", "Speed-up", "Over fewer steps, dB", "SSIM", "Steps computed")
_BEST_CAPTION = (
    f"The highest mean PSNR of each budget, and its gain over running fewer steps at the same budget. {_TIMES}"
)


@dataclass(slots=True)
class _Budget:
    """Rows that were asked for the same number of computed steps."""

    steps: int
    rows: list[Row] = field(default_factory=list[Row])

    @property
    def best(self) -> Row:
        """The highest mean PSNR among the rows that keep to the budget; among all where none does."""
        fair = [row for row in self.rows if row.K <= self.steps]
        return max(fair or self.rows, key=lambda row: row.psnr.mean)

    @property
    def fewer(self) -> Row | None:
        return next((row for row in self.rows if row.stage == FEWER_STEPS), None)


@dataclass
class _Group:
    """The rows of one pipeline and call, as the template is given them."""

    anchor: str
    rows: list[Row]
    header: Header
    folder: Path

    def __post_init__(self) -> None:
        self.name = group_of(self.rows[0])
        self.reference = next((row for row in self.rows if row.stage == NO_CACHE), None)
        budgets: dict[int, _Budget] = {}
        for row in self.rows:
            if row.stage != NO_CACHE:
                budgets.setdefault(row.budget, _Budget(row.budget)).rows.append(row)
        self.budgets = [budgets[steps] for steps in sorted(budgets, reverse=True)]
        self.clips = any(row.frame_psnr for row in self.rows)

    def heading(self, budget: _Budget) -> str:
        return f"{budget.steps} of {self.header.steps} steps"

    def speedup(self, row: Row) -> float | None:
        """Of the denoising loop against no cache."""
        known = self.reference is not None and row.denoise_seconds > 0
        return self.reference.denoise_seconds / row.denoise_seconds if known and self.reference else None

    def contenders(self, budget: _Budget) -> list[Contender]:
        return [
            Contender(
                name=name_of(row),
                ours=row.basis == "fitted" or row.stage not in _PLAIN,
                psnr=row.psnr,
                # One timing beside other jobs: where it beats the calls that were saved, it says nothing.
                speedup=speed if (speed := self.speedup(row)) and speed <= 1.01 * self.header.steps / row.K else None,
                effort=f"{row.K} of {self.header.steps} steps",
                fewer_steps=row.stage == FEWER_STEPS,
            )
            for row in budget.rows
            if row.K <= budget.steps or row is budget.best
        ]

    def best(self, budget: _Budget) -> Line:
        best, fewer = budget.best, budget.fewer
        gain = best.psnr.mean - fewer.psnr.mean if fewer else None
        cells = [
            _stat(best.psnr, 2),
            _speedup(self.speedup(best)),
            Cell("–" if gain is None else f"{gain:+.2f}"),
            _stat(best.ssim, 4),
            _steps(best),
        ]
        return Line(name_of(best), cells, f"{self.name}, {self.heading(budget)}")

    def table(self) -> Table:
        """All rows, the best of each budget first."""
        columns = [column for column in _COLUMNS if column.heading != "Flicker" or self.clips]
        bodies: list[Body] = []
        for budget in self.budgets:
            ranked = sorted(budget.rows, key=lambda row: (row is not budget.best, -row.psnr.mean))
            lines = [self._line(row, columns, best=row is budget.best) for row in ranked]
            bodies.append(Body(self.heading(budget), lines))
        if self.reference is not None:
            bodies.append(Body("For comparison", [self._line(self.reference, columns)]))
        calls = "Calls are denoiser calls for each " + ("clip" if self.clips else "image")
        contexts = " + ".join(max((row.calls for row in self.rows), key=len))
        caption = (
            "Mean ± standard error over the prompts. Where no threshold of the λ policy computes as many steps as "
            f"asked for, the nearest number is shown. {calls} ({contexts}). {_TIMES} "
            "A heading sorts within each budget."
        )
        headings = [column.heading for column in columns]
        return Table(f"Results of {self.name}", headings, bodies, caption, sortable=True)

    def _line(self, row: Row, columns: "Sequence[_Column]", *, best: bool = False) -> Line:
        return Line(name_of(row), [column.cell(self, row) for column in columns], note_of(row), best=best)

    @property
    def pareto(self) -> str:
        """Nothing at one budget, where all marks would lie on one line."""
        return ablation_plots.pareto(self.rows) if len(self.budgets) > 1 else ""

    @property
    def legend(self) -> str:
        return ablation_plots.legend(self.rows)

    def strip(self, row: Row) -> str:
        """The schedule, with ticks where its time grid is not the one of the uncached run or of a uniform row."""
        base = next((row for row in self.rows if row.stage == "uniform"), self.reference)
        return ablation_plots.strip(row, base.sigmas if base else None)

    @property
    def decompositions(self) -> list[dict[str, Any]]:
        best = [budget.best.line for budget in self.budgets]
        found = [row for row in self.rows if row.decomposition is not None]
        shown = next((row for row in found if row.line in best), None)
        return [
            {
                "id": row.line,
                "label": f"{name_of(row)}, {row.K} of {row.T} steps",
                "svgs": [ablation_plots.decomposition(row)],
                "shown": row is shown,
            }
            for row in found
        ]

    @property
    def frames(self) -> list[tuple[str, str]]:
        drawn = [(budget, frame_curves(ablation_plots.curves(budget.rows, self.rows))) for budget in self.budgets]
        return [(self.heading(budget), plot) for budget, plot in drawn if plot]

    @property
    def sheets(self) -> list[Sheet]:
        """Samples of each budget, from the highest mean PSNR to the lowest."""
        reference = self._sampled(self.reference) if self.reference else None
        made = [
            sheet(
                self.heading(budget),
                reference,
                [self._sampled(row) for row in sorted(budget.rows, key=lambda row: -row.psnr.mean)],
            )
            for budget in self.budgets
        ]
        return [one for one in made if one]

    def _sampled(self, row: Row) -> Sampled:
        frames = None if row.frame_psnr is None else len(row.frame_psnr)
        samples = {
            (0, index): Sample(self.folder / name, f"sample {name} of {row.label!r} (line {row.line})", frames, psnr)
            for index, (name, psnr) in enumerate(zip(row.samples, row.psnr.values, strict=False))
        }
        return Sampled(name_of(row), samples)

    def links(self, sheets: Sequence[Sheet]) -> Links:
        parts = {
            "results": "Results",
            "plot": self.pareto and "Quality against compute",
            "schedules": "Schedules",
            "errors": self.decompositions and "Errors",
            "frames": self.clips and "Quality of each frame",
            "samples": sheets and "Samples",
        }
        return Links(
            self.anchor, self.name, [(f"{self.anchor}-{key}", str(name)) for key, name in parts.items() if name]
        )


@dataclass(frozen=True, slots=True)
class _Column:
    heading: str
    cell: Callable[[_Group, Row], Cell]


def write_report(results: Path, out: Path) -> Path:
    """Write the report of `results` (a results.jsonl) to the file `out` and return `out`.

    Sample paths in the rows are relative to the folder of `results`. The file holds everything it shows: images as
    data URIs, plots as inline SVG, styles and a short script; it opens offline. Differences are taken from the samples
    of the group's "no cache" row, and amplified as far as each allows.

    Raises `InvalidArgument` for a malformed line (named by number) and for a sample that is missing, is not an image or
    has another size than its reference.
    """
    header, rows = read_results(results)
    members: dict[str, list[Row]] = {}
    for row in rows:
        members.setdefault(row.group, []).append(row)
    groups = [_Group(f"g{n}", own, header, results.parent) for n, own in enumerate(members.values(), start=1)]
    sheets = {group.anchor: group.sheets for group in groups}
    first = next((group for group in groups if group.budgets), None)
    best = [group.best(budget) for group in groups for budget in group.budgets]
    context = {
        "title": f"ERTACache on {header.model}",
        "verdict": verdict(first.contenders(first.budgets[0])) if first else f"ERTACache on {header.model}",
        "winner": first,
        "name_of": name_of,
        "contents": [Links("best", "Best plan at each budget"), *(g.links(sheets[g.anchor]) for g in groups)],
        "header": header,
        "facts": _facts(header),
        "prompts": header.prompts,
        "best": Table("Best plan at each budget", _BEST, [Body("", best)], _BEST_CAPTION, first="Best"),
        "clips": any(group.clips for group in groups),
        "groups": groups,
        "sheets": sheets,
    }
    return write_page("ablation.html", context, out)


def _facts(header: Header) -> Facts:
    return {
        "Model": [("", header.model)],
        "Call": flat(header.call) or [("", "pipeline defaults")],
        "Seed": [("", str(header.seed))],
        "Machine": [("", header.machine)],
        "Versions": flat(header.versions),
    }


def _stat(stat: Stat | None, digits: int) -> Cell:
    if stat is None:
        return Cell("–")
    return Cell(f"{stat.mean:.{digits}f}", stat.mean, f"± {stat.standard_error:.{digits}f}")


def _speedup(value: float | None) -> Cell:
    return Cell("–") if value is None else Cell(f"{value:.2f}×", value)


def _steps(row: Row) -> Cell:
    return Cell(f"{row.K} of {row.T}", row.K)


def _calls(row: Row) -> Cell:
    return Cell(" + ".join(str(count) for count in row.calls.values()), sum(row.calls.values()))


def _bytes(count: float) -> str:
    if count < 1024:
        return f"{count:.0f} B"
    return f"{count / 1024:.1f} KiB" if count < 1024**2 else f"{count / 1024**2:.1f} MiB"


_COLUMNS = (
    _Column("PSNR, dB", lambda _, row: _stat(row.psnr, 2)),
    _Column("Speed-up", lambda group, row: _speedup(group.speedup(row))),
    _Column("Steps computed", lambda _, row: _steps(row)),
    _Column("SSIM", lambda _, row: _stat(row.ssim, 4)),
    _Column("Flicker", lambda _, row: _stat(row.flicker, 5)),
    _Column("Error of the latent, log₁₀", lambda _, row: Cell(f"{row.latent_error:.2f}", row.latent_error)),
    _Column("Calls", lambda _, row: _calls(row)),
    _Column("Denoising, s", lambda _, row: Cell(f"{row.denoise_seconds:.3f}", row.denoise_seconds)),
    _Column("Whole call, s", lambda _, row: Cell(f"{row.image_seconds:.3f}", row.image_seconds)),
    _Column("Extra memory", lambda _, row: Cell(_bytes(row.extra_bytes), row.extra_bytes)),
)
