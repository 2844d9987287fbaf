"""Stands for processes with a pipeline each, in this one: everything goes to them and back through pickle."""

import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any


class Pickled:
    """A `spread.Map`; units go to its workers in turn.

    Args:
        load: gives a worker its pipeline.

    Attributes:
        pipes: of the workers. units: how many went to them, call by call.
    """

    def __init__(self, load: Callable[[], Any], workers: int = 2) -> None:
        self.pipes = [load() for _ in range(workers)]
        self.units: list[int] = []

    def __call__(self, pipe: Any, make: Callable[[Any], Any], units: Sequence[Callable[[Any], Any]]) -> Iterator[Any]:
        self.units.append(len(units))
        benches = [pickle.loads(pickle.dumps(make))(own) for own in self.pipes]
        for n, unit in enumerate(units):
            result = pickle.loads(pickle.dumps(unit))(benches[n % len(benches)])
            yield pickle.loads(pickle.dumps(result))
