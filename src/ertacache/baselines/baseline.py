"""What a compared method is: settings, a knob that trades quality for cost, and a way on and off a pipeline."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Self

from torch import Tensor

from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.pipeline_run import run_pipeline
from ertacache.calibration.prompts import Prompts
from ertacache.errors import InvalidArgument
from ertacache.pipelines.models import denoiser_of, unwrapped
from ertacache.runtime.run import Controller


@dataclass(frozen=True, slots=True)
class Knob:
    """The field that is turned to reach a cost.

    Attributes:
        field: name of the dataclass field.
        low, high: its least and its most caching; `low` may be larger than `high`.
        whole: whether it takes whole numbers only.
    """

    field: str
    low: float
    high: float
    whole: bool = False


@dataclass(frozen=True)
class Bench:
    """The pipeline, its call and the prompts that methods may be calibrated and tuned on.

    Attributes:
        call: arguments of the pipeline call, `num_inference_steps` always among them.
        prompts: for calibration; never measured on.
        batch_size: prompts per call in a profile's calibration; None for all at once.
        notes: what methods measured beforehand and others may want to see, by the name of its file.
    """

    pipe: Any
    call: dict[str, Any]
    prompts: Prompts
    batch_size: int | None = None
    notes: dict[str, Any] = field(default_factory=dict[str, Any])
    progress: Callable[[str], None] = lambda _: None

    @property
    def T(self) -> int:
        """Number of solver steps."""
        return int(self.call["num_inference_steps"])

    @cached_property
    def calibrator(self) -> Calibrator:
        """For methods that are profiles; its uncached run is made once for all of them."""
        return Calibrator(
            self.pipe,
            self.prompts.texts,
            inputs=self.prompts.inputs or None,
            choose=1 / 3,
            seed=self.prompts.seed,
            call=self.call,
            batch_size=self.batch_size,
            progress=self.progress,
        )

    def record(self, controller: Controller, prompts: int, *, hidden: bool = False) -> Tensor:
        """Run the first calibration prompts, one by one, under a controller; returns the last final latent."""
        latents: list[Tensor] = []
        for batch in self.prompts.first(prompts).batches(1):
            latents.append(run_pipeline(self.pipe, batch, controller, self.call, hidden=hidden, decode=False))
            self.progress("calibration run")
        return latents[-1]


@dataclass(frozen=True)
class Baseline(ABC):
    """One compared method; subclasses are frozen dataclasses whose fields are its settings.

    Class attributes:
        key: its name in commands and files.
        title: its name in tables.
        paper: where it was published.
        work: what it counts as work: what runs on a step that it caches.
        knob: what a comparison turns to reach a cost.
        batch: why a batch of two differs from two batches of one; empty where it does not.
        extra: the optional extra of this package that it needs; empty where it needs none.
        other_solver: whether it puts another scheduler in the place of the pipeline's.
    """

    key: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    work: ClassVar[str]
    knob: ClassVar[Knob]
    batch: ClassVar[str] = ""
    extra: ClassVar[str] = ""
    other_solver: ClassVar[bool] = False

    @classmethod
    def published(cls) -> Mapping[str, Mapping[str, Self]]:
        """Denoiser class -> name of the setting, such as "slow" -> the method with its published settings."""
        return {}

    def refusal(self, pipe: Any, call: Mapping[str, Any]) -> str | None:
        """Why this method cannot run on a pipeline and call, for the table; None where it can."""
        return None

    def calibrated(self, bench: Bench) -> Self:
        """The method with what it measures beforehand (coefficients, ratios, profiles) filled in."""
        return self

    def planned(self, bench: Bench, target: float | None) -> Self | None:
        """The method at a wanted cost (None: at its own settings) where it knows by itself how to get there, without
        its knob being turned; None where it does not."""
        return None

    def variants(self) -> tuple[Self, ...]:
        """The method itself and others with a setting changed that its knob does not turn: a comparison tunes each of
        them to the cost and keeps the one that is best on the calibration prompts."""
        return (self,)

    def at(self, value: float) -> Self:
        """The method with its knob at `value`.

        Raises:
            InvalidArgument: outside of the knob's range.
        """
        knob = self.knob
        if not min(knob.low, knob.high) <= value <= max(knob.low, knob.high):
            raise InvalidArgument(f"{self.key}: {knob.field} is {value:g}; choose {knob.low:g} to {knob.high:g}")
        return replace(self, **{knob.field: round(value) if knob.whole else value})  # pyright: ignore[reportArgumentType, reportUnknownVariableType]

    def call(self, call: dict[str, Any]) -> dict[str, Any]:
        """The arguments of the pipeline call under this method."""
        return call

    @abstractmethod
    def applied(self, pipe: Any, call: Mapping[str, Any]) -> AbstractContextManager[Any]:
        """Put the method on a pipeline for the length of a `with` block, for calls with these arguments.

        Afterwards the pipeline is bit for bit what it was.
        """


def denoiser_class(pipe: Any) -> str:
    """Class name of a pipeline's denoiser: the key of `published`."""
    return type(unwrapped(denoiser_of(pipe))).__name__


def steps_of(call: Mapping[str, Any]) -> int:
    """T of a pipeline call."""
    return int(call["num_inference_steps"])
