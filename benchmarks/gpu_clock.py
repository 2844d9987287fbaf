"""One run of a denoising loop: how long each of its steps took, what it called and what memory it reached."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from gpu_build import Built
from torch import Tensor

from ertacache.calibration.pipeline_run import call_pipeline
from ertacache.calibration.prompts import Prompts
from ertacache.core.predictor import Predictor
from ertacache.core.schedule import Schedule
from ertacache.pipelines.models import family_for
from ertacache.pipelines.overrides import Overrides
from ertacache.pipelines.solvers import STEP_ARGUMENTS, read_grid
from ertacache.profile.profile import Profile, Provenance
from ertacache.runtime.apply import apply
from ertacache.runtime.identity import identity_of
from ertacache.runtime.watch import now

#: Outputs that a prediction reaches back, and their weights, newest first, where as many are held. They stand in for
#: fitted ones, cost the same and cannot blow up.
HISTORY = 3
_WEIGHTS = {1: (1.0,), 2: (0.9, 0.1), 3: (0.8, 0.1, 0.1)}


@dataclass(frozen=True)
class Timing:
    """One run.

    Attributes:
        seconds: from `set_timesteps` to the end of the last step.
        steps: seconds of each step; on a GPU by events in its stream, which make nobody wait.
        calls: denoiser calls of each step that were computed.
        peak: most bytes that were allocated on the GPU; None on the CPU.
        extra_bytes: what the run's stats say was held for prediction; 0 uncached.
        sigmas: [T+1] the grid, on the CPU.
        shape: of one latent, without the batch axis.
        latent_bytes, output_bytes: of the latent and of what the solver received.
    """

    seconds: float
    steps: tuple[float, ...]
    calls: tuple[int, ...]
    peak: int | None
    extra_bytes: int
    sigmas: Tensor
    shape: tuple[int, ...]
    dtype: str
    latent_bytes: int
    output_bytes: int


class LoopClock(Overrides):
    """Follows the runs of a pipeline from innermost, without a hook inside of the denoiser, which may be compiled.

    Put it on before the profile.
    """

    def __init__(self, pipe: Any, device: torch.device) -> None:
        super().__init__()
        self._cuda = device.type == "cuda"
        self._marks: list[Any] = []
        self.calls: list[int] = []
        self.replace(pipe.scheduler, "set_timesteps", self._set_timesteps)
        self.replace(pipe.scheduler, "step", self._step)
        self.replace_call(pipe.transformer, self._called)

    def __enter__(self) -> "LoopClock":
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def timing(self, peak: int | None, extra_bytes: int) -> Timing:
        """Of the run that was made last."""
        pairs = zip(self._marks[:-1], self._marks[1:], strict=True)
        steps = (a.elapsed_time(b) / 1000 if self._cuda else b - a for a, b in pairs)
        x, output = self._sample, self._output
        sizes = (x.numel() * x.dtype.itemsize, output.numel() * output.dtype.itemsize)
        shape, dtype = tuple(x.shape[1:]), str(x.dtype).removeprefix("torch.")
        return Timing(
            self._seconds, tuple(steps), tuple(self.calls[:-1]), peak, extra_bytes, self.sigmas, shape, dtype, *sizes
        )

    def _set_timesteps(self, original: Callable[..., Any], scheduler: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        self.sigmas, self.calls = read_grid(scheduler), [0]
        self._start = now()
        self._marks = [self._mark()]
        return result

    def _step(self, original: Callable[..., Any], scheduler: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        self._marks.append(self._mark())
        self.calls.append(0)
        if len(self._marks) == len(self.sigmas):
            self._seconds = now() - self._start
            bound = {**dict(zip(STEP_ARGUMENTS, args, strict=False)), **kwargs}
            # Of these only the sizes are wanted: nothing is held on to.
            self._sample, self._output = (
                torch.empty_like(bound[name], device="meta") for name in ("sample", "model_output")
            )
        return result

    def _called(self, original: Callable[..., Any], _: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls[-1] += 1
        return original(*args, **kwargs)

    def _mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def prompts(seed: int) -> Prompts:
    """The one prompt of a timed run."""
    return Prompts(("a measured run",), seed)


def timed(built: Built, seed: int, profile: Profile | None = None, **more: Any) -> Timing:
    """One uncached run, or one under a profile; `more` goes over the arguments of the pipeline call.

    Raises:
        RuntimeError: the denoiser was called in other steps than the profile's schedule says.
    """
    cuda = built.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    call = {**built.size.call, **more}
    cached = contextlib.nullcontext() if profile is None else apply(built.pipe, profile)
    with LoopClock(built.pipe, built.device) as clock, cached as stats:
        call_pipeline(built.pipe, prompts(seed), call, decode=False)
    peak = torch.cuda.max_memory_allocated() if cuda else None
    timing = clock.timing(peak, stats.extra_bytes if stats is not None else 0)
    T, branches = call["num_inference_steps"], len(built.model.contexts)
    schedule = Schedule.all_computed(T) if profile is None else profile.schedule
    due = tuple(branches * computed for computed in schedule.computed)
    if timing.calls != due:
        raise RuntimeError(f"the denoiser was called {list(timing.calls)} times in the steps, and {list(due)} were due")
    return timing


def by_hand(built: Built, uncached: Timing, K: int) -> Profile:
    """A profile without calibration: evenly spaced steps, site guided, a history of three and the latent's change.

    It is what a calibrated one of the default plan costs; its pictures mean nothing.
    """
    T, pipe = len(uncached.steps), built.pipe
    schedule = Schedule.uniform(T, K)
    a, d = torch.zeros(T, 1, 1, HISTORY), torch.zeros(T, 1)
    for i in schedule.predicted_steps:
        weights = _WEIGHTS[min(schedule.depth(i), HISTORY)]
        a[i, 0, 0, : len(weights)] = torch.tensor(weights)
        d[i] = 0.1
    predictor = Predictor(("guided",), ("guided",), a, d, torch.zeros(T, 1))
    facts = Provenance(
        **identity_of(pipe),
        num_inference_steps=T,
        contexts=built.model.contexts,
        guidance_weight=None, embedded_guidance=None, call={},
        latent_shape=uncached.shape,
        channel_axis=family_for(pipe.transformer, len(uncached.shape) + 1).channel_axis,
        dtype=uncached.dtype,
        prompt_count=0, prompt_hash="0" * 16, holdout_count=0, seed=0, method={}, versions={}, heldout={},
    )  # fmt: skip
    return Profile(schedule, "guided", predictor, uncached.sigmas, uncached.sigmas, None, facts)


def bound_bytes(uncached: Timing) -> int:
    """Most bytes that a run may hold beside the uncached one: p outputs and one latent."""
    return HISTORY * uncached.output_bytes + uncached.latent_bytes
