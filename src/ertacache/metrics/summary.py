"""Values per sample, added up over batches and over the ranks of a distributed run."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict

from ertacache.errors import InvalidArgument


class Summary(TypedDict):
    """Mean, sample standard deviation (n - 1; 0 for one image) and the value of every image, in order."""

    mean: float
    std: float
    values: list[float]


class PerSample:
    """Lists of equal length, one per metric. It keeps floats, never an image.

    Args:
        names: of the metrics.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._values: dict[str, list[float]] = {name: [] for name in names}

    def state(self) -> dict[str, list[float]]:
        """All values so far, by metric; another object of the same metrics takes them with `merge`."""
        return {name: list(values) for name, values in self._values.items()}

    def merge(self, state: Mapping[str, Sequence[float]]) -> None:
        """Add the samples of a `state`, after those already here.

        Raises:
            InvalidArgument: a state of other metrics, or with lists of unequal length.
        """
        if set(state) != set(self._values):
            raise InvalidArgument(
                f"the state holds {', '.join(sorted(state)) or 'nothing'}, not {', '.join(sorted(self._values))}; "
                "merge states of the same metrics"
            )
        lengths = {name: len(values) for name, values in state.items()}
        if len({*lengths.values()}) > 1:
            raise InvalidArgument(f"the state holds unequal numbers of samples, {lengths}; pass one that state() gave")
        for name, values in state.items():
            self._values[name] += values

    def compute(self) -> dict[str, Summary]:
        """A summary per metric.

        Raises:
            InvalidArgument: before the first sample.
        """
        if not all(self._values.values()):
            raise InvalidArgument("no images to summarise; call update(images, references) before compute()")
        return {name: _summary(values) for name, values in self._values.items()}


def _summary(values: list[float]) -> Summary:
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": std, "values": list(values)}
