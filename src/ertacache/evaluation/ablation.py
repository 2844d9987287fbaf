"""The rows of a comparison: no cache, fewer steps, uniform, and the paper's parts one after the other."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from ertacache.calibration.assemble import extrapolated
from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.candidates import STRENGTHS, Candidate, evaluate, fit_options
from ertacache.calibration.defaults import RIDGE
from ertacache.calibration.method import Method
from ertacache.core.schedule import Schedule
from ertacache.evaluation.evaluate import Trial
from ertacache.profile.profile import Site

#: (site, basis) of the paper's reuse, in all the places where it can happen.
REUSE: tuple[tuple[Site, Literal["reuse", "residual"]], ...] = (
    ("output", "residual"),
    ("output", "reuse"),
    ("hidden", "residual"),
)


@dataclass(frozen=True)
class Ablation:
    """All rows at one budget of computed steps.

    Args:
        calibrator: for the same pipeline and call as the evaluation, on other prompts.
        budget: K.
        reuse: which (site, basis) pairs to ablate.
        extra_rows: also uniform at the policy's own K, and the rectifier without the adjusted grid.
    """

    calibrator: Calibrator
    budget: int
    reuse: tuple[tuple[Site, Literal["reuse", "residual"]], ...] = REUSE
    extra_rows: bool = True

    def trials(self) -> Iterator[Trial]:
        """One trial after the other, each calibrated when it is asked for."""
        yield Trial("fewer steps", "fewer steps", self.budget, steps=self.budget)
        uniform = Schedule.uniform(self.calibrator.T, self.budget)
        for site, basis in self.reuse:
            if site == "hidden" and not self.calibrator.family.block_lists:
                continue
            yield from self._paper_rows(Method(basis=basis, site=site, levels=0), uniform)
        plain = evaluate(self.calibrator, Method(basis="reuse", site="output", schedule=uniform, levels=0)).profile
        yield Trial("order-1 extrapolation, output: uniform", "uniform", self.budget, extrapolated(plain))
        yield from self._fitted_rows(uniform)

    def _paper_rows(self, method: Method, uniform: Schedule) -> Iterator[Trial]:
        name = f"{method.basis}, {method.site}"
        yield self._trial(f"{name}: uniform", "uniform", replace(method, schedule=uniform))
        found, schedule = self.calibrator.nearest_policy(method.policy(), self.budget)
        if self.extra_rows and schedule.K != self.budget:
            same = replace(method, schedule=Schedule.uniform(self.calibrator.T, schedule.K))
            yield self._trial(f"{name}: uniform at the policy's K", "uniform", same)
        policy = replace(method, schedule=schedule, threshold=found)
        yield self._trial(f"{name}: policy", "policy", policy)
        adjusted = self._best([replace(policy, strength=strength) for strength in STRENGTHS])
        yield Trial(f"{name}: policy + timesteps", "+ timesteps", self.budget, adjusted.profile)
        both = replace(adjusted.method, rectifier="channel")
        yield self._trial(f"{name}: policy + timesteps + rectifier", "+ rectifier", both)
        if self.extra_rows and adjusted.method.strength:
            alone = replace(policy, rectifier="channel")
            yield self._trial(f"{name}: policy + rectifier", "+ rectifier", alone)

    def _fitted_rows(self, uniform: Schedule) -> Iterator[Trial]:
        found, policy = self.calibrator.nearest_policy(Method("residual", "guided").policy(), self.budget)
        for stage, schedule, threshold in (("uniform", uniform, None), ("policy", policy, found)):
            start = Method(basis="fitted", site="guided", schedule=schedule, ridge=RIDGE, threshold=threshold)
            best = self._best(fit_options(self.calibrator, start))
            kind = "both branches" if best.method.branches else "own history"
            label = f"fitted, guided: {stage} ({kind}, last {best.method.levels}, {best.method.aim})"
            yield Trial(label, stage, self.budget, best.profile)

    def _best(self, options: list[Method]) -> Candidate:
        """The method with the least deviation on the calibration's own held-out prompts."""
        return min((evaluate(self.calibrator, option) for option in options), key=lambda c: c.deviation)

    def _trial(self, label: str, stage: str, method: Method) -> Trial:
        return Trial(label, stage, self.budget, evaluate(self.calibrator, method).profile)
