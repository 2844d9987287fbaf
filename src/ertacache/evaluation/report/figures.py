"""Figures that both kinds of result files hold: a mean with its spread, and where errors come from."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ertacache.evaluation.report.json_object import JsonObject


@dataclass(frozen=True, slots=True)
class Stat:
    """Mean, sample standard deviation and the values, one for each run."""

    mean: float
    std: float
    values: tuple[float, ...]

    @property
    def standard_error(self) -> float:
        """Of the mean; 0 for one value."""
        return self.std / max(len(self.values), 1) ** 0.5


@dataclass(frozen=True, slots=True)
class Decomposition:
    """RMS figures per step i: feature shift and amplified share, T values each; deviation, T + 1 values."""

    feature_shift: tuple[float, ...]
    amplified: tuple[float, ...]
    deviation: tuple[float, ...]


def summarise(values: Iterable[float]) -> Stat:
    """Mean, sample standard deviation (0 for one value) and the values."""
    kept = tuple(values)
    return Stat(statistics.fmean(kept), statistics.stdev(kept) if len(kept) > 1 else 0.0, kept)


def stat_of(part: JsonObject) -> Stat:
    """A statistic as a result file has it."""
    return Stat(part.number("mean"), part.number("std"), part.numbers("values"))


def decomposition_of(line: JsonObject, T: int) -> Decomposition | None:
    """The decomposition of a row of T steps; None where it has none."""
    if line.value("decomposition") is None:
        return None
    part = line.part("decomposition")
    return Decomposition(
        feature_shift=part.numbers("feature_shift", T),
        amplified=part.numbers("amplified", T),
        deviation=part.numbers("deviation", T + 1),
    )


def mean_decomposition(parts: Sequence[Decomposition]) -> Decomposition | None:
    """Root mean square over several, step by step; None of none."""
    if not parts:
        return None
    return Decomposition(
        feature_shift=_rms([part.feature_shift for part in parts]),
        amplified=_rms([part.amplified for part in parts]),
        deviation=_rms([part.deviation for part in parts]),
    )


def _rms(tables: Sequence[Sequence[float]]) -> tuple[float, ...]:
    return tuple(statistics.fmean(value * value for value in column) ** 0.5 for column in zip(*tables, strict=True))
