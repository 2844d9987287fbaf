"""What a comparison's folder says of each entrant, in the units of the paper's columns."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ertacache.evaluation.report.comparison_file import ComparisonFile, Result, read_comparison
from ertacache.evaluation.report.comparison_rows import Key, Times, key_of, times_of
from ertacache.evaluation.report.json_object import read_json_lines
from ertacache.evaluation.reproduce.paper_figures import COLUMNS


@dataclass(frozen=True, slots=True)
class Measured:
    """One entrant.

    Attributes:
        figures: by column: means of metrics, medians of times, the largest memory; without what was not measured.
        cost: mean share of the uncached run's operations; None before the first row.
        computed_steps: mean number of them, for methods that compute or predict whole steps; None for the others,
            which run a part of the denoiser on every step.
        refusal: why it could not run.
    """

    figures: Mapping[str, float]
    cost: float | None = None
    computed_steps: float | None = None
    refusal: str | None = None


@dataclass(frozen=True, slots=True)
class Folder:
    """A comparison, finished or not, with its entrants by id."""

    comparison: ComparisonFile
    entrants: Mapping[str, Measured]

    @property
    def on_gpu(self) -> bool:
        """Whether peak memory was measured."""
        return any("memory" in entrant.figures for entrant in self.entrants.values())


def read_folder(path: Path) -> Folder:
    """Read and add up a comparison.

    Raises:
        InvalidArgument: there is none, or it is damaged.
    """
    comparison = read_comparison(path)
    lines = read_json_lines(path / "timings.jsonl", growing=True)
    times = {key_of(line, comparison.header): times_of(line) for _, line in lines}
    results = (comparison.reference, *comparison.results)
    return Folder(comparison, {result.entrant.id: _measured(result, comparison, times) for result in results})


def _measured(result: Result, comparison: ComparisonFile, times: Mapping[Key, Times]) -> Measured:
    if not result.rows:
        return Measured({}, refusal=result.entrant.refusal)
    plain = comparison.reference.entrant.id
    uncached = {row.key[1:]: row for row in comparison.reference.rows}
    seconds = [times[row.key].image_seconds for row in result.rows]
    # Side by side on one prompt, so that a machine that slows down does not favour who ran first.
    pairs = [times[plain, row.prompt, row.seed].image_seconds / times[row.key].image_seconds for row in result.rows]
    figures = {"speedup": statistics.median(pairs), "latency": statistics.median(seconds)}
    if result.peak_bytes is not None:
        figures["memory"] = result.peak_bytes / 2**20
    if result is not comparison.reference:
        present = {name: column.metric for name, column in COLUMNS.items() if column.metric in result.rows[0].metrics}
        figures |= {name: result.metric(metric).mean for name, metric in present.items()}
    if result is not comparison.reference and "schedule" not in result.entrant.settings:
        return Measured(figures, result.cost.mean)
    shares = [row.denoiser_calls / uncached[row.key[1:]].denoiser_calls for row in result.rows]
    return Measured(figures, result.cost.mean, statistics.fmean(shares) * comparison.header.T)
