"""What a plan may be, checked before anything runs: the search's own method, or the choices of an expert."""

import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from ertacache.calibration.budget import Budget
from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.checks import check_number
from ertacache.calibration.choices import resolve
from ertacache.calibration.defaults import METHOD, Choices
from ertacache.calibration.effort import Loops, loops_of_choices, loops_of_methods, loops_of_search
from ertacache.calibration.method import Method
from ertacache.calibration.proposals import Effort
from ertacache.calibration.search import recommended
from ertacache.core.schedule import Schedule
from ertacache.errors import InvalidArgument
from ertacache.pipelines.pipeline_call import defaults_of


@dataclass(frozen=True)
class Request:
    """What a plan may be.

    Attributes:
        choices: what an expert has chosen; the aim is always settled there.
        method: all of it, with or without a schedule; None where choices or the search say it.
        effort: of the search; None where nothing is searched.
        ridge: see `calibrate`.
    """

    choices: Choices
    method: Method | None
    effort: Effort | None
    ridge: float

    def loops(self, budget: Budget, *, directed: bool) -> Loops:
        """The closed loops that a budget takes."""
        if self.effort is not None:
            target, aimed = budget.target_psnr is not None, self.choices.aim != "step"
            return loops_of_search(self.effort, directed=directed, target=target, aimed=aimed)
        if self.method is not None:
            return self.loops_of_fit()
        return loops_of_choices(self.choices, budget, two=directed)

    def loops_of_fit(self) -> Loops:
        """The closed loops of one plan that is settled but for its coefficients."""
        if self.effort is not None:
            return Loops(int(self.choices.aim != "step"), int(self.choices.aim == "step"), 0)
        if self.method is not None:
            return loops_of_methods([self.method])
        aim = "step" if self.choices.aim == "auto" else self.choices.aim
        return loops_of_choices(replace(self.choices, schedule="uniform", history=3, aim=aim), Budget(), two=False)

    @property
    def aimed(self) -> bool:
        """Whether every plan is fitted to the trajectory."""
        if self.method is not None:
            own = self.method
            plain = own.site == "guided" and own.rectifier is None and own.strength == 0 and own.grid is None
            return plain and own.fitted and own.aim == "trajectory"
        return self.choices.aim == "trajectory"

    def compares(self, budget: Budget) -> bool:
        """Whether plans are compared, for which some prompts are set aside."""
        return budget.target_psnr is not None or self.loops(budget, directed=False).measured > 0

    def even(self, calibrator: Calibrator) -> Method:
        """The method that a search begins with, its schedule open."""
        if self.method is not None:
            return self.method
        if self.effort is not None:
            return recommended(calibrator, self.ridge, self.choices.aim)
        basis = self.choices.basis
        levels = self.choices.history if isinstance(self.choices.history, int) else 3
        return Method(basis, self.choices.site, levels=levels, ridge=self.ridge, aim="step")


def requested(
    pipe: Any,
    method: str | Method,
    effort: str | None,
    budgets: Sequence[Budget],
    expert: Mapping[str, Any],
    ridge: float,
) -> Request:
    """What the arguments of `calibrate` ask for.

    Args:
        expert: the choices that an expert may make, by name; None for those that nobody made.

    Raises:
        InvalidArgument, UnsupportedPipeline: as `choices.resolve`, or an effort beside choices that leave no search.
    """
    searching = check_request(method, effort, budgets, expert, ridge)
    own = method if isinstance(method, Method) else None
    if own is not None and own.schedule is not None:
        expert = {**expert, "schedule": str(own.schedule)}
    settled = [resolve(pipe, METHOD if isinstance(method, Method) else method, budget, expert) for budget in budgets]
    return Request(settled[0], own, searching, ridge)


def check_request(
    method: str | Method, effort: str | None, budgets: Sequence[Budget], expert: Mapping[str, Any], ridge: float
) -> Effort | None:
    """The effort of the search that is asked for, None where nothing is searched; no pipeline is needed to check it.

    Raises:
        InvalidArgument: see `requested`.
    """
    check_number("ridge", ridge, "choose 0 for plain least squares, more to shrink, such as 0.001", _from_zero)
    if effort is not None and effort not in get_args(Effort):
        names = ", ".join(map(repr, get_args(Effort)))
        raise InvalidArgument(f"effort is {reprlib.repr(effort)}; choose one of {names}")
    made = {name: value for name, value in expert.items() if value is not None}
    if any(budget.threshold is not None for budget in budgets):
        made["threshold"] = budgets[0].threshold
    chosen = next((f"{name}={value!r}" for name, value in made.items()), None)
    chosen = chosen or (None if method == METHOD else f"method={reprlib.repr(method)}")
    if effort is not None and chosen is not None:
        raise InvalidArgument(f"effort={effort!r} searches for what {chosen} fixes; give one of them")
    if isinstance(method, Method):
        if made:
            raise InvalidArgument(f"{chosen} is fixed by the Method that is given; give one of them")
        _check_method(method, budgets)
    return None if chosen is not None else effort or "balanced"  # pyright: ignore[reportReturnType]


def _check_method(method: Method, budgets: Sequence[Budget]) -> None:
    if method.schedule is None and method.threshold is not None:
        raise InvalidArgument(f"the method has threshold={method.threshold}; use threshold= of calibrate for a λ")
    if method.schedule is not None and (said := [name for budget in budgets for name in budget.given]):
        raise InvalidArgument(f"the method has a schedule, which {said[0]} contradicts; give one of them")


def check_steps(pipe: Any, call: Mapping[str, Any], request: Request, budgets: Sequence[Budget]) -> None:
    """What the pipeline's own number of steps rules out, before it runs.

    Raises:
        InvalidArgument: more steps to compute than there are, or a schedule of another length.
    """
    if any(call.get(name) is not None for name in ("sigmas", "timesteps")):
        return
    steps = call.get("num_inference_steps", defaults_of(pipe).get("num_inference_steps"))
    if isinstance(steps, int):
        check_count(steps, request, budgets)


def check_count(steps: int, request: Request, budgets: Sequence[Budget]) -> None:
    """What a number of steps rules out: see `check_steps`."""
    for budget in budgets:
        budget.steps(steps)
    schedule = request.choices.schedule if request.method is None else request.method.schedule
    if isinstance(schedule, Schedule) and schedule.T != steps:
        raise InvalidArgument(f"the schedule has {schedule.T} steps and the pipeline call {steps}; make them agree")


def _from_zero(value: float) -> bool:
    return 0 <= value < math.inf
