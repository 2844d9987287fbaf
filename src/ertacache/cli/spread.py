"""The actors of Ray that the runs of a command are spread over."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ertacache.cli.options import Placement, Spread
from ertacache.errors import InvalidArgument
from ertacache.extras import require
from ertacache.pipelines import bundled


def check_spread(spread: Spread, placement: Placement, reference: str | None = None) -> None:
    """Refuse what actors cannot have, before a model is loaded.

    Args:
        reference: of a quantised model, the one in full precision.

    Raises:
        InvalidArgument: GPUs of no actors, no such share of them, or an option that actors do not have.
        MissingExtra: Ray is not installed.
    """
    if spread.ray_actors is None:
        if spread.num_gpus is not None:
            raise InvalidArgument(f"--num-gpus is {spread.num_gpus:g}, of each actor; say how many with --ray-actors")
        return
    from ertacache.ray.source import check_shares

    check_shares(_gpus(spread), 1)
    if placement.offload != "none":
        raise InvalidArgument(f"--offload is {placement.offload}, and actors hold a whole model; leave one of both out")
    if reference is not None:
        raise InvalidArgument(f"--reference is {reference}, which actors do not have; leave --ray-actors out")
    require("--ray-actors", "ray")


@contextmanager
def spread_over(model: str, spread: Spread) -> Generator[Any]:
    """What `map=` takes; None where nothing is spread. Its actors end afterwards."""
    if spread.ray_actors is None:
        yield None
        return
    from ertacache.ray import actors

    # They work in other folders than this process.
    place = str(Path(model).absolute()) if model not in bundled.NAMES and Path(model).is_dir() else model
    made = actors.map(place, num_gpus=_gpus(spread), actors=spread.ray_actors)
    try:
        yield made
    finally:
        made.close()


def _gpus(spread: Spread) -> float:
    return 1.0 if spread.num_gpus is None else spread.num_gpus
