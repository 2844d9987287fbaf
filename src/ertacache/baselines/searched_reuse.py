"""Reuse on a schedule that was searched for on calibration prompts: what the compared searches share."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from ertacache.baselines.baseline import Baseline, Bench, Knob, denoiser_class, steps_of
from ertacache.baselines.forecast import Forecast, Forecasting, Place
from ertacache.calibration.pipeline_run import run_pipeline
from ertacache.core.precision import widen
from ertacache.core.schedule import Schedule
from ertacache.errors import CalibrationError
from ertacache.pipelines.models import blocks_of, denoiser_of
from ertacache.runtime.hooks import attached
from ertacache.runtime.run import Run

#: (computed steps) -> loss, lower is better.
Loss = Callable[[tuple[int, ...]], float]
Reused = Literal["hidden", "residual", "plain"]


@dataclass(frozen=True)
class SearchedReuse(Baseline):
    """Fields that every search has.

    Args:
        reused: the residual of the block stack ("hidden"), that of what the solver receives to the latent
            ("residual", Eq. 5-6), or what the solver received ("plain").
        share: K / T, where no cost is asked for.
        steps: those that are computed; None to have `planned` search.
        prompts: from the calibration prompts, which the search runs.
        seed: of its random choices.
    """

    work: ClassVar[str] = "the embeddings and the head; nothing of the denoiser unless the hidden residual is reused"
    knob: ClassVar[Knob] = Knob("share", 1.0, 0.05)

    reused: Reused = "hidden"
    share: float = 0.5
    steps: tuple[int, ...] | None = None
    prompts: int = 4
    seed: int = 0

    @property
    def place(self) -> Place:
        """Where it reuses."""
        return "features" if self.reused == "hidden" else "solver"

    def variants(self) -> tuple[Self, ...]:
        """The residual of the block stack as published, and the last output again."""
        others: tuple[Reused, ...] = ("hidden", "plain")
        return (self, *(replace(self, reused=other) for other in others if other != self.reused))

    def refusal(self, pipe: Any, call: Mapping[str, Any]) -> str | None:
        if self.reused == "hidden" and not blocks_of(denoiser_of(pipe)):
            return f"the blocks of {denoiser_class(pipe)} are not known"
        return f"a run of {steps_of(call)} steps leaves nothing to choose" if steps_of(call) < 3 else None

    @abstractmethod
    def search(self, bench: Bench, K: int, loss: Loss) -> tuple[int, ...]:
        """The K steps to compute, step 0 among them; `loss` runs the pipeline once for each schedule it is asked for
        and remembers it."""

    @abstractmethod
    def distance(self, latents: Tensor, reference: Tensor) -> float:
        """The loss: of final latents [N, *] from those of the uncached run."""

    def planned(self, bench: Bench, target: float | None) -> Self:
        T = bench.T
        K = min(T, max(2, round((self.share if target is None else target) * T)))
        reference, known = self._finals(bench, tuple(range(T))), dict[tuple[int, ...], float]()

        def loss(steps: tuple[int, ...]) -> float:
            if steps not in known:
                known[steps] = self.distance(self._finals(bench, steps), reference)
            return known[steps]

        return replace(self, share=K / T, steps=self.search(bench, K, loss))

    def applied(self, pipe: Any, call: Mapping[str, Any]) -> AbstractContextManager[Any]:
        """See `Baseline.applied`.

        Raises:
            CalibrationError: there is no schedule, or none for as many steps.
        """
        T = steps_of(call)
        if self.steps is None or max(self.steps) >= T:
            raise CalibrationError(f"{self.key} has no schedule for these {T} steps yet; call planned() first")
        return attached(pipe, self._controller(self.steps), hidden=self.reused == "hidden")

    def _controller(self, steps: tuple[int, ...]) -> Forecasting:
        return Forecasting(
            self.place, lambda T: Schedule.from_steps(T, steps), lambda run: Reuse(run, residual=self.reused != "plain")
        )

    def _finals(self, bench: Bench, steps: tuple[int, ...]) -> Tensor:
        """Final latents [N, *] of the search's prompts with these steps computed."""
        latents: list[Tensor] = []
        for batch in bench.prompts.first(self.prompts).batches(bench.batch_size):
            hidden = self.reused == "hidden"
            latents.append(
                run_pipeline(bench.pipe, batch, self._controller(steps), bench.call, hidden=hidden, decode=False)
            )
            bench.progress("calibration run")
        return torch.cat(latents)


class Reuse(Forecast):
    """The value of the last computed step; with `residual`, x + (that value − its x)."""

    def __init__(self, run: Run, residual: bool) -> None:
        self._residual = residual

    def push(self, step: int, value: Tensor, x: Tensor) -> None:
        self._value, self._x = value, x

    def predict(self, step: int, x: Tensor) -> Tensor:
        if not self._residual:
            return self._value
        return (widen(x) + (widen(self._value) - widen(self._x))).to(self._value.dtype)
