"""A profile at work on a pipeline: for each run, what computes or predicts its steps."""

from contextlib import suppress
from dataclasses import replace

from ertacache.core.history import History
from ertacache.core.offload import Offload, check_offload, history_for
from ertacache.errors import ProfileMismatch
from ertacache.profile.profile import Profile
from ertacache.runtime.assisted_run import AssistedRun
from ertacache.runtime.grids import nearest, pick
from ertacache.runtime.plain_run import OnMismatch, Otherwise, PlainRun
from ertacache.runtime.played_run import PlayedRun
from ertacache.runtime.retarget_loss import warn_of_loss
from ertacache.runtime.run import Controller, Run
from ertacache.runtime.run_stats import RunStats, of_one_run
from ertacache.runtime.scales import Scales
from ertacache.runtime.small_model import SmallModel, check_small_model

#: Grids whose coefficients are kept on the device.
_KEPT_GRIDS = 4


class Player(Controller):
    """Runs one profile: the schedule decides, formula (P) predicts. It holds what runs share and nothing of any run.

    Args:
        stats: counters that follow the runs.
        on_mismatch: "compute" runs a call that does not suit the profile without it.
        keep_nan: go on where a prediction is NaN or infinite, for those who measure how far off it is; otherwise that
            raises PredictionDiverged.
        small: the model that the profile predicts from, where it does.

    Raises:
        ProfileMismatch: see `small_model.check_small_model`.
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
        small: SmallModel | None = None,
    ) -> None:
        check_small_model(profile, small)
        self._small = small
        self.profile, self.stats, self.keep_nan = profile, stats, keep_nan
        self._offload: Offload = check_offload(offload_history)
        self.otherwise = Otherwise(stats, on_mismatch)
        self._retarget, self._warned = retarget, False
        self._made: dict[bytes, Scales] = {}
        self._spare: list[tuple[Scales, History]] = []

    def for_run(self, run: Run) -> Controller:
        own = of_one_run()
        try:
            found = self._for_grid(run)
        except ProfileMismatch as error:
            return self.otherwise(own, error)
        if isinstance(found, str):  # a warm-up
            return PlainRun(self.stats, replace(own, reason=found))
        if self._small is not None:
            return AssistedRun(found, self._history(found), self, self._small)
        return PlayedRun(found, self._history(found), self)

    def passed_by(self) -> None:
        self.stats.outside += 1

    def _for_grid(self, run: Run) -> Scales | str:
        """The profiles for the grid of a run, or why nothing is predicted on that grid."""
        key = run.sigmas.numpy().tobytes()
        if (made := self._made.get(key)) is None:
            found = pick(self.profile, run.sigmas, retarget=self._retarget)
            if isinstance(found, str):
                return found
            if not self._warned and found[0] is not nearest(self.profile, run.sigmas):
                self._warned = True
                warn_of_loss(self.profile, run.sigmas)
            while len(self._made) >= _KEPT_GRIDS:
                self._made.pop(next(iter(self._made)), None)
            self._made[key] = made = Scales(found)
        return made

    def _history(self, scales: Scales) -> History:
        """An empty history; one that waits on the host keeps its buffers from run to run."""
        with suppress(IndexError):  # not asked before: another thread may take the last one
            while True:
                known, history = self._spare.pop()
                if known is scales:
                    return history
        return history_for(scales.predictor.depths(), self._offload)

    def release(self, scales: Scales, history: History) -> None:
        """A run is over; what it kept is not."""
        history.clear()
        self._spare.append((scales, history))
