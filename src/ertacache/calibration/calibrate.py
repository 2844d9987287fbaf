"""`calibrate`: from a pipeline and a few prompts to a profile whose loss was measured on prompts it did not fit."""

import inspect
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from ertacache.calibration import outcome
from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.candidates import Candidate, evaluate, options_of
from ertacache.calibration.checks import check_number, check_whole
from ertacache.calibration.choices import Budget, resolve
from ertacache.calibration.defaults import HOLDOUT, METHOD, RIDGE, Aim, Basis, Choices, MethodName, Timesteps
from ertacache.calibration.effort import effort, estimating
from ertacache.calibration.element_rectifier import announce_price
from ertacache.calibration.own_arguments import pipeline_arguments, refuse_mistaken
from ertacache.calibration.pipeline_run import check_call
from ertacache.calibration.progress import run_progress, say
from ertacache.calibration.prompts import split_prompts
from ertacache.calibration.sizes import check_own_grids, check_sizes, checkpoint_of, in_words, sized
from ertacache.core.rectify import Granularity
from ertacache.core.schedule import Schedule
from ertacache.errors import CalibrationError, InvalidArgument
from ertacache.pipelines.inputs import Inputs, input_names
from ertacache.pipelines.pipeline_call import defaults_of
from ertacache.profile.profile import Activation, Profile, Site

#: Runs shorter than this have few steps to spare: each is too far from the last to be predicted well.
_FEW_STEPS = 8


def calibrate(
    pipe: Any,
    prompts: Sequence[str] | None = None,
    *,
    method: MethodName = METHOD,
    compute_steps: int | None = None,
    threshold: float | None = None,
    schedule: Schedule | str | None = None,
    basis: Basis | None = None,
    site: Site | None = None,
    history: int | Literal["auto"] | None = None,
    aim: Aim | None = None,
    timesteps: Timesteps | float | None = None,
    rectifier: Granularity | Literal["none"] | None = None,
    activation: Activation | None = None,
    ridge: float = RIDGE,
    holdout: float = HOLDOUT,
    seed: int = 0,
    batch_size: int | None = None,
    inputs: Sequence[Inputs] | None = None,
    sizes: Sequence[Sequence[int]] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    show_progress: bool = True,
    call: Mapping[str, Any] | None = None,
    **more: Any,
) -> Profile:
    """Calibrate a profile on the user's pipeline, run as it is.

    `calibrate(pipe, prompts, compute_steps=K)` is the recommended plan, `method="ertacache"` the paper's. What is None
    is as the method's row in `calibration.defaults` says; what is given overrides it, and site, history and aim follow
    the basis where that is given.

    Args:
        pipe: a diffusers pipeline. Where a second denoiser takes over (Wan2.2), that step is always computed.
        prompts: two or more; the last `holdout` share is never fitted and gives the figures in the profile. Where
            `inputs` hold embeddings they are names, or None; None also for a pipeline that takes no prompt.
        method: "fitted": evenly spaced steps, the others predicted by a least-squares combination of the last three
            outputs that brings the latent back to the uncached trajectory. "ertacache", the paper: the offline policy's
            schedule, residual reuse, adjusted timesteps (the strength is measured) and the rectifier per channel.
        compute_steps: K, the number of steps to compute. With schedule "policy" the λ whose K is nearest is taken
            (K(λ) skips values: the profile says which K it has), with "uniform" exactly K, and one more where a second
            denoiser takes over at another step.
        threshold: λ of Algorithm 2 instead of K: a step is predicted while its mean relative ℓ1 error is below. It
            brings schedule="policy" along, with either method.
        schedule: "uniform", "policy" (Algorithm 2), a Schedule, or its text form such as "#.#.##".
        basis: `reuse` repeats the newest output, `residual` the newest residual v − x (Eq. 5-6), `fitted` corrects
            residual reuse by a least-squares combination of the history (formula P).
        site: where predictions are made: "output", "guided" or, with the residual basis, "hidden".
        history: depth of the fitted predictor, or "auto": own history and both branches at several depths, chosen on
            the held-out prompts at one closed loop each.
        aim: what `fitted` is fitted to: the true output of each "step", or whatever brings the latent back to the
            uncached "trajectory" (at site guided, on the own grid of a solver that draws no noise); "auto" measures
            both. Where the trajectory is the method's and not asked for, it gives way to "step", with a warning in the
            log, to another site, an adjusted grid, a rectifier, a solver that cannot be inverted, and prompts that go
            through the pipeline in several calls, in which it takes a pass per predicted step.
        timesteps: strength γ of the timestep adjustment: "none" (0), "paper" (1), a number between, or "auto", which
            measures several on the held-out prompts.
        rectifier: granularity of the error rectifier (Eq. 15-21), or "none".
        activation: "sigmoid" is the paper's literal form, for reproduction only.
        ridge: shrinkage of the fitted predictor toward residual reuse.
        holdout: share of the prompts that is held out; fewer than four of them are no measurement.
        seed: prompt n starts from the noise of seed + n.
        batch_size: prompts per pipeline call. All at once is exact; less needs several passes.
        inputs: what each prompt brings along beside or in place of its text, one dictionary per prompt, as
            `[{"image": first}, {"image": second}]` or `[{"prompt_embeds": [1, L, C], ...}, ...]`. Several prompts in
            one call pass the pipeline their embeddings and masks as one tensor [B, *], and a list for each other
            argument; where it takes such a list for one prompt's (FLUX.2's references), use batch_size=1. The
            profile keeps the names of the arguments only.
        sizes: (height, width) in pixels, of clips also (height, width, frames), in place of those arguments of the
            call: one calibration for each, all in one profile, of which a call is served by its time grid. Of sizes on
            one grid give one.
        checkpoint: file in which finished runs are kept; an interrupted calibration continues from it. Of several
            sizes each has its own beside it, its name followed by the size.
        show_progress: say on standard error what will be done, how far it is and what came of it. The log has it all.
        call: arguments of the pipeline call, `num_inference_steps`, `guidance_scale`, `height` and so on; the only
            place for one that has the name of an argument above, such as `call={"timesteps": [999, 845, ...]}`.
        more: the same as keywords.

    Returns:
        The profile. Its provenance has PSNR and SSIM on the held-out prompts, those of fewer steps at the same cost and
        which is better (`heldout`), and the speed-up and what the calibration cost (`measured`).

    Raises:
        InvalidArgument: arguments that do not exist, contradict each other or cannot work.
        CalibrationError: the checkpoint is another calibration's, or held-out runs end in NaN.
        UnsupportedPipeline: nothing can be predicted for this pipeline, not at this site or not on another grid.

    Warns:
        UserWarning: fewer solver steps at the same cost do better than the plan, or the call has fewer than 8 steps, of
            which caching has little to save.
    """
    own = inspect.signature(calibrate).parameters
    given: dict[str, Any] = {
        "schedule": schedule, "basis": basis, "site": site, "history": history, "aim": aim, "timesteps": timesteps,
        "rectifier": rectifier, "activation": activation,
    }  # fmt: skip
    others = {"method": method, "compute_steps": compute_steps, "threshold": threshold, "ridge": ridge}
    others |= {"holdout": holdout, "seed": seed, "batch_size": batch_size, "checkpoint": checkpoint}
    refuse_mistaken(pipe, {**given, **others})
    shared = pipeline_arguments(call, more)
    calls = {(): shared} if sizes is None else {size: sized(shared, size) for size in check_sizes(sizes, shared)}
    for arguments in calls.values():
        check_call(pipe, arguments, inputs or (), own=own, texts=prompts is not None)
    check_number("ridge", ridge, "choose 0 for plain least squares, more to shrink, such as 0.001", _from_zero)
    if batch_size is not None:
        check_whole("batch_size", batch_size, 1, "prompts per pipeline call, or None for all at once")
    fitted, held = split_prompts(prompts, holdout, seed, inputs)
    budget = Budget(compute_steps, threshold)
    choices = resolve(pipe, method, budget, given, one_call=len(fitted.batches(batch_size)) == 1)
    T = _steps(pipe, {**dict.fromkeys(input_names(inputs or ()), ()), **shared})
    _check_steps(T, choices, budget)
    expected = effort(choices, budget, fitted, held, batch_size, T)
    tell = partial(say, title="calibrate", show=show_progress)
    many = f", at each of {len(calls)} sizes" * (len(calls) > 1)
    tell(
        f"{len(fitted.texts)} prompts to fit and {len(held.texts)} held out; about {expected.calls} pipeline calls, "
        f"the work of {expected.work:.0f} uncached runs of one prompt{many}"
    )
    check_own_grids(pipe, fitted.batches(1)[0], calls)
    profiles: list[Profile] = []
    for size, arguments in calls.items():
        if choices.rectifier == "element":
            computed = choices.schedule.K if isinstance(choices.schedule, Schedule) else compute_steps
            announce_price(pipe, fitted, arguments, choices.site, computed)
        with run_progress(show_progress, expected=expected.calls) as progress:
            calibrator = Calibrator(
                pipe, prompts, holdout=holdout, seed=seed, batch_size=batch_size, inputs=inputs, call=arguments,
                checkpoint=checkpoint_of(checkpoint, size), progress=estimating(progress, expected, tell),
                trajectory=choices.aim in ("trajectory", "auto"),
            )  # fmt: skip
            if calibrator.T < _FEW_STEPS:
                warnings.warn(f"{calibrator.T} steps leave caching little to save; use it on longer runs", stacklevel=2)
            best = _best(calibrator, choices, budget, ridge)
            profiles.append(outcome.judge(calibrator, best))
        for line in profiles[-1].summary().splitlines():
            tell(line)
        if (text := outcome.warning(profiles[-1])) is not None:
            warnings.warn(f"size {in_words(size)}: {text}" if size else text, stacklevel=2)
    return replace(profiles[0], others=tuple(profiles[1:]))


def _best(calibrator: Calibrator, choices: Choices, budget: Budget, ridge: float) -> Candidate:
    """The candidate with the least deviation on the held-out prompts."""
    candidates = [evaluate(calibrator, option) for option in options_of(calibrator, choices, budget, ridge)]
    best = min(candidates, key=lambda candidate: candidate.deviation)
    if best.deviation == math.inf:
        raise CalibrationError(
            f"held-out runs end in NaN or infinity with schedule {best.profile.schedule}; compute more steps, or run "
            "the pipeline in a wider dtype"
        )
    return best


def _from_zero(value: float) -> bool:
    return 0 <= value < math.inf


def _steps(pipe: Any, call: Mapping[str, Any]) -> int | None:
    """The number of steps where the call says it, or the pipeline's default does."""
    if any(call.get(name) is not None for name in ("sigmas", "timesteps")):
        return None
    steps = call.get("num_inference_steps", defaults_of(pipe).get("num_inference_steps"))
    return steps if isinstance(steps, int) else None


def _check_steps(T: int | None, choices: Choices, budget: Budget) -> None:
    """What the pipeline's own number of steps rules out, before it runs."""
    if T is None:
        return
    if budget.compute_steps is not None and budget.compute_steps > T:
        raise InvalidArgument(f"compute_steps is {budget.compute_steps}; choose 2 to {T} of {T} steps")
    if isinstance(choices.schedule, Schedule) and choices.schedule.T != T:
        raise InvalidArgument(f"the schedule has {choices.schedule.T} steps and the pipeline call {T}; make them agree")
