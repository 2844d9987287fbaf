"""Coefficient tables on their way into a file and out of it: only what is predicted has coefficients.

In memory a table has one row per step, zero at computed steps, and one entry per target. A file holds the rows of
predicted steps only, and the rectifier of several targets once where it is the same for all of them. Of the corrections
of computed steps it holds those that change something.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ertacache.core.compensation import Compensation
from ertacache.core.schedule import Schedule
from ertacache.errors import InvalidArgument
from ertacache.profile.profile_file import SIZE_CAP
from ertacache.profile.sealed import is_list, short

TABLES = ("predictor.a", "predictor.b", "predictor.d", "rectifier.beta", "rectifier.kappa")
CORRECTIONS = ("compensation.bias", "compensation.gain", "compensation.previous")

#: Of one table in memory: a file of a few rows must not fill it by naming thousands of steps.
TABLE_CAP = 4 * SIZE_CAP


def to_rows(tables: Mapping[str, Tensor], schedule: Schedule, grids: int = 1) -> dict[str, Tensor]:
    """Tables [T, M, *] as a file holds them: [P, M, *] for P predicted steps, [P, 1, *] for a shared rectifier.

    Args:
        grids: number of profiles in the file, which share the cap.

    Raises:
        InvalidArgument: a table over the cap in memory, which no reader would take.
    """
    rows: dict[str, Tensor] = {}
    for name, table in tables.items():
        _check_room(table.shape[1:], table.element_size(), schedule.T, name, grids)
        kept = table[list(schedule.predicted_steps)]
        rows[name] = kept[:, :1] if name.startswith("rectifier.") and _shared(kept) else kept
    return rows


def from_rows(rows: Mapping[str, Tensor], schedule: Schedule, targets: int, grids: int = 1) -> dict[str, Tensor]:
    """Inverse of `to_rows` for `targets` = M.

    Raises:
        InvalidArgument: other rows than the predicted steps, or a table over the cap in memory.
    """
    tables: dict[str, Tensor] = {}
    for name, kept in sorted(rows.items()):
        P = len(schedule.predicted_steps)
        if kept.ndim < 2 or len(kept) != P:
            raise InvalidArgument(
                f"{name} has shape {list(kept.shape)} where the {P} predicted steps of '{schedule}' need "
                f"[{P}, targets, ...]"
            )
        M = targets if name.startswith("rectifier.") and kept.shape[1] == 1 else kept.shape[1]
        _check_room((M, *kept.shape[2:]), kept.element_size(), schedule.T, name, grids)
        tables[name] = kept.new_zeros(schedule.T, M, *kept.shape[2:])
        tables[name][list(schedule.predicted_steps)] = kept
    return tables


def corrected_rows(compensation: Compensation | None) -> tuple[list[int] | None, dict[str, Tensor]]:
    """The steps that a compensation corrects, and its tables [R, C] at these; None and none where there is none."""
    if compensation is None:
        return None, {}
    steps = [i for i in range(compensation.T) if not compensation.is_identity(i)]
    return steps, {name: getattr(compensation, name.rpartition(".")[2])[steps] for name in CORRECTIONS}


def compensation_of(steps: object, rows: Mapping[str, Tensor], T: int, grids: int = 1) -> Compensation | None:
    """Inverse of `corrected_rows` for T steps.

    Raises:
        InvalidArgument: steps that are no rising list within the run, other rows than theirs, or a row without effect.
    """
    if steps is None:
        return None
    if (
        not is_list(steps)
        or not all(type(i) is int and 0 <= i < T for i in steps)
        or sorted(set(steps)) != steps
        or not steps
    ):
        raise InvalidArgument(f"compensation is {short(steps)}; give the corrected steps of {T}, rising, or null")
    tables = dict[str, Tensor]()
    for name, kept in sorted(rows.items()):
        if kept.ndim != 2 or len(kept) != len(steps):
            raise InvalidArgument(
                f"{name} has shape {list(kept.shape)} where {len(steps)} corrected steps need [{len(steps)}, channels]"
            )
        _check_room(tuple(kept.shape[1:]), kept.element_size(), T, name, grids)
        tables[name] = kept.new_full((T, kept.shape[1]), float(name == CORRECTIONS[1]))
        tables[name][steps] = kept
    found = Compensation(**{name.rpartition(".")[2]: table for name, table in tables.items()})
    if idle := [i for i in steps if found.is_identity(i)]:
        raise InvalidArgument(f"compensation names step {idle[0]} and changes nothing there; leave it out")
    return found


def _check_room(row: tuple[int, ...], size: int, T: int, name: str, grids: int) -> None:
    cap = TABLE_CAP // grids
    if (needed := T * math.prod(row) * size) > cap:
        raise InvalidArgument(
            f"{name} takes {needed} bytes in memory at {T} steps, over the cap of {cap}; use coefficients per "
            "channel in place of one per element"
        )


def _shared(rows: Tensor) -> bool:
    """Whether all targets have the same bits."""
    bits = rows.contiguous().view(torch.int32 if rows.dtype == torch.float32 else torch.int16)
    return bool((bits == bits[:, :1]).all())
