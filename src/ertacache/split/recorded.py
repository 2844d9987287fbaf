"""The runs of a split's calibration, each made once: of the large model, of the small one on its latents, of both."""

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.first_steps import Seen, broken_off
from ertacache.calibration.held_out import Part, batches_of, distances
from ertacache.calibration.prompts import Prompts
from ertacache.calibration.recording import Recording, bytes_of
from ertacache.calibration.reference_log import ReferenceLog, check_start
from ertacache.calibration.spread import pipeline_hash
from ertacache.errors import CalibrationError, InvalidArgument
from ertacache.pipelines.solvers import numbers_in
from ertacache.profile.fingerprint import config_hash
from ertacache.runtime.flops import FlopCounter
from ertacache.runtime.run import Controller, Run
from ertacache.runtime.watch import now
from ertacache.split.in_process import split
from ertacache.split.prices import LinearSolver, Probes, gram, switched
from ertacache.split.profile import as_pipeline

#: Solver steps of the run that tells what all others take.
SIZED = 2


@dataclass
class Sized(Controller):
    """Two steps of one prompt: in the first, operations are counted, the second is timed.

    Attributes:
        steps: of the whole run. operations: of a step. seconds: likewise.
        recorded: bytes of a recording. solver: its linear part.
    """

    steps: int = 0
    operations: int = 0
    seconds: float = 0.0
    recorded: int = 0
    solver: LinearSolver = field(init=False)
    _begun: list[Any] = field(default_factory=list[Any])

    def begin(self, run: Run) -> None:
        self._begun, self.steps = [copy.deepcopy(run.scheduler)], run.T

    def call(self, run: Run, context: str, x: Tensor, compute: Any) -> Tensor:
        if run.steps_done:
            return compute()
        with FlopCounter() as counter:
            output = compute()
        self.operations += counter.total
        return output

    def solve(self, run: Run, output: Tensor, x: Tensor) -> Tensor:
        if run.steps_done == 0:
            check_start(run)
            self.solver = LinearSolver(self._begun.pop(), numbers_in(run.options))
            self.recorded = bytes_of(run.T, x.nbytes, output.nbytes, 0)
        return output

    def end_step(self, run: Run, x_next: Tensor) -> None:
        if run.steps_done == SIZED - 1:
            self.seconds = now() - self._start
        if run.steps_done == SIZED - 1 or run.step == run.T - 1:
            raise Seen
        self._start = now()


class Following(Controller):
    """A run that is the large model's recorded one up to a step; no call is made for those steps but the first.

    Args:
        recording: of the large model. until: the step from which on the run goes its own way.
        forced: compute every step, but give the solver the recorded outputs throughout.
        kept: what is computed, with the latents that it is computed on; None to keep nothing.

    Attributes:
        latents: [B, *] float32 on the CPU, the final ones.
    """

    replays = True
    placeholders = True

    def __init__(
        self, recording: Recording, until: int = 0, *, forced: bool = False, kept: Recording | None = None
    ) -> None:
        self._recording, self._until, self._forced, self._kept = recording, until, forced, kept
        self._returned: dict[str, Tensor] = {}
        self.latents = torch.zeros(0)

    def call(self, run: Run, context: str, x: Tensor, compute: Any) -> Tensor:
        if run.step >= self._until or context not in self._returned:
            output = compute()
            self._returned.setdefault(context, torch.empty_like(output, device="meta"))
            return output
        like = self._returned[context]
        return torch.zeros((len(x), *like.shape[1:]), dtype=like.dtype, device=x.device)

    def solve(self, run: Run, output: Tensor, x: Tensor) -> Tensor:
        exact = self._recording.outputs[run.step].to(output.device) if self._forced or run.step < self._until else None
        if self._kept is not None:
            self._kept.latents[run.step].copy_(x)
            self._kept.outputs[run.step].copy_(output if run.step >= self._until or exact is None else exact)
        return output if exact is None else exact

    def end_step(self, run: Run, x_next: Tensor) -> None:
        if run.step == run.T - 1:
            self.latents = x_next.to("cpu", torch.float32, copy=True)
            if self._kept is not None:
                self._kept.latents[-1].copy_(x_next)


class SplitRuns(Calibrator):
    """Runs by two models, on one set of prompts and call arguments; see `Recorder` for all but the small model.

    Args:
        large: the pipeline that is called. small: the other pipeline, or its denoiser alone.
        ratio: operations of a step of the small model by those of the large one; what runs cost is told in the latter.
    """

    def __init__(self, large: Any, small: Any, prompts: Sequence[str] | None, **options: Any) -> None:
        self.partner, self.ratio = small, 1.0  # `small` is a predictor of a calibration
        super().__init__(large, prompts, **options)

    def _identity(self) -> str:
        return config_hash({"large": super()._identity(), "small": pipeline_hash(as_pipeline(self.pipe, self.partner))})

    def sized(self, model: int) -> Sized:
        """Two steps of the first prompt by one of the models, 0 or 1."""
        found = Sized()
        with split(self.pipe, self.partner, switch=0) if model else nullcontext():
            broken_off(self.pipe, self.parts.fitted.first(1), found, self.call)
        if found.steps < SIZED or not found.recorded:
            raise InvalidArgument(f"a run of {found.steps} step(s) cannot be split; give it 2 steps or more")
        return found

    @cached_property
    def weights(self) -> Tensor:
        """[T] what a step costs by the first one: more or fewer branches of guidance."""
        counts = torch.zeros(self.T, dtype=torch.float64)
        for step, calls in self.reference.calls:
            counts[step:] = sum(calls.values())
        return counts / counts[0]

    def share(self, models: Sequence[int]) -> float:
        """What the large model's steps are of all its steps, by operations."""
        own = torch.tensor([model == 0 for model in models])
        return float(self.weights[own].sum() / self.weights.sum())

    def work(self, models: Sequence[int], known: int = 0) -> float:
        """What a run costs in runs of the large model, where all steps before one are known; the first one is made."""
        made = [model for n, model in enumerate(models) if n == 0 or n >= known]
        return sum(self.ratio if model else 1.0 for model in made) / self.T

    def forced(self, n: int) -> Recording:
        """What the small model makes of the latents of the n-th call of fitted prompts."""
        return self._recorded(f"small model on the large one's latents {n}", n, 0, forced=True)

    def probe(self, s: int, n: int) -> Recording:
        """The run of the n-th call of fitted prompts in which the small model takes over at step s."""
        return self._recorded(f"small model from step {s} on {n}", n, s, forced=False)

    def _recorded(self, name: str, n: int, s: int, *, forced: bool) -> Recording:
        known, path, models = self.reference.recordings[n], self.store.file(name), switched(self.T, s)

        def run() -> dict[str, Any]:
            writing = replace(known, directions=None).like(path)
            following = Following(known, s, forced=forced, kept=writing.recording)
            try:
                with split(self.pipe, self.partner, models=models):
                    self.run(self.batches[n], following, "run of the small model", share=self.work(models, s))
                if not writing.recording.latents[-1].isfinite().all():
                    raise CalibrationError(
                        "runs of the small model end in NaN or infinity; run it in a wider dtype, or choose another one"
                    )
                writing.finish()
            finally:
                writing.discard()
            return writing.layout

        layout = self.store.get(name, run)
        return self.store.opened(name, layout)

    def grams(self, probes: Sequence[int], solver: LinearSolver) -> Tensor:
        """[N, T, T] float64 of the fitted prompts, see `prices`.

        Args:
            probes: steps at which the small model takes over in runs that are made, the first of them 0.
        """
        return torch.cat([self._grams(probes, solver, n) for n in range(len(self.batches))])

    def _grams(self, probes: Sequence[int], solver: LinearSolver, n: int) -> Tensor:
        own, forced = self.reference.recordings[n], self.forced(n)
        runs, prompts = [self.probe(s, n) for s in probes], len(self.batches[n].texts)

        def run() -> Tensor:
            found = list[Tensor]()
            for b in range(own.outputs.shape[1]):
                off = torch.stack([one.latents[:-1, b].double() - own.latents[:-1, b].double() for one in runs])
                change = torch.stack([one.outputs[:, b].double() - forced.outputs[:, b].double() for one in runs])
                for place, s in enumerate(probes):  # before, both are the large model's own
                    off[place, : s + 1], change[place, : s + 1] = 0, 0
                errors = forced.outputs[:, b].double() - own.outputs[:, b].double()
                found.append(gram(solver, errors, Probes(off, change), own.latents[-1, b]))
            energy = own.latents[-1].double().flatten(1).square().sum(1)[:, None, None]
            # Of prompts with several samples each, one deviation of all of them.
            whole = (torch.stack(found) * energy).unflatten(0, (-1, prompts)).sum(0)
            return whole / energy.unflatten(0, (-1, prompts)).sum(0)

        return self.store.get(f"prices from {list(probes)} {n}", run)

    def alone(self, part: Part, n: int) -> tuple[Recording, dict[str, Any]]:
        """The large model's run of the n-th call of a part: its recording, and `images` and `latents`."""
        name = f"{part} reference {n}"
        path = self.store.file(name)

        def run() -> dict[str, Any]:
            log, start = ReferenceLog(path), now()
            try:
                images = self.run(batches_of(self, part)[n], log, "run of the large model", decode=True)
                seconds, layout = now() - start, log.finish()
            finally:
                log.discard()
            latents = Recording.open(path, layout).latents[-1].float().clone()
            return {"images": images, "latents": latents, "seconds": seconds, "layout": layout}

        found = self.store.get(name, run)
        return self.store.opened(name, found["layout"]), found

    def mixed(self, part: Part, n: int, models: Sequence[int], recording: Recording) -> dict[str, Any]:
        """`images` and `latents` of the n-th call of a part with these models, for a result of the store.

        Args:
            recording: of the large model's run of it, see `alone`.
        """
        known = next((i for i, model in enumerate(models) if model), self.T)
        following = Following(recording, known)
        with split(self.pipe, self.partner, models=models):
            batch = batches_of(self, part)[n]
            images = self.run(batch, following, "split run", decode=True, share=self.work(models, known))
        return {"images": images, "latents": following.latents}

    def measured(self, part: Part, models: Sequence[int]) -> dict[str, list[float]]:
        """`psnr`, `ssim` and `error` of each prompt of a part from the large model's run: see `held_out.measure`."""
        found: dict[str, list[float]] = {"psnr": [], "ssim": [], "error": []}
        for n, batch in enumerate(batches_of(self, part)):
            recording, reference = self.alone(part, n)

            def run(
                n: int = n, batch: Prompts = batch, recording: Recording = recording, reference: Any = reference
            ) -> dict[str, list[float]]:
                result = self.mixed(part, n, models, recording) if any(models) else reference
                return distances(result, reference, len(batch.texts))

            name = f"{part} {''.join(map(str, models))} {n}"
            for key, values in self.store.get(name, run).items():
                found[key].extend(values)
        return found
