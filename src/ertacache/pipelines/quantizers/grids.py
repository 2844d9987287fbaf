"""Several grids for one weight, of which each step of a run takes one: rounding errors that do not add up.

One grid errs in the same direction at every step, and the solver adds the errors up; those of grids that are shifted
against each other average out over the steps.
"""

import hashlib
import inspect
import threading
from typing import Any

from torch import Tensor, nn

from ertacache.errors import UnsupportedPipeline


def shifts(grids: int) -> tuple[float, ...]:
    """Of each grid, in scales, evenly over one: (0,), (−1/4, 1/4), (−3/8, −1/8, 1/8, 3/8), ..."""
    return tuple((k + 0.5) / grids - 0.5 for k in range(grids))


def grid_at(timestep: float, grids: int) -> int:
    """Which grid serves a timestep: a hash of that alone, so that skipped, resumed and interleaved runs keep theirs.

    Taking turns by the number of the step averages out a little better, but has to know the run; a rule without chance
    in it could fall in step with the grid of timesteps.
    """
    # Digits enough for a thousand steps: what differs in the last bits only is one timestep. And 0 has one sign.
    digest = hashlib.blake2b(f"{timestep + 0.0:.5g}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % grids


class Turn(threading.local):
    """Which grid the layers of a denoiser use, in the calling thread; a forward pre-hook of the denoiser.

    Args:
        grids: how many there are.
        position: of the timestep among the arguments of the denoiser's `forward`.
    """

    def __init__(self, grids: int, position: int) -> None:
        self.grids, self.position, self.grid = grids, position, 0

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.grids, self.position)  # a copied denoiser has one of its own

    def __call__(self, denoiser: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Choose by the noisiest part of the call, which waits for the device: where tokens have timesteps
        of their own, those of a given first frame are 0 throughout.

        Raises:
            UnsupportedPipeline: the call has no timestep.
        """
        given: Any = options.get("timestep", args[self.position] if len(args) > self.position else None)
        if given is None:
            raise UnsupportedPipeline(
                f"{type(denoiser).__name__} was called without a timestep, by which steps choose among {self.grids} "
                "grids; use a scheme of one grid, such as w4a4"
            )
        if isinstance(given, Tensor):
            given = given.max() if given.numel() else 0  # of an empty batch nothing comes
        self.grid = grid_at(float(given), self.grids)


def turn_of(denoiser: nn.Module, grids: int) -> Turn | None:
    """What chooses among the grids of a denoiser; None for a single one.

    Raises:
        UnsupportedPipeline: its `forward` takes no timestep.
    """
    if grids == 1:
        return None
    names = list(inspect.signature(type(denoiser).forward).parameters)[1:]
    if "timestep" not in names:
        raise UnsupportedPipeline(
            f"{type(denoiser).__name__}.forward takes no argument 'timestep', by which the steps choose among {grids} "
            "grids; use a scheme of one grid, such as w4a4"
        )
    return Turn(grids, names.index("timestep"))
