"""Runs that are spread over processes with a pipeline each: what a unit of work is, and who makes it.

Nothing here knows how processes are started; `ertacache.ray.map` does. A unit of a calibration leaves its result in the
folder of the checkpoint, which all machines see, and the calibration, which is the same with and without, finds it
there. So the results are those of one process, and what a process that died has finished is not made again.
"""

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ertacache.errors import CalibrationError, InvalidArgument
from ertacache.pipelines.models import boundary_of
from ertacache.pipelines.weights import weights_hash
from ertacache.profile.fingerprint import config_hash
from ertacache.runtime.identity import identity_of, quantizers_of

#: Seconds after which a file that another machine has finished is given up: a network folder's directories may be old.
_PATIENCE = 90.0


Bench = TypeVar("Bench")
Result = TypeVar("Result")


class Map(Protocol):
    """What `map=` takes: makes units of work in processes that have a pipeline each."""

    def __call__(
        self, pipe: Any, make: Callable[[Any], Bench], units: Sequence[Callable[[Bench], Result]]
    ) -> Iterator[Result]:
        """The results in the order of the units, each as soon as it and those before it are there.

        Args:
            pipe: the pipeline of this process; the others have one with the same `pipeline_hash`.
            make: called with the pipeline of the other process, once in each. units: called with what it returned.
                All of them can be pickled.

        Raises:
            ErtacacheError: what a unit raises, or a process that ends again and again.
        """
        ...


@dataclass(frozen=True, eq=False)
class Elsewhere:
    """How another process makes a calibrator that leaves its results in the folder of this one.

    Attributes:
        kind: its class. arguments: those of its constructor but the pipeline.
        identity: the file by which the folder is known.
    """

    kind: Callable[..., Any]
    arguments: dict[str, Any]
    identity: Path

    def __call__(self, pipe: Any) -> Any:
        check_seen(self.identity, "checkpoint")
        return self.kind(pipe, **self.arguments, checkpoint=self.identity.parent)


@dataclass(frozen=True, eq=False)
class Made:
    """A unit of a calibration.

    Attributes:
        leave: called with a calibrator, in whose store it leaves a result.
    """

    leave: Callable[[Any], object]

    def __call__(self, calibrator: Any) -> list[str]:
        """The names of the pipeline runs that it took."""
        names: list[str] = []
        calibrator.progress = names.append
        self.leave(calibrator)
        return names


def pipeline_hash(pipe: Any) -> str:
    """A name for all that the results of a pipeline depend on: classes, configurations and weights of its parts, and
    how its denoisers are quantised."""
    found = quantizers_of(pipe)  # which weights alone do not tell: w4a4 and w4a8 have the same
    told = [found] if any(one is not None for one in found) else []
    return config_hash({"pipeline": [identity_of(pipe), weights_hash(pipe), boundary_of(pipe), *told]})


def check_seen(file: Path, argument: str) -> None:
    """Refuse to work on a machine that lacks the folder of a file.

    Args:
        argument: by which the folder is given.

    Raises:
        InvalidArgument: naming the folder.
    """
    if not file.is_file():
        raise InvalidArgument(
            f"{file.parent} is not to be seen from {socket.gethostname()}, where work is spread to; give a folder "
            f"that all machines share: {argument}="
        )


def wait_for(there: Callable[[], bool], what: str, patience: float = _PATIENCE) -> None:
    """Wait for what another machine has left in a shared folder.

    Raises:
        CalibrationError: it does not come.
    """
    end = time.monotonic() + patience
    while not there():
        if time.monotonic() > end:
            raise CalibrationError(
                f"{what} was made on another machine and is not to be seen here after {patience:g} s; mount the folder "
                "without a cache of its directories"
            )
        time.sleep(0.5)
