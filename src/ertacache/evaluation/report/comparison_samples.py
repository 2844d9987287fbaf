"""The samples of a comparison, side by side: pictures or clips with what differs from the uncached run."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ertacache.evaluation.report.comparison_file import ComparisonFile, Result, Section
from ertacache.evaluation.report.comparison_rows import Row
from ertacache.evaluation.report.sample_view import Frames, View, open_frames, view


@dataclass(frozen=True, slots=True)
class Cell:
    """One sample."""

    result: Result
    psnr: float
    view: View


@dataclass(frozen=True, slots=True)
class Line:
    """The samples of one prompt and seed; None where an entrant has none."""

    prompt: int
    seed: int
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True, slots=True)
class Sheet:
    """The samples of one target: the uncached run, then entrants from the highest mean PSNR to the lowest."""

    section: Section
    results: tuple[Result, ...]
    lines: tuple[Line, ...]


@dataclass
class Samples:
    """The sheets of a comparison; every uncached sample is opened once.

    Args:
        comparison: the samples' paths are relative to its folder.
    """

    comparison: ComparisonFile
    _truths: dict[str, Frames] = field(default_factory=dict[str, Frames], init=False)

    def sheet(self, section: Section) -> Sheet | None:
        """The samples of one section; None where it has none.

        Raises:
            InvalidArgument: a sample that is missing, cannot be read or has another size than its reference.
        """
        own = [result for result in section.results if any(row.sample for row in result.rows)]
        if not own:
            return None
        ranked = sorted(own, key=lambda result: -result.psnr.mean)
        results = (self.comparison.reference, *ranked)
        keys = sorted({(row.seed, row.prompt) for result in ranked for row in result.rows if row.sample})
        lines = tuple(self._line(seed, prompt, results) for seed, prompt in keys)
        return Sheet(section, results, lines)

    def _line(self, seed: int, prompt: int, results: Sequence[Result]) -> Line:
        found = [_sampled(result, prompt, seed) for result in results]
        cells = [
            None if row is None else self._cell(result, row, found[0])
            for result, row in zip(results, found, strict=True)
        ]
        return Line(prompt, seed, tuple(cells))

    def _cell(self, result: Result, row: Row, reference: Row | None) -> Cell:
        own = row is reference
        truth = None if reference is None or own else self._truth(reference)
        frames = self._truth(row) if own else self._frames(row)
        return Cell(result, row.metrics["psnr"], view(frames, truth, _where(row)))

    def _truth(self, row: Row) -> Frames:
        name = row.sample or ""
        if name not in self._truths:
            self._truths[name] = self._frames(row)
        return self._truths[name]

    def _frames(self, row: Row) -> Frames:
        count = None if row.frame_psnr is None else len(row.frame_psnr)
        return open_frames(self.comparison.folder / (row.sample or ""), _where(row), count)


def _where(row: Row) -> str:
    return f"sample {row.sample} (results.jsonl, line {row.line})"


def _sampled(result: Result, prompt: int, seed: int) -> Row | None:
    return next((row for row in result.rows if row.sample and row.key[1:] == (prompt, seed)), None)
