"""Coefficient tables on their way into a file and out of it: only what is predicted has coefficients.

In memory a table has one row per step, zero at computed steps, and one entry per target. A file holds the rows of
predicted steps only, and the rectifier of several targets once where it is the same for all of them.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ertacache.core.schedule import Schedule
from ertacache.errors import InvalidArgument
from ertacache.profile.profile_file import SIZE_CAP

TABLES = ("predictor.a", "predictor.b", "predictor.d", "rectifier.beta", "rectifier.kappa")

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
