"""One calibration: what it will take is said, then done, size by size and budget by budget."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ertacache.calibration import outcome
from ertacache.calibration.assisted import most_loops
from ertacache.calibration.budget import Budget
from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.checkpoint import owned
from ertacache.calibration.effort import Work, duration, size_in_words, work_of
from ertacache.calibration.element_rectifier import announce_price
from ertacache.calibration.first_steps import FirstSteps
from ertacache.calibration.full_precision import FullPrecision
from ertacache.calibration.guidance_scales import (
    GuidanceScales,
    at_each_scale,
    check_guidance,
    further_work,
    joined,
)
from ertacache.calibration.held_out import uncached_ahead
from ertacache.calibration.planning import plan
from ertacache.calibration.progress import run_progress, say
from ertacache.calibration.prompts import Parts
from ertacache.calibration.request import Request, check_count
from ertacache.calibration.search import Found
from ertacache.calibration.sizes import Size, checkpoint_of, in_words
from ertacache.calibration.spread import Map
from ertacache.calibration.taught import Teacher
from ertacache.calibration.teacher import fine_grid
from ertacache.core.schedule import Schedule
from ertacache.profile.profile import Profile
from ertacache.runtime.small_model import SmallModel

#: Runs shorter than this have few steps to spare: each is too far from the last to be predicted well.
_FEW_STEPS = 8


@dataclass(frozen=True)
class Job:
    """What all sizes and budgets of one call of `calibrate` share.

    Attributes:
        parts: the prompts by their use. shares: the arguments that split them, see `prompts.split_prompts`.
        sizes: how many there are. scales: of guidance, where there are several.
        teacher_steps: of a finer teacher, None for none. reference: in full precision, if that is aimed at.
        spread: makes runs in other processes, None for this one.
        small: a model that plans may call at predicted steps, None for none.
    """

    pipe: Any
    prompts: Sequence[str] | None
    request: Request
    budgets: tuple[Budget, ...]
    parts: Parts
    shares: dict[str, Any]
    batch_size: int | None
    checkpoint: str | os.PathLike[str] | None
    show: bool
    sizes: int
    scales: GuidanceScales | None = None
    teacher_steps: int | None = None
    reference: FullPrecision | None = None
    spread: Map | None = None
    small: SmallModel | None = None

    def check_checkpoints(self, calls: dict[Size, dict[str, Any]]) -> None:
        """Refuse a later size's folder before the first size is worked on, rather than after.

        Raises:
            CalibrationError: another calibration's, or it cannot be read.
            InvalidArgument: no folder for checkpoints, or another process has it.
        """
        if self.checkpoint is None or len(calls) < 2:
            return
        for size, call in calls.items():
            with owned(checkpoint_of(self.checkpoint, size)):
                self._calibrators(size, call, self._teacher(call))

    def profiles(self, size: Size, call: dict[str, Any]) -> list[list[Profile]]:
        """Of each budget the profile at one size, or one for each guidance scale, rising."""
        tell = partial(say, title="calibrate", show=self.show)
        with owned(checkpoint_of(self.checkpoint, size)):
            teacher = self._teacher(call)
            calibrators = self._calibrators(size, call, teacher)
            work = self._announced(self._seen(calibrators), size, teacher, tell)
            with run_progress(self.show, expected=work.calls) as progress:
                for calibrator in calibrators:
                    calibrator.progress = progress
                    calibrator.progress("first steps")
                found = self._found(size, calibrators)
        for profiles in found:
            for line in joined([profiles]).summary().splitlines():
                tell(line)
            for n, profile in enumerate(profiles):
                if (text := outcome.warning(profile)) is not None:
                    warnings.warn(f"{self._where(size, n)}{text}", stacklevel=3)
        return found

    def _teacher(self, call: dict[str, Any]) -> Teacher | None:
        """Of the runs that are aimed at, None where they are the uncached ones."""
        if self.teacher_steps is None:
            return self.reference
        return fine_grid(self.pipe, self.parts.fitted.first(1), call, self.teacher_steps)

    def _calibrators(self, size: Size, call: dict[str, Any], teacher: Teacher | None) -> list[Calibrator]:
        """One for each guidance scale, rising; nothing is run yet."""
        calls = [(call, None)] if self.scales is None else [(self.scales.call(call, n), n) for n in self.scales.values]
        return [
            Calibrator(
                self.pipe,
                self.prompts,
                batch_size=self.batch_size,
                call=at,
                teacher=teacher,
                spread=self.spread,
                small=self.small,
                **self.shares,
                checkpoint=checkpoint_of(self.checkpoint, size, scale),
                hidden=self.request.choices.site == "hidden" and self.request.choices.schedule == "policy",
            )
            for at, scale in calls
        ]

    def _found(self, size: Size, calibrators: list[Calibrator]) -> list[list[Profile]]:
        middle = calibrators[len(calibrators) // 2]
        uncached_ahead(middle)
        found: list[tuple[Found, Profile]] = []
        for budget in self.budgets:
            one = plan(middle, self.request, budget)
            found.append((one, outcome.judge(middle, one.best, one.measured)))
        if self.scales is None:
            return [[profile] for _, profile in found]
        return at_each_scale(self.scales, found, calibrators, partial(checkpoint_of, self.checkpoint, size))

    def _where(self, size: Size, n: int) -> str:
        """Which of several profiles a warning is of."""
        words = [f"size {in_words(size)}"] * bool(size)
        words += [f"{self.scales.argument} {self.scales.values[n]:g}"] if self.scales is not None else []
        return f"{', '.join(words)}: " if words else ""

    def _seen(self, calibrators: list[Calibrator]) -> FirstSteps:
        """The first steps at the middle scale, of runs that all show their guidance where there are several."""
        seen = [calibrator.first_steps for calibrator in calibrators]
        _ = calibrators[0].small_share  # whether a small model can be called at all shows before anything is recorded
        if self.scales is not None:
            check_guidance(self.scales, seen)
        middle = seen[len(seen) // 2]
        check_count(middle.steps, self.request, self.budgets)
        if self.request.choices.rectifier == "element":
            schedule = self.request.choices.schedule
            computed = schedule.K if isinstance(schedule, Schedule) else self.budgets[0].steps(middle.steps)
            announce_price(middle, self.request.choices.site, computed)
        if middle.steps < _FEW_STEPS:
            warnings.warn(f"{middle.steps} steps leave caching little to save; use it on longer runs", stacklevel=4)
        return middle

    def _announced(self, seen: FirstSteps, size: Size, teacher: Teacher | None, tell: Any) -> Work:
        """Say what this size will take."""
        loops = [
            (
                replace(self.request.loops(one, directed=seen.directed), timed=one.max_seconds is not None),
                one.steps(seen.steps),
            )
            for one in self.budgets
        ]
        if self.reference is not None and self.parts.chosen.texts:  # once more, with computed steps corrected
            loops = [(replace(one, cheap=one.cheap + 1, measured=one.measured + 1), K) for one, K in loops]
        if self.small is not None and self.request.effort is not None:
            cheap, measured = most_loops(self.request.effort)
            loops = [(replace(one, cheap=one.cheap + cheap, measured=one.measured + measured), K) for one, K in loops]
        work = work_of(loops, self.parts, self.batch_size, seen, 0 if teacher is None else teacher.parts)
        if self.reference is not None:  # and the plan once on a call of fitted prompts, to see the errors of its steps
            first = len(self.parts.fitted.batches(self.batch_size)[0].texts)
            shares = [(K or seen.steps // 2) / seen.steps for _, K in loops]
            runs = work.runs + first * sum(shares)
            work = replace(work, calls=work.calls + len(loops), runs=runs, seconds=runs * seen.steps * seen.seconds)
        if self.scales is not None:
            steps = [K for _, K in loops]
            work = further_work(self.scales, self.request, steps, work, self.parts, self.batch_size, seen)
        fitted, chosen, judged = (len(part.texts) for part in self.parts)
        where = f"size {in_words(size)}: " * (self.sizes > 1)
        tell(
            f"{where}{fitted} prompts to fit, {chosen} to choose and {judged} to judge on; {work.calls} pipeline "
            f"calls, the work of {work.runs:.1f} uncached runs of one prompt: about {duration(work.seconds)} and "
            f"{size_in_words(work.bytes)} on the disk"
        )
        return work
