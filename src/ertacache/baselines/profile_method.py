"""Whole-step methods as compared methods: calibrated into a profile, which `ertacache.apply` plays."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

from ertacache.baselines.baseline import Baseline, Bench, Knob, steps_of
from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.candidates import STRENGTHS, Candidate, evaluate, fit_options
from ertacache.calibration.defaults import RIDGE
from ertacache.calibration.method import Method
from ertacache.core.offload import Offload
from ertacache.core.rectify import Granularity
from ertacache.core.schedule import Schedule
from ertacache.errors import CalibrationError, UnsupportedPipeline
from ertacache.pipelines.models import denoisers_of, family_of, unwrapped
from ertacache.pipelines.solvers import check_free_grid
from ertacache.profile.profile import Profile, Site
from ertacache.runtime.hooks import attached
from ertacache.runtime.identity import check_pipeline
from ertacache.runtime.player import Player
from ertacache.runtime.run_stats import RunStats


@dataclass(frozen=True)
class ProfileMethod(Baseline):
    """A schedule, a coefficient table and a time grid (formula P of the design).

    Args:
        schedule: "uniform", or "policy" for Algorithm 2 at the λ whose K is nearest.
        basis: plain reuse, the paper's residual reuse (Eq. 5-6), or fitted coefficients.
        site: where the prediction happens.
        adjusted: whether the time grid is adjusted (Eq. 13-14), at the strength that measures best.
        rectifier: granularity of the error rectifier (Eq. 15-21), if any.
        threshold: λ of the policy; None to take the one that the cost asks for.
        share: K / T, where no cost is asked for.
        profile: what calibration made of all this.
        offload_history: where its history waits between steps; see `runtime.apply`. Results do not depend on it, and no
            file of a comparison keeps it.
    """

    paper: ClassVar[str] = "ERTACache, arXiv 2508.21091"
    work: ClassVar[str] = "nothing of the denoiser"
    knob: ClassVar[Knob] = Knob("share", 1.0, 0.05)

    schedule: Literal["uniform", "policy"] = "uniform"
    basis: Literal["reuse", "residual", "fitted"] = "residual"
    site: Site = "output"
    adjusted: bool = False
    rectifier: Granularity | None = None
    threshold: float | None = None
    share: float = 0.5
    profile: Profile | None = field(default=None, repr=False, compare=False)
    offload_history: Offload = field(default=None, repr=False, compare=False, metadata={"kept": False})

    def refusal(self, pipe: Any, call: Mapping[str, Any]) -> str | None:
        denoisers = denoisers_of(pipe)
        denoiser = unwrapped(denoisers[0])
        if self.site == "hidden" and not family_of(denoiser).block_lists:
            return f"the blocks of {type(denoiser).__name__} are not known"
        if self.adjusted and len(denoisers) > 1:
            return f"the time grid of {type(pipe).__name__} decides which denoiser runs"
        if self.adjusted:
            try:
                check_free_grid(pipe.scheduler)
            except UnsupportedPipeline:
                return f"the time grid of {type(pipe.scheduler).__name__} cannot be changed"
        return None

    def planned(self, bench: Bench, target: float | None) -> Self:
        calibrator = bench.calibrator
        K = min(calibrator.T, max(2, round((self.share if target is None else target) * calibrator.T)))
        best = min((evaluate(calibrator, option) for option in self._options(calibrator, K)), key=_deviation)
        if self.rectifier is not None:
            best = evaluate(calibrator, replace(best.method, rectifier=self.rectifier))
        return replace(self, share=best.profile.schedule.K / calibrator.T, profile=best.profile)

    def applied(self, pipe: Any, call: Mapping[str, Any]) -> AbstractContextManager[Any]:
        if self.profile is None:
            raise CalibrationError(
                f"{self.key} has no profile for these {steps_of(call)} steps yet; call planned() first"
            )
        check_pipeline(self.profile, pipe)
        # A plan that diverged is compared as what a person would see.
        player = Player(self.profile, RunStats(), self.offload_history, keep_nan=True)
        return attached(pipe, player, hidden=self.profile.site == "hidden")

    def _options(self, calibrator: Calibrator, K: int) -> list[Method]:
        """What is still open at this number of steps, for the held-out part of the calibration prompts to decide."""
        chosen = self._scheduled(calibrator, K)
        if not self.adjusted:
            return fit_options(calibrator, chosen)
        return [
            option for strength in STRENGTHS for option in fit_options(calibrator, replace(chosen, strength=strength))
        ]

    def _scheduled(self, calibrator: Calibrator, K: int) -> Method:
        fitted = self.basis == "fitted"
        method = Method(self.basis, self.site, levels=3 if fitted else 0, ridge=RIDGE if fitted else 0.0)
        if self.schedule == "uniform":
            schedule = Schedule.uniform(calibrator.T, K).with_steps(calibrator.reference.boundaries)
            return replace(method, schedule=schedule)
        # Which coefficients will be fitted is not known yet: the policy decides on residual reuse.
        plan = method.policy()
        if self.threshold is not None:
            schedule = calibrator.policy(replace(plan, threshold=self.threshold))
            return replace(method, schedule=schedule, threshold=self.threshold)
        found, schedule = calibrator.nearest_policy(plan, K)
        return replace(method, schedule=schedule, threshold=found)


def _deviation(candidate: Candidate) -> float:
    return candidate.deviation
