"""How much to compute, in the units that people say it in."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

from ertacache.calibration.checks import check_number, check_whole
from ertacache.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class Budget:
    """One of these, or none where a given schedule says it.

    Attributes:
        compute_steps: K, the steps to compute.
        speedup: how many times fewer steps to compute than the pipeline does.
        target_psnr: dB that the plan shall keep; as few steps as do.
        max_seconds: what a call for one prompt may take; as many steps as that allows.
        threshold: λ of Algorithm 2.

    Raises:
        InvalidArgument: a number that cannot work, or two budgets.
    """

    compute_steps: int | None = None
    speedup: float | None = None
    target_psnr: float | None = None
    max_seconds: float | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.compute_steps is not None:
            check_whole("compute_steps", self.compute_steps, 2, "the first and the last step are computed")
        for name, (remedy, least) in _NUMBERS.items():
            if (value := getattr(self, name)) is not None:
                check_number(name, value, remedy, lambda x, least=least: least < x < math.inf)
        if len(given := self.given) > 1:
            words = [f"{name}={value}" for name, value in given.items()]
            raise InvalidArgument(f"{words[1]} excludes {words[0]}; give one of them")

    @property
    def given(self) -> dict[str, Any]:
        """What is given, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def steps(self, T: int) -> int | None:
        """K of a run of T steps; None where only measuring tells.

        Raises:
            InvalidArgument: more than T, fewer than 2, or a run without a step to spare.
        """
        sparing = self.speedup or self.target_psnr or self.max_seconds
        if sparing is not None and T < _FEWEST:
            ((name, value),) = self.given.items()
            steps = f"{T} step{'s' * (T > 1)}"
            raise InvalidArgument(f"{name} is {value}, and a run of {steps} has none to spare; use more")
        if self.speedup is not None:
            K = math.floor(T / self.speedup + 1e-9)  # 30 at 3 × are 10, whatever 30 / 3.0 rounds to
            if K < 2:
                raise InvalidArgument(
                    f"speedup is {self.speedup}, which leaves {K} of {T} steps, and the first and the last step are "
                    f"computed; choose {T / 2:g} at most, or use more steps"
                )
            return K
        if self.compute_steps is not None and self.compute_steps > T:
            raise InvalidArgument(f"compute_steps is {self.compute_steps}; choose 2 to {T} of {T} steps")
        return self.compute_steps


#: Steps of a run of which one can be spared: the first and the last step are computed.
_FEWEST = 3
_NUMBERS: dict[str, tuple[str, float]] = {
    "speedup": ("choose a number above 1, such as 2.0", 1),
    "target_psnr": ("choose dB above 0, such as 30", 0),
    "max_seconds": ("choose seconds above 0", 0),
    "threshold": ("choose a positive λ, such as 0.1", 0),
}


def budgets_of(given: dict[str, Any]) -> tuple[tuple[Budget, ...], bool]:
    """The budgets that arguments stand for, one for each entry of a list, and whether a list was given.

    Args:
        given: arguments named like the attributes of `Budget`, a number or a list of them each; None for none.

    Raises:
        InvalidArgument: as `Budget`, an empty list, or one that says a budget twice.
    """
    lists = {name: _entries(value) for name, value in given.items() if isinstance(value, Sequence)}
    if not lists:
        return (Budget(**given),), False
    (name, values), *more = lists.items()
    if more:
        raise InvalidArgument(f"{more[0][0]}={given[more[0][0]]!r} excludes {name}={given[name]!r}; give one of them")
    if not values or isinstance(given[name], str | bytes | bytearray):
        raise InvalidArgument(f"{name} is {given[name]!r}; give a number, or a list of one number or more")
    found = tuple(Budget(**{**given, name: value}) for value in values if value is not None)
    if len(set(found)) < len(values):
        raise InvalidArgument(f"{name} is {given[name]!r}; give each budget once, and no None among them")
    return found, True


def _entries(value: Any) -> list[Any]:
    return list(cast("Sequence[Any]", value))
