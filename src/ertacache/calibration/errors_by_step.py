"""How far the latents are from those of the full-precision run, step by step: where quantisation and caching show."""

import hashlib
from typing import Any

from torch import Tensor

from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.deviation import log10_error
from ertacache.calibration.followed import Followed
from ertacache.calibration.recording import Recording
from ertacache.profile.profile import Profile
from ertacache.runtime.player import Player
from ertacache.runtime.run import Controller, Run
from ertacache.runtime.run_stats import RunStats


class _Deviations(Followed):
    """Takes down how far each step ends from a recording, while another controller decides.

    Args:
        aimed: T+1 latents [B, *]. prompts: of the batch.
    """

    def __init__(self, inner: Controller, aimed: Tensor, prompts: int) -> None:
        super().__init__(inner)
        self._aimed, self._prompts = aimed, prompts
        self.errors: list[float] = []

    def end_step(self, run: Run, x_next: Tensor) -> None:
        super().end_step(run, x_next)
        self.errors.append(_mean(x_next.cpu(), self._aimed[run.step + 1], self._prompts))


def errors_by_step(calibrator: Calibrator, profile: Profile | None) -> dict[str, Any]:
    """Mean log10 of the relative squared deviation after each step [T], over the first call of fitted prompts.

    Args:
        calibrator: with a full-precision teacher. profile: None where it changes nothing.

    Returns:
        `quantised`, of the uncached quantised run, and `profile`, of the run under the profile, which costs a run.
    """
    batch, aimed = calibrator.batches[0], calibrator.taught[0].latents
    prompts = len(batch.texts)
    found: dict[str, Any] = {
        "prompts": prompts,
        "quantised": _recorded(calibrator.reference.recordings[0], aimed, prompts),
    }
    if profile is None:
        return found

    def run() -> list[float]:
        seen = _Deviations(Player(profile, RunStats(), keep_nan=True), aimed, prompts)
        share = profile.schedule.K / profile.schedule.T
        calibrator.run(batch, seen, "run step by step", share=share)
        return seen.errors

    name = f"by step {hashlib.sha256(profile.to_bytes()).hexdigest()}"
    return {**found, "profile": calibrator.store.get(name, run)}


def _recorded(own: Recording, aimed: Tensor, prompts: int) -> list[float]:
    return [_mean(x, goal, prompts) for x, goal in zip(own.latents[1:], aimed[1:], strict=True)]


def _mean(x: Tensor, goal: Tensor, prompts: int) -> float:
    return round(float(log10_error(x.float(), goal.float(), prompts).clamp(-99, 99).mean()), 4)
