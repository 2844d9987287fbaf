"""Running a profile on a pipeline: `apply`, `enable`, `disable` and what they count."""

from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ertacache.core.history import History
from ertacache.core.predictor import Terms
from ertacache.core.rectify import Affine
from ertacache.errors import CacheConflict, InvalidArgument
from ertacache.guidance import TwoBranchGuidance
from ertacache.hooks import Attachment, Controller, Run, attachment_of
from ertacache.matching import check_call, check_grid, check_latent, check_pipeline, check_shape
from ertacache.profile import Profile
from ertacache.solvers import write_grid


@dataclass
class RunStats:
    """What the last run did; a new run starts it afresh.

    Attributes:
        runs: number of runs since the profile was applied.
        computed: number of calls that ran the denoiser, per context.
        predicted: number of calls that were answered without it, per context.
        extra_bytes: most bytes held for prediction at a time: kept outputs and inputs, and tensor coefficients.
    """

    runs: int = 0
    computed: Counter[str] = field(default_factory=Counter[str])
    predicted: Counter[str] = field(default_factory=Counter[str])
    extra_bytes: int = 0


class Player(Controller):
    """Runs one profile: the schedule decides, formula (P) predicts."""

    def __init__(self, profile: Profile, stats: RunStats) -> None:
        self.profile = profile
        self.stats = stats
        self.call_names = profile.provenance.contexts
        predictor = profile.predictor
        self._levels = {i: max(1, predictor.needed_levels(i)) for i in profile.schedule.predicted_steps}
        self._depth = max(self._levels.values(), default=1)
        self._stored = set(predictor.sources)
        # The newest input is kept only where something is measured from it.
        self._inputs = bool(predictor.d.any())
        self._terms: dict[tuple[int, str], Terms] = {}
        self._affine: dict[tuple[int, str], Affine] = {}
        self._device: torch.device | None = None
        self._reset()

    def _reset(self) -> None:
        self.history = History(self._depth)
        self._held = 0
        self._placeholder: dict[str, Tensor] = {}
        self._guidance = TwoBranchGuidance(self.profile.provenance.contexts)

    def begin(self, run: Run) -> None:
        self._reset()
        check_grid(self.profile, run)
        if not torch.equal(self.profile.sigmas, self.profile.base_sigmas):
            write_grid(run.scheduler, self.profile.sigmas)
        self.stats.runs += 1
        self.stats.computed.clear()
        self.stats.predicted.clear()
        self.stats.extra_bytes = 0

    def _predicts(self, run: Run) -> bool:
        """Whether this step is predicted: a late start computes until the history it needs is there."""
        needed = self._levels.get(run.step)
        return needed is not None and self._held >= needed

    def call(self, run: Run, context: str, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        if not self._predicts(run):
            output = compute()
            self._record(run, context, x, output)
            return output
        self.stats.predicted[context] += 1
        if self.profile.site == "guided":
            return self._placeholder[context]
        if self.profile.site == "output":
            return self._correct(run.step, context, self._term(run, context, x)(self.history, x))
        return self._call_hidden(run, context, compute)

    def _record(self, run: Run, context: str, x: Tensor, output: Tensor) -> None:
        self.stats.computed[context] += 1
        if run.steps_done == 0:
            check_latent(self.profile, run, context, output)
            self._guidance.observe(context, output)
            if self.profile.site == "guided":
                self._placeholder[context] = torch.zeros_like(output)
        stack = run.stack
        # Copies: the pipeline may change an output in place, and a CUDA graph overwrites it in its next call.
        if stack is not None:
            self.history.push(context, stack.take_residual().clone())
        elif context in self._stored:
            x_kept = x if self._inputs and self.profile.site == "output" else None
            self.history.push(context, output.clone(), x_kept)

    def _call_hidden(self, run: Run, context: str, compute: Callable[[], Tensor]) -> Tensor:
        stack = run.stack
        if stack is None:
            raise CacheConflict("site 'hidden' ran without its block stack; apply the profile again")
        newest = self.history.outputs(context)[0]
        residual = self._term(run, context, newest)(self.history, newest)  # no d term here: Profile refuses one
        return self._correct(run.step, context, stack.with_residual(residual, compute))

    def solve(self, run: Run, output: Tensor, x: Tensor) -> Tensor:
        if run.steps_done == 0:
            check_call(self.profile, run, self._guidance.weight(output))
        if self.profile.site != "guided":
            return output
        if run.steps_done == 0:
            check_shape(self.profile, tuple(output.shape[1:]))
        if self._predicts(run):
            return self._correct(run.step, "guided", self._term(run, "guided", x)(self.history, x))
        self.history.push("guided", output.clone(), x if self._inputs else None)
        return output

    def end_step(self, run: Run, x_next: Tensor) -> None:
        if not self._predicts(run):
            self._held += 1
        last = run.step == run.T - 1
        if last or not self._predicts(run):
            self.stats.extra_bytes = max(self.stats.extra_bytes, self._bytes_held())
        if last:
            self._reset()  # the decoder may need the room

    def _bytes_held(self) -> int:
        tables = [t for terms in self._terms.values() for t in (*(a for _, _, a in terms.a), terms.d, terms.b)]
        tables += [t for affine in self._affine.values() for t in (affine.kappa, affine.beta)]
        held = [*self._placeholder.values(), *(t for t in tables if isinstance(t, Tensor))]
        return self.history.nbytes + sum(tensor.numel() * tensor.element_size() for tensor in held)

    def _term(self, run: Run, target: str, x: Tensor) -> Terms:
        self._to(x.device)
        key = (run.step, target)
        if key not in self._terms:
            self._terms[key] = self.profile.predictor.terms(run.step, target, x.device)
        return self._terms[key]

    def _to(self, device: torch.device) -> None:
        if device != self._device:
            self._terms.clear()
            self._affine.clear()
            self._device = device

    def _correct(self, step: int, target: str, value: Tensor) -> Tensor:
        rectifier = self.profile.rectifier
        if rectifier is None:
            return value
        key = (step, target)
        if key not in self._affine:
            m = self.profile.predictor.targets.index(target)
            tables = (rectifier.kappa[step, m], rectifier.beta[step, m])
            self._affine[key] = Affine(*(table.to(value.device) for table in tables))
        affine = self._affine[key]
        return affine.apply(value) if rectifier.activation == "linear" else affine.apply_sigmoid(value)


def enable(pipe: Any, profile: Profile) -> RunStats:
    """Apply a profile to a pipeline until `disable`.

    Args:
        pipe: a diffusers pipeline with one denoiser; nothing but its scheduler and denoiser instances is touched.
        profile: from `calibrate` or `Profile.load`.

    Returns:
        Counters that follow the runs.

    Raises:
        ProfileMismatch: the pipeline is not the one that the profile was made for. Step count, guidance, call
            names and channels show only in a call, which then raises the same.
        CacheConflict: a profile or another cache is on already.
        UnsupportedPipeline: nothing can be predicted for this pipeline.
    """
    return _attach(pipe, profile)[1]


def _attach(pipe: Any, profile: Profile) -> tuple[Attachment, RunStats]:
    if not isinstance(profile, Profile):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidArgument(f"profile is a {type(profile).__name__}; pass a Profile, e.g. Profile.load(path)")
    check_pipeline(profile, pipe)
    player = Player(profile, RunStats())
    return Attachment(pipe, player, hidden=profile.site == "hidden"), player.stats


def disable(pipe: Any) -> None:
    """Take the profile off: the pipeline is bit for bit what it was.

    Raises:
        CacheConflict: no profile is applied.
    """
    attachment = attachment_of(pipe)
    if attachment is None:
        raise CacheConflict(f"no profile is applied to this {type(pipe).__name__}; call ertacache.enable first")
    attachment.detach()


@contextmanager
def apply(pipe: Any, profile: Profile) -> Generator[RunStats]:
    """`enable` for the length of a `with` block, `disable` at its end, also when it raises."""
    attachment, stats = _attach(pipe, profile)
    try:
        yield stats
    finally:
        # Ours, whatever the pipeline has by now; nothing to do if `disable` was called inside the block.
        if attachment.active:
            attachment.detach()
