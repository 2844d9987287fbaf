"""The sizes that one calibration covers: their calls, and whether each has a time grid of its own."""

import os
import reprlib
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from ertacache.calibration.begun import begun
from ertacache.calibration.checks import check_whole
from ertacache.calibration.prompts import Prompts
from ertacache.errors import InvalidArgument
from ertacache.profile.checks import MAX_GRIDS
from ertacache.runtime.grids import same_grid

#: (height, width) in pixels, of clips also (height, width, frames).
Size = tuple[int, ...]
_NAMES = ("height", "width", "num_frames")


def check_sizes(sizes: Sequence[Sequence[int]], call: dict[str, Any]) -> tuple[Size, ...]:
    """The sizes as tuples.

    Args:
        call: the other arguments of the pipeline calls.

    Raises:
        InvalidArgument: no size, too many, the same twice, one that is no (height, width) or (height, width, frames),
            or what the call gives too.
    """
    listed = isinstance(sizes, tuple | list)  # pyright: ignore[reportUnnecessaryIsInstance]
    if not listed or not all(isinstance(size, tuple | list) and len(size) in (2, 3) for size in sizes):
        raise InvalidArgument(
            f"sizes is {reprlib.repr(sizes)}; give a list of (height, width) or (height, width, frames)"
        )
    if not 1 <= len(sizes) <= MAX_GRIDS:
        raise InvalidArgument(f"sizes has {len(sizes)} entries; give 1 to {MAX_GRIDS}, or leave it out")
    for size in sizes:
        for name, value in zip(_NAMES, size, strict=False):
            check_whole(name, value, 1, f"in sizes, {reprlib.repr(size)}")
            if name in call:
                raise InvalidArgument(f"{name!r} is given in sizes and for all calls; give it once")
    found = tuple(map(tuple, sizes))
    if twice := [size for n, size in enumerate(found) if size in found[:n]]:
        raise InvalidArgument(f"sizes has {twice[0]} twice; give each once")
    return found


def sized(call: dict[str, Any], size: Size) -> dict[str, Any]:
    """The arguments of the pipeline calls of one size."""
    return {**call, **dict(zip(_NAMES, size, strict=False))}


def in_words(size: Size) -> str:
    """Such as 768×1344."""
    return "×".join(map(str, size))


def checkpoint_of(path: str | os.PathLike[str] | None, size: Size, scale: float | None = None) -> Path | None:
    """The folder in which the runs of one size, at one of several guidance scales, are kept, inside that of all."""
    if path is None:
        return None
    folder = Path(path) / "x".join(map(str, size))
    return folder if scale is None else folder / f"guidance {scale!r}"


def check_own_grids(pipe: Any, prompt: Prompts, calls: dict[Size, dict[str, Any]]) -> None:
    """Refuse sizes that run on one time grid, of which a run could not tell whose profile is its own.

    Args:
        prompt: one of the calibration's; each size is begun with it, and ends before the denoiser runs.
        calls: the arguments of the pipeline call of each size.

    Raises:
        InvalidArgument: naming both sizes.
        UnsupportedPipeline: the pipeline sets no timesteps.
    """
    if len(calls) < 2:
        return
    grids = {size: begun(pipe, prompt, call)[0] for size, call in calls.items()}
    for one, other in combinations(calls, 2):
        if same_grid(grids[one], grids[other]):
            raise InvalidArgument(
                f"sizes {in_words(one)} and {in_words(other)} have the same time grid, so that the profile of one "
                "serves both; leave one of them out"
            )
