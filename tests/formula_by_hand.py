"""Formula (P) on any pipeline in the simplest words: no run-time of ours takes part."""

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from torch import Tensor, nn

from ertacache.profile.profile import Profile


@dataclass
class _Hand:
    """One run: what the computed steps gave, newest first, and the calls of the step under way."""

    profile: Profile
    scheduler: Any
    step: int = -1
    held: list[dict[str, Tensor]] = field(default_factory=list[dict[str, Tensor]])
    calls: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    count: int = 0
    context: str | None = None
    first: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def predicts(self) -> bool:
        i = max(self.step, 0)
        needed = max(1, self.profile.predictor.needed_levels(i))
        return not self.profile.schedule.computed[i] and len(self.held) >= needed

    def formula(self, target: str, x: Tensor) -> Tensor:
        table = self.profile.predictor
        m = table.targets.index(target)
        total = table.d[self.step, m] * (x - self.held[0]["x of " + target]) + table.b[self.step, m]
        for level, held in enumerate(self.held[: table.needed_levels(self.step)]):
            for s, source in enumerate(table.sources):
                total = total + table.a[self.step, m, s, level] * held[source]
        return total

    def forward(self, original: Any, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.step < 0:  # a late start says where it is by what is left of the scheduler's timesteps
            self.step = self.scheduler.begin_index or 0
        name = self.context or self.profile.provenance.contexts[self.count]
        self.count += 1
        if self.predicts():
            self.calls[name] = self.first[name]
            if self.profile.site == "output":
                self.calls[name] = self.formula(name, _leading(x, self.first[name]))
            return (self.calls[name],)
        output = original(*args, **kwargs)[0]
        self.calls[name] = output
        self.calls["x of " + name] = _leading(x, output)
        self.first.setdefault(name, output * 0)
        return (output,)

    def solve(self, output: Tensor, x: Tensor) -> Tensor:
        if self.predicts():
            output = self.formula("guided", x) if self.profile.site == "guided" else output
        else:
            self.held.insert(0, {**self.calls, "guided": output, "x of guided": x})
        self.calls, self.count = {}, 0
        self.step += 1
        return output


def _leading(x: Tensor, output: Tensor) -> Tensor:
    return x[tuple(slice(n) for n in output.shape)]


@contextmanager
def formula_by_hand(pipe: Any, profile: Profile) -> Iterator[None]:
    """The next run predicts by the profile's tables at the sites output and guided. One denoiser, no other grid."""
    denoiser: nn.Module = getattr(pipe, "transformer", None) or pipe.unet
    hand = _Hand(profile, pipe.scheduler)
    forward, step = denoiser.forward, pipe.scheduler.step

    @functools.wraps(forward)  # a guider looks which arguments it takes
    def forwarded(*args: Any, **kwargs: Any) -> Any:
        x = kwargs["hidden_states"] if "hidden_states" in kwargs else kwargs.get("sample", args[0] if args else None)
        return hand.forward(forward, x, args, {**kwargs, "return_dict": False})

    @functools.wraps(step)
    def stepped(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        return step(hand.solve(model_output, sample), timestep, sample, *args, **kwargs)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(denoiser, "forward", forwarded))
        stack.enter_context(mock.patch.object(pipe.scheduler, "step", stepped))
        if hasattr(denoiser, "cache_context"):
            cache_context: Any = denoiser.cache_context

            @contextmanager
            def named(name: str) -> Iterator[None]:
                hand.context = name
                with cache_context(name):
                    yield
                hand.context = None

            stack.enter_context(mock.patch.object(denoiser, "cache_context", named))
        yield
