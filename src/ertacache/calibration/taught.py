"""What a calibration may aim at in place of the uncached run: a run that is made in another way."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor

from ertacache.calibration.prompts import Prompts
from ertacache.calibration.recording import Recording
from ertacache.calibration.reference_log import Reference
from ertacache.runtime.run import Controller


class Runs(Protocol):
    """What a teacher needs of the calibration that it is for."""

    call: dict[str, Any]
    run: Callable[..., Tensor]


class Teacher(Protocol):
    """A kind of run whose latents are aimed at, and from which results are measured.

    Attributes:
        name: of its results in a store. parts: uncached runs that one of its own takes.
    """

    name: ClassVar[str]

    @property
    def parts(self) -> int: ...

    @property
    def words(self) -> dict[str, Any]:
        """What figures that are measured from its runs are told of them."""
        ...

    @property
    def choices(self) -> dict[str, Any]:
        """What a provenance has among the choices of the method."""
        ...

    def identity(self) -> dict[str, Any]:
        """What tells it from others, for a checkpoint."""
        ...

    def facts(self, pipe: Any) -> dict[str, Any]:
        """Further fields of a provenance, for a profile of this pipeline."""
        ...

    def watching(self) -> Controller:
        """A controller under which `run` makes its run and no more."""
        ...

    def run(self, recorder: Runs, prompts: Prompts, controller: Controller, *, decode: bool = False) -> Tensor:
        """One pipeline call under `watching`, or what follows it."""
        ...

    def record(self, recorder: Runs, prompts: Prompts, path: Path, own: Reference) -> dict[str, Any]:
        """Make a run and record it, beside the uncached one, in a file; returns its layout."""
        ...

    def check(self, own: Recording, found: Recording) -> None:
        """Refuse a recording that cannot be aimed at."""
        ...
