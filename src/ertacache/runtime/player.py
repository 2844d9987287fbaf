"""A profile at work on a pipeline: for each run, what computes or predicts its steps."""

import logging
from dataclasses import replace
from typing import Literal, get_args

from ertacache.core.history import History
from ertacache.core.offload import Offload, check_offload, history_for
from ertacache.errors import ErtacacheError, InvalidArgument, ProfileMismatch
from ertacache.profile.profile import Profile
from ertacache.runtime.coefficients import Coefficients
from ertacache.runtime.grids import nearest, pick
from ertacache.runtime.plain_run import PlainRun
from ertacache.runtime.played_run import PlayedRun
from ertacache.runtime.retarget_loss import warn_of_loss
from ertacache.runtime.run import Controller, Run
from ertacache.runtime.run_stats import RunStats, of_one_run

logger = logging.getLogger(__name__)

#: What becomes of a call that does not suit the profile: an error, or a run without it.
OnMismatch = Literal["refuse", "compute"]
#: Grids whose coefficients are kept on the device.
_KEPT_GRIDS = 4


class Player(Controller):
    """Runs one profile: the schedule decides, formula (P) predicts. It holds what runs share and nothing of any run.

    Args:
        stats: counters that follow the runs.
        on_mismatch: "compute" runs a call that does not suit the profile without it.
        keep_nan: go on where a prediction is NaN or infinite, for those who measure how far off it is; otherwise that
            raises PredictionDiverged.
    """

    replays = True

    def __init__(
        self,
        profile: Profile,
        stats: RunStats,
        offload_history: Offload = None,
        *,
        retarget: bool = False,
        on_mismatch: OnMismatch = "refuse",
        keep_nan: bool = False,
    ) -> None:
        if on_mismatch not in get_args(OnMismatch):
            raise InvalidArgument(f"on_mismatch is {on_mismatch!r}; choose 'refuse' or 'compute'")
        self.profile, self.stats, self.keep_nan = profile, stats, keep_nan
        self._offload: Offload = check_offload(offload_history)
        self._retarget, self._on_mismatch = retarget, on_mismatch
        self._warned: set[str] = set()
        self._made: dict[bytes, tuple[Profile, Coefficients]] = {}
        self._spare: list[tuple[Profile, History]] = []

    def for_run(self, run: Run) -> Controller:
        own = of_one_run()
        try:
            found = self._for_grid(run)
        except ProfileMismatch as error:
            return self.computed(own, error, by_need=False)
        if isinstance(found, str):  # a warm-up
            return PlainRun(self.stats, replace(own, reason=found))
        profile, coefficients = found
        return PlayedRun(profile, coefficients, self._history(profile), self)

    def passed_by(self) -> None:
        self.stats.outside += 1

    def _for_grid(self, run: Run) -> tuple[Profile, Coefficients] | str:
        """The profile for the grid of a run, and its coefficients; or why nothing is predicted on that grid."""
        key = run.sigmas.numpy().tobytes()
        if key not in self._made:
            found = pick(self.profile, run.sigmas, retarget=self._retarget)
            if isinstance(found, str):
                return found
            if "retarget" not in self._warned and found is not nearest(self.profile, run.sigmas):
                self._warned.add("retarget")
                warn_of_loss(self.profile, run.sigmas)
            while len(self._made) >= _KEPT_GRIDS:
                self._made.pop(next(iter(self._made)), None)
            self._made[key] = found, Coefficients(found)
        return self._made[key]

    def _history(self, profile: Profile) -> History:
        """An empty history; one that waits on the host keeps its buffers from run to run."""
        while self._spare:
            known, history = self._spare.pop()
            if known is profile:
                return history
        return history_for(profile.predictor.depths(), self._offload)

    def release(self, profile: Profile, history: History) -> None:
        """A run is over; what it kept is not."""
        history.clear()
        self._spare.append((profile, history))

    def computed(self, own: RunStats, error: ErtacacheError, *, by_need: bool) -> PlainRun:
        """What goes on in a run that does not suit the profile; the error, where that is what was asked for.

        Args:
            own: counters of that run.
            by_need: it goes on in any case.
        """
        if self._on_mismatch == "refuse" and not by_need:
            raise error
        cause = str(error).partition(":")[0]
        if cause not in self._warned:
            self._warned.add(cause)
            logger.warning("computed without the profile: %s", error)
        return PlainRun(self.stats, replace(own, reason=str(error)))
