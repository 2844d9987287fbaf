"""A controller that watches another one at work."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ertacache.errors import ErtacacheError
from ertacache.pipelines.overrides import Overrides
from ertacache.runtime.run import Controller, Run


@dataclass
class Followed(Controller):
    """Lets another controller decide, and counts the steps.

    Attributes:
        inner: the other one.
        steps: of the grid of the newest run. left: those that it has not made.
    """

    inner: Controller = field(default_factory=Controller)
    steps: int = field(default=0, init=False)
    left: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.several = self.inner.several
        self._follow(self.inner)

    def _follow(self, inner: Controller) -> None:
        self._now, self.call_names = inner, inner.call_names
        self.placeholders, self.replays = inner.placeholders, inner.replays

    def install(self, overrides: Overrides, denoiser: nn.Module) -> None:
        self.inner.install(overrides, denoiser)

    def for_run(self, run: Run) -> Controller:
        self._follow(self.inner.for_run(run))
        return self

    def passed_by(self) -> None:
        self.inner.passed_by()

    def begin(self, run: Run) -> None:
        self.steps = self.left = run.T
        self._now.begin(run)

    def call(self, run: Run, context: str, x: Tensor, compute: Any) -> Tensor:
        return self._now.call(run, context, x, compute)

    def solve(self, run: Run, output: Tensor, x: Tensor) -> Tensor:
        return self._now.solve(run, output, x)

    def end_step(self, run: Run, x_next: Tensor) -> None:
        self._now.end_step(run, x_next)
        self.left = run.T - 1 - run.step

    def end(self, run: Run) -> None:
        self._now.end(run)

    def without(self, run: Run, error: ErtacacheError, *, by_need: bool) -> Controller:
        self._follow(self._now.without(run, error, by_need=by_need))
        return self
