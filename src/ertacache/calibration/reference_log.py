"""What the uncached run of the calibration prompts leaves behind."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ertacache.calibration.recording import Recording, Writing
from ertacache.core.policy import l1_per_prompt
from ertacache.core.precision import exact, widen
from ertacache.errors import CalibrationError, UnsupportedPipeline
from ertacache.pipelines.branches import branch_count, branch_names, direction_of
from ertacache.pipelines.denoiser_call import Shapes
from ertacache.pipelines.guidance import TwoBranchGuidance
from ertacache.pipelines.solvers import numbers_in
from ertacache.profile.guidance_scale import same_guidance
from ertacache.runtime.grids import same_grid
from ertacache.runtime.run import Controller, Run


@dataclass(frozen=True)
class Reference:
    """The uncached run of all fitted prompts.

    Attributes:
        sigmas: [T+1] the solver's own grid.
        contexts: names of the calls of the first step.
        branches: names of the outputs for guidance that they make, see `branches`; empty where those cannot be used.
        boundaries: the steps at which another denoiser takes over.
        recordings: of each pipeline call.
        hidden_l1: [T, N] of the first call's hidden residual, for each pipeline call; empty where nobody asked for it.
        weights: guidance weight of two branches, or None, for each denoiser.
        step_weights: the same for each step.
        calls: of one step, with the branches in the batch of each, from the step on where they changed.
        step_arguments: the numbers that the pipeline gives `scheduler.step`.
        embedded: guidance weight that the denoiser is given, or None.
        dtype: of the denoiser's output.
    """

    sigmas: Tensor
    contexts: tuple[str, ...]
    branches: tuple[str, ...]
    boundaries: tuple[int, ...]
    recordings: tuple[Recording, ...]
    hidden_l1: tuple[Tensor, ...]
    weights: tuple[float | None, ...]
    step_weights: tuple[float | None, ...]
    calls: tuple[tuple[int, dict[str, int]], ...]
    step_arguments: dict[str, float]
    embedded: float | None
    dtype: str

    @property
    def directions(self) -> bool:
        """Whether every step has a guidance direction."""
        return all(recording.directions is not None for recording in self.recordings)

    @property
    def latents(self) -> Tensor:
        """[N, *] float32 on the CPU, the final latents."""
        return torch.cat([recording.latents[-1].float() for recording in self.recordings])

    def guided_l1(self, n: int) -> Tensor:
        """[T, B] ‖g_i − x_i‖₁ per prompt of the n-th pipeline call."""
        recording = self.recordings[n]
        pairs = zip(recording.outputs, recording.latents, strict=False)
        return torch.stack([l1_per_prompt(exact(output) - exact(x)) for output, x in pairs])


def check_start(run: Run) -> None:
    """Refuse a run whose first step is not that of its grid.

    Raises:
        UnsupportedPipeline: naming the step.
    """
    if run.step != 0:
        raise UnsupportedPipeline(f"the run starts at step {run.step}; calibrate on a run that starts at step 0")


def check_alike(first: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Refuse two calls of one calibration that no plan can serve alike.

    Args:
        first, other: what their logs noted, by attribute.

    Raises:
        UnsupportedPipeline: their time grids, denoiser calls or guidance weights differ, naming them.
    """
    weights = zip((first["embedded"], *first["step_weights"]), (other["embedded"], *other["step_weights"]), strict=True)
    apart = [(a, b) for a, b in weights if a is not None and b is not None and not same_guidance(b, a)]
    found = ""
    if not same_grid(first["sigmas"], other["sigmas"]):
        found = "are on different time grids"
    elif first["calls"] != other["calls"]:
        found = f"make different denoiser calls ({first['calls'][0][1]} and {other['calls'][0][1]})"
    elif apart:
        found = f"have different guidance weights ({apart[0][0]:g} and {apart[0][1]:g})"
    if found:
        raise UnsupportedPipeline(
            f"the pipeline calls of different prompts {found}, which no plan can serve alike; calibrate on prompts of "
            "one kind"
        )


@dataclass
class ReferenceLog(Controller):
    """Watches an uncached run; see `Reference` for what it notes.

    Args:
        path: of the recording.
        watch_hidden: measure the hidden residuals too.
    """

    replays = True

    path: Path
    watch_hidden: bool = False
    writing: Writing | None = None
    hidden: list[Tensor] = field(default_factory=list[Tensor])
    contexts: tuple[str, ...] = ()
    branches: tuple[str, ...] = ()
    boundaries: tuple[int, ...] = ()
    sigmas: Tensor = field(default_factory=lambda: torch.zeros(0))
    weights: tuple[float | None, ...] = ()
    step_weights: tuple[float | None, ...] = ()
    calls: tuple[tuple[int, dict[str, int]], ...] = ()
    step_arguments: dict[str, float] = field(default_factory=dict[str, float])
    embedded: float | None = None
    dtype: str = ""
    directed: bool = True

    def begin(self, run: Run) -> None:
        if self.writing is not None:
            raise UnsupportedPipeline(
                "the pipeline runs its solver again within one call (sections, windows or segments), which cannot be "
                "calibrated; calibrate on a call with one section, and apply the profile to calls with several"
            )
        self.sigmas = run.sigmas
        self._seen: dict[str, int] = {}
        self._outputs: dict[str, Tensor] = {}
        self._shapes = Shapes()
        self._serving = -1

    def call(self, run: Run, context: str, x: Tensor, compute: Any) -> Tensor:
        output = compute()
        branches = self._seen[context] = branch_count(x, run.batch)
        self._shapes.check(run.step, f"the latent of call {context!r}", x, branches)
        self._shapes.check(run.step, f"the output of call {context!r}", output, branches)
        self._outputs[context] = output
        if self.watch_hidden and run.stack is not None and run.stack.residual is not None and len(run.contexts) == 1:
            residual = run.stack.residual  # summed where it is: of a large model it is gigabytes
            self.hidden.append(widen(residual.flatten(1)).abs().sum(1).cpu().double())
        return output

    def solve(self, run: Run, output: Tensor, x: Tensor) -> Tensor:
        self._shapes.check(run.step, "what the solver receives", output)
        if output.shape != x.shape:
            raise UnsupportedPipeline(
                f"the solver receives {list(output.shape)} for a latent of {list(x.shape)}; use a scheduler that takes "
                "no learned variance"
            )
        direction = direction_of(self._outputs, output)
        if run.steps_done == 0:
            self._note_first(run, output)
            self.writing = Recording.create(self.path, run.T, x, output, direction)
        elif run.denoiser != self._serving:
            self.boundaries += (run.step,)
        self._write(run.step, x, output, direction)
        self._note_guidance(run, output)
        return output

    def _write(self, i: int, x: Tensor, output: Tensor, direction: Tensor | None) -> None:
        if self.writing is None:
            return
        recording = self.writing.recording
        recording.latents[i].copy_(x)
        recording.outputs[i].copy_(output)
        self.directed = self.directed and direction is not None
        if direction is not None and recording.directions is not None:
            recording.directions[i].copy_(direction)

    def _note_first(self, run: Run, output: Tensor) -> None:
        check_start(run)
        self.contexts = tuple(run.contexts)
        self.branches = branch_names(self._outputs, output)
        self.embedded, self.dtype, self.step_arguments = run.guidance, str(output.dtype), numbers_in(run.options)

    def _note_guidance(self, run: Run, output: Tensor) -> None:
        two = TwoBranchGuidance(self.contexts)
        for context, branch in self._outputs.items():
            two.observe(context, branch)
        weight = two.weight(output)
        self.step_weights += (weight if weight is None else float(f"{weight:.5g}"),)
        if run.denoiser != self._serving:
            self.weights += (weight,)
            self._serving = run.denoiser
        if not self.calls or self._seen != self.calls[-1][1]:
            self.calls += ((run.step, self._seen),)
        if any(self._seen.get(context) != count for context, count in self.calls[0][1].items()):
            self.branches = ()  # what some steps lack cannot help to predict them
        self._seen, self._outputs = {}, {}

    def end_step(self, run: Run, x_next: Tensor) -> None:
        if self.writing is not None and run.step == run.T - 1:
            self.writing.recording.latents[-1].copy_(x_next)

    def finish(self) -> dict[str, Any]:
        """Name the file of the recording; returns its layout.

        Raises:
            UnsupportedPipeline: there was no step.
            CalibrationError: the run ended in NaN or infinity.
        """
        if self.writing is None:
            raise UnsupportedPipeline("the uncached run made no step; calibrate on whole runs")
        if not self.writing.recording.latents[-1].isfinite().all():
            raise CalibrationError("the uncached run ends in NaN or infinity; run the pipeline in a wider dtype")
        self.writing.finish()
        return self.writing.layout

    def discard(self) -> None:
        """Remove a recording that was not finished."""
        if self.writing is not None:
            self.writing.discard()
