"""Reading and checking the folder of a comparison, and adding its rows up per entrant."""

import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ertacache.errors import InvalidArgument
from ertacache.evaluation.report.comparison_rows import (
    NO_CACHE,
    Entrant,
    Header,
    Key,
    OutputChange,
    Row,
    Times,
    entrant_of,
    header_of,
    key_of,
    output_changes_of,
    row_of,
    times_of,
)
from ertacache.evaluation.report.figures import Decomposition, Stat, mean_decomposition, summarise
from ertacache.evaluation.report.json_object import JsonObject, read_json, read_json_lines, read_result_lines

#: A cost further than this from its target has missed it.
TOLERANCE = 0.03


@dataclass(frozen=True, slots=True)
class Quartiles:
    """Median and quartiles of the paired speed-up: seconds without cache by seconds, prompt by prompt."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Gain:
    """Mean difference in PSNR, dB, over the runs that both have, and in how many of them it is positive."""

    mean: float
    wins: int
    pairs: int


@dataclass(frozen=True)
class Result:
    """The rows of one entrant, added up. A refused entrant has none.

    Attributes:
        ratios: paired speed-up of every row whose times, and those without cache, are known.
        peak_bytes: the largest of all rows; None where it was not measured.
    """

    entrant: Entrant
    rows: tuple[Row, ...]
    ratios: tuple[float, ...]
    peak_bytes: float | None

    def metric(self, name: str) -> Stat:
        """Mean, sample standard deviation (0 for one row) and values, in the order of the file."""
        return summarise(row.metrics[name] for row in self.rows)

    def stat(self, figure: Callable[[Row], float]) -> Stat:
        """The same of any figure of a row."""
        return summarise(figure(row) for row in self.rows)

    @cached_property
    def psnr(self) -> Stat:
        return self.metric("psnr")

    @cached_property
    def cost(self) -> Stat:
        return self.stat(lambda row: row.cost)

    @property
    def missed(self) -> bool:
        """Whether the cost is not the one that was asked for."""
        target = self.entrant.target
        return target is not None and abs(self.cost.mean - target) > TOLERANCE

    @property
    def too_dear(self) -> bool:
        """Missed by costing more; such an entrant cannot be the best at its target."""
        return self.missed and self.cost.mean > (self.entrant.target or 0)

    @property
    def equal(self) -> bool:
        """Whether every latent equals the one without cache: nothing was saved, nothing lost."""
        return all(row.metrics.get("latent_error", 0) <= -99 for row in self.rows)

    @cached_property
    def speedup(self) -> Quartiles | None:
        if len(self.ratios) < 2:
            return Quartiles(*self.ratios * 3) if self.ratios else None
        low, median, high = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return Quartiles(median, low, high)

    @cached_property
    def schedules(self) -> tuple[tuple[float, ...], ...]:
        """Step costs of the rows that ran the most frequent number of steps."""
        steps = Counter(len(row.step_cost) for row in self.rows).most_common(1)[0][0]
        return tuple(row.step_cost for row in self.rows if len(row.step_cost) == steps)

    @property
    def frame_psnr(self) -> tuple[float, ...]:
        """Mean PSNR of every frame over the clips; empty for pictures."""
        clips = [row.frame_psnr for row in self.rows if row.frame_psnr]
        return tuple(statistics.fmean(values) for values in zip(*clips, strict=False))

    @property
    def step_cost(self) -> tuple[float, ...]:
        """Mean of `schedules`, step by step."""
        return tuple(statistics.fmean(costs) for costs in zip(*self.schedules, strict=True))

    @property
    def adaptive(self) -> bool:
        """Whether the schedule differs from prompt to prompt."""
        return len({row.step_cost for row in self.rows}) > 1

    @property
    def decomposition(self) -> Decomposition | None:
        """Root mean square over the rows that have one."""
        return mean_decomposition([row.decomposition for row in self.rows if row.decomposition is not None])

    def gain_over(self, other: "Result") -> Gain | None:
        """Paired by prompt and seed; None where they share none."""
        theirs = {row.key[1:]: row.metrics["psnr"] for row in other.rows}
        gains = [row.metrics["psnr"] - theirs[row.key[1:]] for row in self.rows if row.key[1:] in theirs]
        return Gain(statistics.fmean(gains), sum(gain > 0 for gain in gains), len(gains)) if gains else None


@dataclass(frozen=True)
class Section:
    """All entrants of one target (None: settings as published): with rows, and without (refused or not run yet)."""

    target: float | None
    results: tuple[Result, ...]
    absent: tuple[Entrant, ...]

    def of(self, method: str) -> Result | None:
        """The entrant of a method, if it ran."""
        return next((result for result in self.results if result.entrant.method == method), None)

    @property
    def best(self) -> Result | None:
        """The highest mean PSNR among those that are not too dear; published settings have no common cost."""
        fair = [result for result in self.results if not result.too_dear] if self.target is not None else []
        return max(fair, key=lambda result: result.psnr.mean, default=None)


@dataclass(frozen=True)
class ComparisonFile:
    """A comparison as its folder holds it.

    Attributes:
        reference: the entrant without cache.
        results: every other entrant, in table order; those without rows were refused or have not run yet.
        changes: TeaCache's calibration by context; empty where there is none.
        timed: number of rows whose times are known.
    """

    folder: Path
    header: Header
    reference: Result
    results: tuple[Result, ...]
    changes: dict[str, OutputChange]
    timed: int

    @property
    def rows_found(self) -> int:
        return len(self.reference.rows) + sum(len(result.rows) for result in self.results)

    @property
    def rows_expected(self) -> int:
        running = 1 + sum(result.entrant.refusal is None for result in self.results)
        return running * len(self.header.prompts) * self.header.seeds

    @property
    def unfinished(self) -> int:
        """Number of rows that are still to come."""
        return self.rows_expected - self.rows_found

    @property
    def sections(self) -> list[Section]:
        """One per target, in the header's order, others after them, published settings last."""
        targets = dict.fromkeys([*self.header.costs, *(result.entrant.target for result in self.results)])
        ordered: list[float | None] = [target for target in targets if target is not None]
        sections: list[Section] = []
        for target in [*ordered, None]:
            members = [result for result in self.results if result.entrant.target == target]
            absent = tuple(result.entrant for result in members if not result.rows)
            if members:
                sections.append(Section(target, tuple(result for result in members if result.rows), absent))
        return sections


def read_comparison(folder: Path) -> ComparisonFile:
    """Read the folder that `ertacache compare` wrote, finished or not.

    Raises:
        InvalidArgument: naming the file and line at fault.
    """
    path = folder / "results.jsonl"
    lines = read_result_lines(path, growing=True)
    header = header_of(lines[0][1])
    entrants = _read_entrants(folder / "entrants.json")
    rows: dict[Key, Row] = {}
    firsts: dict[str, Row] = {}
    for number, line in lines[1:]:
        row = row_of(number, line, header, firsts.get(line.text("entrant")))
        firsts.setdefault(row.entrant, row)
        _check(row.key, line, entrants, rows)
        rows[row.key] = row
    times = _read_times(folder / "timings.jsonl", header, entrants, rows)
    reference, *results = (_result(entrant, rows, times) for entrant in entrants.values())
    if not reference.rows:
        raise InvalidArgument(f"{path} has no row of {NO_CACHE!r}, which all others are held against; run it again")
    l1 = folder / "l1.json"
    changes = output_changes_of(read_json(l1), header.T) if l1.is_file() else {}
    return ComparisonFile(folder, header, reference, tuple(results), changes, len(times))


def _read_entrants(path: Path) -> dict[str, Entrant]:
    entrants: dict[str, Entrant] = {}
    for number, data in enumerate(read_json(path).items("entrants"), start=1):
        entry = JsonObject(data, f"{path}, entrant {number}")
        entrant = entrant_of(entry)
        if entrant.id in entrants:
            raise entry.wrong("id", "another one than those before it")
        if (number == 1) != (entrant.id == NO_CACHE):
            raise entry.wrong("id", f"{NO_CACHE!r} for the first entrant and for no other")
        entrants[entrant.id] = entrant
    if not entrants:
        raise InvalidArgument(f"{path} names no entrants; run the comparison again")
    return entrants


def _check(key: Key, line: JsonObject, entrants: dict[str, Entrant], seen: dict[Key, Row]) -> None:
    if key[0] not in entrants:
        raise line.wrong("entrant", "an id of entrants.json")
    if entrants[key[0]].refusal is not None:
        raise line.wrong("entrant", "one that was not refused")
    if key in seen:
        raise line.wrong("entrant", f"another one: prompt {key[1]}, seed {key[2]} is on line {seen[key].line} already")


def _read_times(path: Path, header: Header, entrants: dict[str, Entrant], rows: dict[Key, Row]) -> dict[Key, Times]:
    """Times by row. Without the file there are none: they belong to a machine and may have been left out."""
    lines = read_json_lines(path, growing=True) if path.is_file() else []
    times: dict[Key, Times] = {}
    for position, (_, line) in enumerate(lines):
        key = key_of(line, header)
        if key in times:
            raise line.wrong("entrant", f"another one: prompt {key[1]}, seed {key[2]} was timed before")
        # The time of a row is written before the row, so the last may be of one that was never finished.
        if key not in rows and (position < len(lines) - 1 or key[0] not in entrants):
            raise line.wrong("entrant", f"one with a row for prompt {key[1]}, seed {key[2]} in results.jsonl")
        if key in rows:
            times[key] = times_of(line)
    return times


def _result(entrant: Entrant, rows: dict[Key, Row], times: dict[Key, Times]) -> Result:
    own = tuple(row for row in rows.values() if row.entrant == entrant.id)
    ratios: list[float] = []
    for row in own:
        uncached = times.get((NO_CACHE, row.prompt, row.seed))
        if uncached is not None and row.key in times:
            ratios.append(uncached.seconds / times[row.key].seconds)
    peaks = [times[row.key].peak_bytes for row in own if row.key in times]
    return Result(entrant, own, tuple(ratios), max((peak for peak in peaks if peak is not None), default=None))
