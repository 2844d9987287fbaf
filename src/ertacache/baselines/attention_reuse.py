"""Attention modules that answer from their last outputs in some steps, each branch from its own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from ertacache.baselines.baseline import denoiser_class
from ertacache.errors import InvalidArgument
from ertacache.pipelines.models import AttentionKind, attention_modules, denoiser_of
from ertacache.pipelines.overrides import Overrides, Wrapper
from ertacache.runtime.run import Controller, Run

#: What an attention module returns: one tensor, or one for each of its token streams.
Output = Tensor | tuple[Tensor, ...]


def inside(window: tuple[float, float], timestep: float) -> bool:
    """Whether low < timestep < high."""
    low, high = window
    return low < timestep < high


def check_window(window: tuple[float, float]) -> None:
    """Raise InvalidArgument for a window that no timestep is inside of."""
    low, high = window
    if not low < high:
        raise InvalidArgument(f"a window is ({low:g}, {high:g}); choose timesteps with low < high, 0 to 1000")


@dataclass(frozen=True, slots=True)
class Reuse:
    """In which steps something is reused.

    Attributes:
        every: inside of the window it is computed in every n-th step, counted from the first step of the run.
        window: timesteps (low, high), 0 to 1000; it is computed in all steps outside of low < t < high.

    Raises:
        InvalidArgument: a range that is not a whole number of at least 1, or an empty window.
    """

    every: int
    window: tuple[float, float]

    def __post_init__(self) -> None:
        if not isinstance(self.every, int) or self.every < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidArgument(f"a range is {self.every!r}; choose a whole number of steps: 2 computes every other")
        check_window(self.window)

    def at(self, step: int, timestep: float) -> bool:
        """Whether it is reused in the `step`-th step of a run (0 = first)."""
        return step % self.every != 0 and inside(self.window, timestep)


class AttentionReuse(Controller):
    """Reuses the outputs of a denoiser's attention modules; everything around them runs in every step.

    The formula of a reused output is F₁ + w·(F₁ − F₂), where F₁ and F₂ are the module's last two outputs in the same
    branch, reused ones among them (dynamic feature reuse of FasterCache, arXiv 2410.19355), or F₁ itself where there
    is no w (PAB, arXiv 2408.12588).

    Args:
        rules: when the modules of each kind are reused; kinds that are left out always run.
        weight: w; None keeps one output per module, not two.
    """

    several = False

    def __init__(self, rules: Mapping[AttentionKind, Reuse], weight: float | None = None) -> None:
        self._rules = rules
        self._weight = weight
        self._timesteps: list[float] = []
        self._kept: dict[tuple[int, str], tuple[Output, ...]] = {}
        self._context: str | None = None
        self._reused: frozenset[AttentionKind] = frozenset()

    def install(self, overrides: Overrides, denoiser: nn.Module) -> None:
        for place, (module, kind) in enumerate(attention_modules(denoiser)):
            if kind in self._rules:
                overrides.replace_part(module, self._wrapper(place, kind))

    def begin(self, run: Run) -> None:
        self._kept.clear()
        self._timesteps = run.scheduler.timesteps.tolist()

    def call(self, run: Run, context: str, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        return self.attend(run, context, compute)

    def end_step(self, run: Run, x_next: Tensor) -> None:
        if run.step == run.T - 1:
            self._kept.clear()

    def timestep(self, run: Run) -> float:
        """Of the step under way, 0 to 1000."""
        return self._timesteps[run.step]

    def attend(self, run: Run, context: str, compute: Callable[[], Tensor], *, reuse: bool = True) -> Tensor:
        """One denoiser call whose attention outputs are kept for its context, and reused where a rule says so.

        Args:
            reuse: False computes all of them.
        """
        step, timestep = run.steps_done, self.timestep(run)
        self._context = context
        self._reused = frozenset(kind for kind, rule in self._rules.items() if reuse and rule.at(step, timestep))
        try:
            return compute()
        finally:
            self._context = None

    def _wrapper(self, place: int, kind: AttentionKind) -> Wrapper:
        def call(original: Callable[..., Output], _: nn.Module, *args: Any, **kwargs: Any) -> Output:
            if self._context is None:
                return original(*args, **kwargs)
            key = place, self._context
            kept = self._kept.get(key, ())
            reused = bool(kept) and kind in self._reused
            output = _extrapolated(kept[0], kept[-1], self._weight) if reused else original(*args, **kwargs)
            own = output if reused else _copied(output)
            self._kept[key] = (own,) if self._weight is None else (*kept[-1:], own)
            return output

        return call


def refusal(pipe: Any) -> str | None:
    """Why no attention can be reused; None where it can."""
    known = attention_modules(denoiser_of(pipe))
    return None if known else f"the attention modules of {denoiser_class(pipe)} are not known"


def _copied(output: Output) -> Output:
    """Not what a CUDA graph overwrites in its next call."""
    return output.clone() if isinstance(output, Tensor) else tuple(part.clone() for part in output)


def _extrapolated(older: Output, newer: Output, weight: float | None) -> Output:
    if weight is None:
        return newer
    if isinstance(newer, Tensor):
        return newer + (newer - cast(Tensor, older)) * weight
    return tuple(new + (new - old) * weight for old, new in zip(older, newer, strict=True))
