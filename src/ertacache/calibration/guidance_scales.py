"""One plan at several guidance scales: searched at the middle one, fitted at each, measured at and between them."""

import reprlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.candidates import fitted_candidate
from ertacache.calibration.checks import check_number
from ertacache.calibration.effort import Work, work_of
from ertacache.calibration.first_steps import FirstSteps
from ertacache.calibration.outcome import judge, judged_figures
from ertacache.calibration.prompts import Parts, Prompts
from ertacache.calibration.request import Request
from ertacache.calibration.search import Found
from ertacache.errors import InvalidArgument
from ertacache.pipelines.pipeline_call import defaults_of
from ertacache.profile.checks import MAX_GRIDS
from ertacache.profile.guidance_scale import same_guidance
from ertacache.profile.profile import Profile
from ertacache.profile.scales import with_scales

#: Two-branch guidance of pipelines whose `guidance_scale` is given to the denoiser, and what turns it on.
_TRUE_CFG, _NEGATIVE = "true_cfg_scale", ("negative_prompt", "negative_prompt_embeds")


@dataclass(frozen=True)
class GuidanceScales:
    """The scales of one calibration.

    Attributes:
        argument: of the pipeline call, that takes them.
        values: rising.
    """

    argument: str
    values: tuple[float, ...]

    @property
    def middle(self) -> float:
        """The one at which the plan is searched; of an even number the upper one, where guidance is harder."""
        return self.values[len(self.values) // 2]

    @property
    def between(self) -> tuple[float, ...]:
        """The middle of each two neighbours."""
        return tuple((low + high) / 2 for low, high in pairwise(self.values))

    def call(self, shared: Mapping[str, Any], scale: float) -> dict[str, Any]:
        """The arguments of the pipeline call at one scale."""
        return {**shared, self.argument: scale}


def check_scales(
    pipe: Any, given: Sequence[float], call: Mapping[str, Any], brought: Collection[str], sizes: int
) -> GuidanceScales:
    """The scales, and the argument that takes them: `true_cfg_scale` where the call uses it, else `guidance_scale`.

    Args:
        call: the other arguments of the pipeline calls. brought: names of those that each prompt has of its own.
        sizes: how many sizes there are; a profile holds one table for each size and scale.

    Raises:
        InvalidArgument: no list, fewer than two, too many, one that is no positive number, two that a run cannot
            tell apart, an argument that the call gives too, or a pipeline that has none.
    """
    if not isinstance(given, tuple | list):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidArgument(f"guidance_scales is {reprlib.repr(given)}; give a list of numbers, such as [3.5, 5, 7]")
    most = MAX_GRIDS // sizes
    if not 2 <= len(given) <= most:
        of_sizes = f" at {sizes} sizes, of which one file holds {MAX_GRIDS} profiles" * (sizes > 1)
        raise InvalidArgument(f"guidance_scales has {len(given)} entries; give 2 to {most}{of_sizes}, or leave it out")
    for scale in given:
        check_number("guidance_scales", scale, "give positive numbers, such as [3.5, 5, 7]", lambda x: 0 < x < 1e6)
    values = tuple(sorted(map(float, given)))
    for low, high in pairwise(values):
        if same_guidance(low, high):
            raise InvalidArgument(
                f"guidance_scales has {low:g} and {high:g}, which are one guidance to a run (within 1 %); give one"
            )
    given_too = [*(name for name, value in call.items() if value is not None), *brought]
    argument = argument_of(pipe, given_too)
    if argument in given_too:
        raise InvalidArgument(f"{argument!r} is given in guidance_scales and for all calls; give it once")
    if argument not in defaults_of(pipe):
        raise InvalidArgument(f"{type(pipe).__name__} takes no {argument}; leave guidance_scales out")
    return GuidanceScales(argument, values)


def argument_of(pipe: Any, given: Collection[str]) -> str:
    """The argument of the pipeline call that takes the scales, where these others are given."""
    two_branches = _TRUE_CFG in defaults_of(pipe) and any(name in given for name in (_TRUE_CFG, *_NEGATIVE))
    return _TRUE_CFG if two_branches else "guidance_scale"


def check_plan(request: Request) -> None:
    """Refuse a plan of which nothing lies between two scales: one with a grid or a rectifier of its own at each.

    Raises:
        InvalidArgument: naming the choice.
    """
    plan, method = request.choices, request.method
    adjusted = plan.timesteps not in ("none", 0) if method is None else bool(method.strength)
    rectifier = plan.rectifier if method is None else method.rectifier or "none"
    apart = rectifier == "element" or (plan if method is None else method).activation == "sigmoid"
    hidden = (plan if method is None else method).site == "hidden" and rectifier != "none"
    if adjusted:
        raise InvalidArgument("guidance_scales need one time grid for all of them; use timesteps='none' with them")
    if apart or hidden:
        raise InvalidArgument(
            "guidance_scales interpolate coefficients, and this rectifier is kept apart from them; use rectifier='none'"
        )


def check_guidance(scales: GuidanceScales, seen: Sequence[FirstSteps]) -> None:
    """Refuse runs that do not show their guidance, by which a profile tells its scales apart.

    Args:
        seen: the first steps of a run at each scale.

    Raises:
        InvalidArgument: neither two branches nor a weight that the denoiser is given, other calls at one scale than at
            another, or one guidance at all of them.
    """
    for scale, run in zip(scales.values, seen, strict=True):
        if not run.directed and run.embedded is None:
            raise InvalidArgument(
                f"guidance_scales need runs that show their guidance, by two branches in a step or by a weight that "
                f"the denoiser is given; at {scales.argument}={scale:g} this pipeline has neither"
            )
    first, *rest = seen
    if other := [run for run in rest if run.outputs != first.outputs]:
        raise InvalidArgument(
            f"guidance_scales have to leave the calls of a step as they are, and {scales.argument} makes them "
            f"{', '.join(first.outputs)} or {', '.join(other[0].outputs)}; leave out the scales that turn guidance off"
        )
    if any((run.embedded, run.weight) == (first.embedded, first.weight) for run in rest):
        raise InvalidArgument(
            f"{scales.argument} does not change the guidance of this pipeline; leave guidance_scales out"
        )


def further_work(scales: GuidanceScales, request: Request, steps: Sequence[int | None], work: Work,
                 parts: Parts, size: int | None, seen: FirstSteps) -> Work:  # fmt: skip
    """`work` of the middle scale with that of the others, and of what lies between.

    Args:
        steps: that each budget computes. size: prompts per pipeline call.
    """
    alone = parts._replace(chosen=Prompts((), 0))
    fit = request.loops_of_fit()
    own = work_of([(fit, K) for K in steps], alone, size, seen)
    count, gaps = len(scales.values) - 1, len(scales.between)
    judged = len(parts.judged.texts)
    runs = judged * sum((1.0, *(2 * (K / seen.steps if K else 0.5) for K in steps)))
    calls = len(parts.judged.batches(size)) * (1 + 2 * len(steps))
    every = work.runs + count * own.runs + gaps * runs
    return Work(
        work.calls + count * own.calls + gaps * calls,
        every,
        every * seen.steps * seen.seconds,
        work.bytes + count * own.bytes,
    )


def at_each_scale(
    scales: GuidanceScales,
    found: Sequence[tuple[Found, Profile]],
    calibrators: Sequence[Calibrator],
    folder: Callable[[float], Path | None],
) -> list[list[Profile]]:
    """For each plan its profiles at all scales, rising, each with what lies between it and the next.

    Args:
        found: the plans and their profiles at the middle scale. calibrators: of each scale.
        folder: for the runs between two scales, or None.
    """
    rows: list[list[Profile]] = []
    for scale, calibrator in zip(scales.values, calibrators, strict=True):
        if scale == scales.middle:
            rows.append([profile for _, profile in found])
            continue
        rows.append([judge(calibrator, fitted_candidate(calibrator, plan.best.method)) for plan, _ in found])
    plans = [list(plan) for plan in zip(*rows, strict=True)]
    for n, scale in enumerate(scales.between):
        judging = calibrators[n].judging(scales.call(calibrators[n].call, scale), folder(scale))
        for plan in plans:
            figures, _ = judged_figures(judging, with_scales(plan))
            plan[n] = _with_between(plan[n], {"scale": scale, **figures}, judging)
    return plans


def _with_between(profile: Profile, figures: dict[str, Any], judging: Calibrator) -> Profile:
    facts, spent = profile.provenance, judging.store.spent
    measured = {
        **facts.measured,
        "uncached_runs": facts.measured["uncached_runs"] + spent.runs,
        "calibration_seconds": facts.measured["calibration_seconds"] + spent.seconds,
    }
    heldout = {**facts.heldout, "between": [figures]}
    return replace(profile, provenance=replace(facts, heldout=heldout, measured=measured))


def joined(by_size: Sequence[Sequence[Profile]]) -> Profile:
    """One profile of those of each size, which are one or one for each guidance scale."""
    by_scale = [replace(first, others=tuple(rest)) for first, *rest in zip(*by_size, strict=True)]
    return with_scales(by_scale) if len(by_scale) > 1 else by_scale[0]
