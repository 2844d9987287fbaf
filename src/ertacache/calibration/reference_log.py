"""What the uncached run of the calibration prompts leaves behind."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ertacache.core.policy import l1_per_prompt
from ertacache.core.precision import exact
from ertacache.errors import UnsupportedPipeline
from ertacache.pipelines.branches import branch_count, branch_names
from ertacache.pipelines.denoiser_call import Shapes
from ertacache.pipelines.guidance import TwoBranchGuidance
from ertacache.pipelines.solvers import numbers_in
from ertacache.runtime.run import Controller, Run


@dataclass(frozen=True)
class Reference:
    """The uncached run: a few numbers per step and prompt.

    Attributes:
        sigmas: [T+1] the solver's own grid.
        contexts: names of the calls of the first step.
        branches: names of the outputs for guidance that they make, see `branches`; empty where those cannot be used.
        boundaries: the steps at which another denoiser takes over.
        guided_l1: [T, N] ‖g_i − x_i‖₁ per prompt.
        hidden_l1: [T, N] of the first call's hidden residual; empty where site `hidden` is unknown.
        latents: [N, *] final latents.
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
    guided_l1: Tensor
    hidden_l1: Tensor
    latents: Tensor
    weights: tuple[float | None, ...]
    step_weights: tuple[float | None, ...]
    calls: tuple[tuple[int, dict[str, int]], ...]
    step_arguments: dict[str, float]
    embedded: float | None
    dtype: str


@dataclass
class ReferenceLog(Controller):
    """Watches an uncached run; see `Reference` for what it notes.

    Attributes:
        trajectory: if asked for, the latent before every step and the final one, [B, *] float32 on the CPU each.
    """

    replays = True

    keep_trajectory: bool = False
    trajectory: list[Tensor] = field(default_factory=list[Tensor])
    guided: list[Tensor] = field(default_factory=list[Tensor])
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
    latents: Tensor = field(default_factory=lambda: torch.zeros(0))

    def begin(self, run: Run) -> None:
        if self.guided:
            raise UnsupportedPipeline(
                "the pipeline runs its solver again within one call (sections, windows or segments), which cannot be "
                "calibrated; calibrate on a call with one section, and apply the profile to calls with several"
            )
        self.sigmas = run.sigmas
        self._seen: dict[str, int] = {}
        self._outputs: dict[str, Tensor] = {}
        self._shapes = Shapes()
        self._serving = -1
        self.trajectory.clear()

    def call(self, run: Run, context: str, x: Tensor, compute: Any) -> Tensor:
        output = compute()
        branches = self._seen[context] = branch_count(x, run.batch)
        self._shapes.check(run.step, f"the latent of call {context!r}", x, branches)
        self._shapes.check(run.step, f"the output of call {context!r}", output, branches)
        self._outputs[context] = output
        if run.stack is not None and run.stack.residual is not None and len(run.contexts) == 1:
            self.hidden.append(l1_per_prompt(run.stack.residual))
        return output

    def solve(self, run: Run, output: Tensor, x: Tensor) -> Tensor:
        self._shapes.check(run.step, "what the solver receives", output)
        if output.shape != x.shape:
            raise UnsupportedPipeline(
                f"the solver receives {list(output.shape)} for a latent of {list(x.shape)}; use a scheduler that takes "
                "no learned variance"
            )
        if run.steps_done == 0:
            self._note_first(run, output)
        elif run.denoiser != self._serving:
            self.boundaries += (run.step,)
        self._note_guidance(run, output)
        self.guided.append(l1_per_prompt(exact(output) - exact(x)))
        if self.keep_trajectory:
            self.trajectory.append(x.float().cpu())
        return output

    def _note_first(self, run: Run, output: Tensor) -> None:
        if run.step != 0:
            raise UnsupportedPipeline(f"the run starts at step {run.step}; calibrate on a run that starts at step 0")
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
        self.latents = x_next.float().cpu()
        if self.keep_trajectory and run.step == run.T - 1:
            self.trajectory.append(self.latents)
