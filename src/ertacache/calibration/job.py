"""One calibration: what it will take is said, then done, size by size and budget by budget."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from ertacache.calibration import outcome
from ertacache.calibration.budget import Budget
from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.checkpoint import Cost, owned
from ertacache.calibration.effort import Work, duration, size_in_words, work_of
from ertacache.calibration.element_rectifier import announce_price
from ertacache.calibration.first_steps import FirstSteps, first_steps, share_of
from ertacache.calibration.planning import plan
from ertacache.calibration.progress import run_progress, say
from ertacache.calibration.prompts import Parts
from ertacache.calibration.request import Request
from ertacache.calibration.sizes import Size, checkpoint_of, in_words
from ertacache.calibration.teacher import FineGrid, fine_grid
from ertacache.core.schedule import Schedule
from ertacache.profile.profile import Profile
from ertacache.runtime.watch import now

#: Runs shorter than this have few steps to spare: each is too far from the last to be predicted well.
_FEW_STEPS = 8


@dataclass(frozen=True)
class Job:
    """What all sizes and budgets of one call of `calibrate` share.

    Attributes:
        parts: the prompts by their use. shares: the arguments that split them, see `prompts.split_prompts`.
        sizes: how many there are.
        teacher_steps: of a finer teacher, None for none.
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
    teacher_steps: int | None = None

    def profiles(self, size: Size, call: dict[str, Any]) -> list[Profile]:
        """The profile of each budget at one size."""
        tell = partial(say, title="calibrate", show=self.show)
        checkpoint, teacher = checkpoint_of(self.checkpoint, size), None
        if self.teacher_steps is not None:
            teacher = fine_grid(self.pipe, self.parts.fitted.first(1), call, self.teacher_steps)
        with owned(checkpoint):
            calibrator = Calibrator(
                self.pipe, self.prompts, batch_size=self.batch_size, call=call, checkpoint=checkpoint, teacher=teacher,
                **self.shares,
                hidden=self.request.choices.site == "hidden" and self.request.choices.schedule == "policy",
            )  # fmt: skip
            seen = self._first_steps(calibrator)
            work = self._announced(seen, size, teacher, tell)
            with run_progress(self.show, expected=work.calls) as calibrator.progress:
                calibrator.progress("first steps")
                found = [self._profile(calibrator, budget) for budget in self.budgets]
        for profile in found:
            for line in profile.summary().splitlines():
                tell(line)
            if (text := outcome.warning(profile)) is not None:
                warnings.warn(f"size {in_words(size)}: {text}" if size else text, stacklevel=3)
        return found

    def _profile(self, calibrator: Calibrator, budget: Budget) -> Profile:
        found = plan(calibrator, self.request, budget)
        return outcome.judge(calibrator, found.best, found.measured)

    def _first_steps(self, calibrator: Calibrator) -> FirstSteps:
        """What all of a run will take, and the warnings that follow from it."""

        def run() -> dict[str, Any]:
            start = now()
            found = first_steps(self.pipe, self.parts.fitted, calibrator.call)
            calibrator.store.charge(Cost(share_of(found.steps), now() - start))
            return asdict(found)

        seen = FirstSteps(**calibrator.store.get("first steps", run))
        if self.request.choices.rectifier == "element":
            schedule = self.request.choices.schedule
            computed = schedule.K if isinstance(schedule, Schedule) else self.budgets[0].steps(seen.steps)
            announce_price(seen, self.request.choices.site, computed)
        if seen.steps < _FEW_STEPS:
            warnings.warn(f"{seen.steps} steps leave caching little to save; use it on longer runs", stacklevel=4)
        return seen

    def _announced(self, seen: FirstSteps, size: Size, teacher: FineGrid | None, tell: Any) -> Work:
        """Say what this size will take."""
        loops = [(self.request.loops(one, directed=seen.directed), one.steps(seen.steps)) for one in self.budgets]
        work = work_of(loops, self.parts, self.batch_size, seen, 0 if teacher is None else teacher.parts)
        fitted, chosen, judged = (len(part.texts) for part in self.parts)
        where = f"size {in_words(size)}: " * (self.sizes > 1)
        tell(
            f"{where}{fitted} prompts to fit, {chosen} to choose and {judged} to judge on; {work.calls} pipeline "
            f"calls, the work of {work.runs:.1f} uncached runs of one prompt: about {duration(work.seconds)} and "
            f"{size_in_words(work.bytes)} on the disk"
        )
        return work
