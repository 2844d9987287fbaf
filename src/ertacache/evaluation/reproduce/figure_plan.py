"""The plan whose errors Figures 2 and 6 show: the paper's offline policy, without what mends its errors."""

from dataclasses import replace
from typing import Any, cast

from ertacache.baselines.baseline import Bench
from ertacache.baselines.ertacache import OfflinePolicy
from ertacache.baselines.profile_method import ProfileMethod
from ertacache.calibration.prompts import Prompts
from ertacache.errors import CalibrationError
from ertacache.evaluation.reproduce.entrants import entrants
from ertacache.evaluation.reproduce.kept import kept_profile
from ertacache.evaluation.reproduce.paper_figures import full_method
from ertacache.evaluation.reproduce.request import Ready, Request
from ertacache.profile.profile import Profile


def bench_of(ready: Ready, progress: Any) -> Bench:
    """The calibration prompts, their noise from seed 0 on."""
    return Bench(
        ready.pipe, ready.call, Prompts(ready.calibration_prompts, 0), ready.batch_size, progress=progress
    )  # fmt: skip


def cached_plan(ready: Ready, request: Request, bench: Bench) -> Profile:
    """Residual reuse on the policy's schedule, calibrated once and kept in the folder.

    Raises:
        CalibrationError: the policy computes every step.
    """

    def calibrated() -> Profile:
        row = full_method(ready.setting.tables[request.table])
        entrant = entrants([replace(row, method=OfflinePolicy.key)], ready, request.site)[0]
        profile = cast(ProfileMethod, entrant.method).planned(bench, None).profile
        if profile is None or profile.schedule.K == profile.schedule.T:
            raise CalibrationError(
                f"the policy of λ = {row.threshold:g} predicts no step here; use --by steps, or more steps"
            )
        return profile

    return kept_profile(request.out / "cached.safetensors", calibrated)
