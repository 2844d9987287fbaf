"""`calibrate`: from a pipeline and a few prompts to a profile that says what it keeps."""

import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

from ertacache.calibration.assisted import check_predictor
from ertacache.calibration.budget import Budget, budgets_of
from ertacache.calibration.checkpoint import check_folder
from ertacache.calibration.checks import check_number, check_whole
from ertacache.calibration.defaults import CHOOSE, HOLDOUT, METHOD, RIDGE, Aim, Basis, MethodName, Timesteps
from ertacache.calibration.full_precision import FullPrecision, check_reference, full_precision
from ertacache.calibration.guidance_scales import check_plan, check_scales, joined
from ertacache.calibration.job import Job
from ertacache.calibration.method import Method
from ertacache.calibration.own_arguments import pipeline_arguments, refuse_mistaken
from ertacache.calibration.pipeline_run import check_batches, check_call
from ertacache.calibration.prompts import split_prompts
from ertacache.calibration.proposals import Effort
from ertacache.calibration.request import Request, check_steps, requested
from ertacache.calibration.sizes import check_own_grids, check_sizes, sized
from ertacache.calibration.spread import Map
from ertacache.calibration.target import check_target
from ertacache.calibration.teacher import check_teacher
from ertacache.core.rectify import Granularity
from ertacache.core.schedule import Schedule
from ertacache.errors import InvalidArgument
from ertacache.pipelines.affine_step import is_affine
from ertacache.pipelines.inputs import Inputs, check_inputs, input_names
from ertacache.pipelines.models import denoisers_of
from ertacache.profile.profile import Activation, Profile, Site
from ertacache.runtime.small_model import SmallModel


@overload
def calibrate(  # pyright: ignore[reportOverlappingOverload]  # what is a list in none of them is a number in all
    pipe: Any,
    prompts: Sequence[str] | None = None,
    *,
    speedup: float | None = None,
    compute_steps: int | None = None,
    target_psnr: float | None = None,
    max_seconds: float | None = None,
    **options: Any,
) -> Profile: ...


@overload
def calibrate(
    pipe: Any,
    prompts: Sequence[str] | None = None,
    *,
    speedup: float | Sequence[float] | None = None,
    compute_steps: int | Sequence[int] | None = None,
    target_psnr: float | Sequence[float] | None = None,
    max_seconds: float | Sequence[float] | None = None,
    **options: Any,
) -> list[Profile]: ...


def calibrate(
    pipe: Any,
    prompts: Sequence[str] | None = None,
    *,
    speedup: float | Sequence[float] | None = None,
    compute_steps: int | Sequence[int] | None = None,
    target_psnr: float | Sequence[float] | None = None,
    max_seconds: float | Sequence[float] | None = None,
    effort: Effort | None = None,
    method: MethodName | Method = METHOD,
    threshold: float | None = None,
    schedule: Schedule | str | None = None,
    basis: Basis | None = None,
    site: Site | None = None,
    history: int | Literal["auto"] | None = None,
    aim: Aim | None = None,
    timesteps: Timesteps | float | None = None,
    rectifier: Granularity | Literal["none"] | None = None,
    activation: Activation | None = None,
    teacher_steps: int | None = None,
    reference: Any = None,
    predictor: Any = None,
    ridge: float = RIDGE,
    choose: float = CHOOSE,
    holdout: float = HOLDOUT,
    seed: int = 0,
    batch_size: int | None = None,
    inputs: Sequence[Inputs] | None = None,
    sizes: Sequence[Sequence[int]] | None = None,
    guidance_scales: Sequence[float] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    map: Map | None = None,
    show_progress: bool = True,
    call: Mapping[str, Any] | None = None,
    **more: Any,
) -> Profile | list[Profile]:
    """Calibrate a profile on the user's pipeline, run as it is.

    `calibrate(pipe, prompts, speedup=2.0)` searches the best plan that computes half of the steps;
    `method="ertacache"` is the paper's. Prompts that no coefficient was fitted to choose among plans, and others that
    took no part in either say what the profile keeps.

    Args:
        pipe: a diffusers pipeline. Where a second denoiser takes over (Wan2.2), that step is always computed.
        prompts: two or more. Where `inputs` hold embeddings they are names, or None; None also for a pipeline that
            takes no prompt.
        speedup: how many times fewer steps to compute than the call has. This, or one of the next three, is the
            budget; a list gives one profile for each, from one recording.
        compute_steps: K, the number of steps to compute. With schedule "policy" the λ whose K is nearest is taken
            (K(λ) skips values: the profile says which K it has), else exactly K, and one more where a second denoiser
            takes over at a step that the schedule lacks.
        target_psnr: dB to keep with as few steps as can be: the lower 95 % confidence bound of the mean on the prompts
            that choose reaches it.
        max_seconds: what a call for one prompt may take on this machine, all of it.
        effort: "fast" fits one plan: evenly spaced steps, the others predicted by a least-squares combination of the
            last three outputs and, where there are two branches, two guidance directions, which brings the latent back
            to the uncached trajectory. "balanced", the default, prices every schedule on the recorded outputs, fits
            seven or eight and compares the best four. "thorough" fits twice as many, then
            moves single computed steps and refines all weights together.
        method: "fitted", what the efforts search in; "ertacache", the paper: the offline policy's schedule, residual
            reuse, adjusted timesteps (the strength is measured) and the rectifier per channel; or a `Method`, every
            choice of which is taken as it is.
        threshold: λ of Algorithm 2 instead of a budget: a step is predicted while its mean relative ℓ1 error is below.
            It brings schedule="policy" along, with either method. This and the arguments that follow it, up to
            `activation`, are choices of an expert: what is None is as the method's row in `calibration.defaults` says,
            site, history and aim follow the basis where that is given, and nothing else is searched.
        schedule: "uniform", "policy" (Algorithm 2), a Schedule, or its text form such as "#.#.##".
        basis: `reuse` repeats the newest output, `residual` the newest residual v − x (Eq. 5-6), `fitted` corrects
            residual reuse by a least-squares combination of the history (formula P).
        site: where predictions are made: "output", "guided" or, with the residual basis, "hidden".
        history: depth of the fitted predictor, or "auto": own history and both branches at several depths, compared
            on the prompts that choose at one closed loop each.
        aim: what `fitted` is fitted to: the true output of each "step", or whatever brings the latent back to the
            uncached "trajectory" (at site guided, on the own grid of a solver that draws no noise), which computes no
            predicted step; "auto" measures both. Where the trajectory is the method's and not asked for, it gives way
            to "step", with a warning in the log, to another site, an adjusted grid, a rectifier and a solver that
            cannot be inverted.
        timesteps: strength γ of the timestep adjustment: "none" (0), "paper" (1), a number between, or "auto", which
            compares several on the prompts that choose.
        rectifier: granularity of the error rectifier (Eq. 15-21), or "none".
        activation: "sigmoid" is the paper's literal form, for reproduction only.
        teacher_steps: a multiple of the call's number of steps, such as 4 times as many: the plan is fitted to be near
            to a run of so many, on a grid that has the call's own among its nodes, so that it may be nearer to the
            exact trajectory than the uncached run. Plans are compared, and `target_psnr` is kept, to those runs, which
            cost their steps for every prompt. For aim "trajectory" on the free grid of a solver without noise.
        reference: of a quantised pipeline, the pipeline in full precision, its denoiser, or of several denoisers a
            dictionary by their names. The plan is fitted to the reference's trajectory, so that one table undoes
            caching and quantisation; plans are compared, and `target_psnr` is kept, to the reference's runs. For aim
            "trajectory"; see also `calibrate_quantized`, which corrects a model that computes every step.
        predictor: a small model that shares latents and texts with the pipeline (a pipeline, or its denoiser alone):
            plans may call it at predicted steps, guidance and all, and predict from its output too. Its operations are
            counted, so that such a plan computes fewer steps than one without; the prompts that choose decide between
            the two. With compute_steps or speedup, or a Method that names the steps; `apply` then needs it too.
        ridge: shrinkage of the fitted predictor toward residual reuse, or toward the small model's output.
        choose: share of the prompts that plans are compared on; where there is one plan they are fitted.
        holdout: share of the prompts that judge the chosen plan. Both parts have four prompts or more where there are
            twelve: fewer are no measurement.
        seed: prompt n starts from the noise of seed + n.
        batch_size: prompts per pipeline call. The calls go in lockstep: the result is the same, to rounding, and the
            memory that of one call.
        inputs: what each prompt brings along beside or in place of its text, one dictionary per prompt, as
            `[{"image": first}, {"image": second}]` or `[{"prompt_embeds": [1, L, C], ...}, ...]`. Several prompts in
            one call pass the pipeline their embeddings and masks as one tensor [B, *], and a list for each other
            argument; where it takes such a list for one prompt's (FLUX.2's references), use batch_size=1. The
            profile keeps the names of the arguments only.
        sizes: (height, width) in pixels, of clips also (height, width, frames), in place of those arguments of the
            call: one calibration for each, all in one profile, of which a call is served by its time grid. Of sizes on
            one grid give one.
        guidance_scales: two or more, in place of the pipeline's `true_cfg_scale` where a negative prompt turns that on,
            else of its `guidance_scale`. The plan is searched at the middle one, its coefficients are fitted at each,
            for one more recording and closed loop; a run between two takes what lies between their coefficients, and
            what that loses is measured half way (`heldout["between"]`).
        checkpoint: folder in which finished runs are kept, made if it is missing; an interrupted calibration continues
            from it. Of several sizes or guidance scales each has its own inside.
        map: spreads the runs over processes with a pipeline each, such as `ertacache.ray.map(num_gpus=1)`; those on
            other machines need a `checkpoint` that all of them see. The result is the same. Not with `reference`, a
            model of this process alone.
        show_progress: say on standard error what will be done, how far it is and what came of it. The log has it all.
        call: arguments of the pipeline call, `num_inference_steps`, `guidance_scale`, `height` and so on; the only
            place for one that has the name of an argument above, such as `call={"timesteps": [999, 845, ...]}`.
        more: the same as keywords.

    Returns:
        The profile, or of a list of budgets one for each. Its provenance has PSNR and SSIM on the judged prompts,
        those of fewer steps and of reuse at the same cost, the plans that were compared (`heldout`), and the speed-up
        and what the calibration cost (`measured`).

    Raises:
        InvalidArgument: arguments that do not exist, contradict each other or cannot work.
        CalibrationError: the checkpoint is another calibration's, no plan keeps the target, or held-out runs end in
            NaN.
        UnsupportedPipeline: nothing can be predicted for this pipeline, not at this site or not on another grid.

    Warns:
        UserWarning: fewer solver steps at the same cost do better than the plan or may do, its results are far from
            the uncached ones, or the call has fewer than 8 steps, of which caching has little to save.
    """
    own = inspect.signature(calibrate).parameters
    denoisers_of(pipe)  # whatever is asked of it, it has to be a pipeline
    check_inputs(inputs)
    refuse_mistaken(pipe, {"threshold": threshold})
    budgets, several = budgets_of(
        {
            "compute_steps": compute_steps, "speedup": speedup, "target_psnr": target_psnr, "max_seconds": max_seconds,
            "threshold": threshold,
        }
    )  # fmt: skip
    expert: dict[str, Any] = {
        "schedule": schedule, "basis": basis, "site": site, "history": history, "aim": aim, "timesteps": timesteps,
        "rectifier": rectifier, "activation": activation,
    }  # fmt: skip
    others = {"method": method, "effort": effort, "ridge": ridge, "choose": choose, "holdout": holdout, "seed": seed}
    refuse_mistaken(
        pipe, {**expert, **others, "batch_size": batch_size, "checkpoint": checkpoint, "teacher_steps": teacher_steps}
    )
    shared = pipeline_arguments(call, more)
    calls = {(): shared} if sizes is None else {size: sized(shared, size) for size in check_sizes(sizes, shared)}
    brought, scales = input_names(inputs or ()), None
    if guidance_scales is not None:
        scales = check_scales(pipe, guidance_scales, shared, brought, len(calls))
        calls = {size: scales.call(arguments, scales.middle) for size, arguments in calls.items()}
    for arguments in calls.values():
        check_call(pipe, arguments, inputs or (), own=own, texts=prompts is not None)
    request = requested(pipe, method, effort, budgets, expert, ridge)
    if scales is not None:
        check_plan(request)
    if batch_size is not None:
        check_whole("batch_size", batch_size, 1, "prompts per pipeline call, or None for all at once")
    compared = any(request.compares(budget) for budget in budgets)
    compared |= predictor is not None and request.effort is not None
    check_number("holdout", holdout, "choose a share between 0 and 1, such as 0.2", lambda x: 0 < x < 1)
    check_number("choose", choose, "choose a share from 0 to below 1, such as 0.2", lambda x: 0 <= x < 1)
    shares: dict[str, Any] = {"choose": choose if compared else 0.0, "judge": holdout, "seed": seed, "inputs": inputs}
    parts = split_prompts(prompts, **shares)
    for budget in budgets:
        check_target(budget.target_psnr, len(parts.chosen.texts))
    scaled = scales is not None
    full = _aimed_at(pipe, request, reference, teacher_steps, scaled=scaled, spread=map is not None)
    if teacher_steps is not None:
        check_teacher(pipe, shared, inputs or (), teacher_steps, aimed=request.aimed)
    check_steps(pipe, {**dict.fromkeys(brought, ()), **shared}, request, budgets)
    for arguments in calls.values():
        check_batches(pipe, parts, batch_size, arguments)
    others = {"map": map, "reference": reference, "guidance_scales": guidance_scales, "sizes": sizes}
    small = _small_model(pipe, predictor, request, budgets, {name: other is not None for name, other in others.items()})
    job = Job(
        pipe, prompts, request, budgets, parts, shares, batch_size, checkpoint, show_progress, len(calls), scales,
        teacher_steps, full, map, small,
    )  # fmt: skip
    if checkpoint is not None:
        check_folder(checkpoint)
    check_own_grids(pipe, parts.fitted.batches(1)[0], calls)
    job.check_checkpoints(calls)
    by_size = [job.profiles(size, arguments) for size, arguments in calls.items()]
    profiles = [joined(plan) for plan in zip(*by_size, strict=True)]
    return profiles if several else profiles[0]


def _aimed_at(
    pipe: Any, request: Request, reference: Any, teacher_steps: int | None, *, scaled: bool, spread: bool
) -> FullPrecision | None:
    """The model in full precision whose runs are the goal, if one is given; of two goals neither is taken."""
    full = None if reference is None else full_precision(pipe, reference)
    if full is not None:
        check_reference(aimed=request.aimed and is_affine(pipe.scheduler), spread=spread)
        if scaled or teacher_steps is not None:
            other = "guidance_scales" if scaled else f"teacher_steps={teacher_steps}"
            raise InvalidArgument(f"reference and {other} aim at different runs; give one of them")
    if teacher_steps is not None and scaled:
        raise InvalidArgument(
            f"teacher_steps={teacher_steps} aims at a finer run of one guidance scale; calibrate each scale by itself"
        )
    return full


def _small_model(
    pipe: Any, predictor: Any, request: Request, budgets: Sequence[Budget], given: dict[str, bool]
) -> SmallModel | None:
    """The small model that plans may predict from; `given` are the arguments that go without one."""
    if predictor is not None:
        small = SmallModel(pipe, predictor)
        check_predictor(pipe, request, budgets, given)
        return small
    if request.method is not None and request.method.small:
        raise InvalidArgument(f"the method has small={list(request.method.small)}; give the small model: predictor=")
    return None
