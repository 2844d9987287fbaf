"""A fitted method as a profile."""

import importlib.metadata
from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.element_rectifier import rectifier_tables, with_room
from ertacache.calibration.kept import loop_name
from ertacache.calibration.method import Method
from ertacache.calibration.reference_log import Reference
from ertacache.calibration.solved import Solved, compensation_of
from ertacache.core.predictor import Predictor
from ertacache.core.schedule import Schedule
from ertacache.errors import InvalidArgument
from ertacache.pipelines.branches import DIRECTION
from ertacache.pipelines.inputs import input_names
from ertacache.pipelines.weights import fingerprint_of
from ertacache.profile.checks import SMALL
from ertacache.profile.fingerprint import prompt_hash
from ertacache.profile.profile import Profile
from ertacache.profile.provenance import Provenance
from ertacache.runtime.identity import identity_of


def fit(calibrator: Calibrator, method: Method, after: Method | None = None, *, keep: bool = False) -> Solved:
    """Fit grid, predictor and rectifier of a method with a schedule.

    Args:
        after, keep: see `Calibrator.solve`.

    Raises:
        InvalidArgument: a method without a schedule, with one of another length, or with a history that the calls of
            this pipeline do not leave.
    """
    _check(calibrator, method)
    method = _plain(method)
    if method.nothing_to_fit and method.strength == 0:
        return Solved(grid=None if method.grid is None else torch.tensor(method.grid, dtype=torch.float64))
    if method.site == "guided" or method.fitted:
        return calibrator.solve(method, after, keep=keep)
    grid = None
    if method.strength:
        grid = calibrator.solve(method.grid_plan()).grid
        method = replace(method, strength=0.0, grid=None if grid is None else tuple(grid.tolist()))
    return Solved(grid=grid) if method.nothing_to_fit else calibrator.solve(method)


def fit_ahead(
    calibrator: Calibrator, methods: Iterable[Method], after: Method | None = None, *, keep: bool = False
) -> None:
    """Where runs are spread, fit all of these methods side by side: see `fit`."""
    _ = calibrator.aimed
    loops = [(_first_loop(method), method) for method in methods]
    calibrator.ahead(
        {loop_name(loop): partial(fit, method=own, after=after, keep=keep) for loop, own in loops if loop is not None}
    )


def _first_loop(method: Method) -> Method | None:
    """What the first closed loop of a fit solves; None where there is none."""
    method = _plain(method)
    if method.nothing_to_fit and method.strength == 0:
        return None
    return method if method.site == "guided" or method.fitted or not method.strength else method.grid_plan()


def _plain(method: Method) -> Method:
    """Without what only says where the method comes from, or is of another basis, which makes no other fit."""
    method = replace(method, threshold=None)
    if not method.fitted:
        method = replace(method, levels=0, directions=0, branches=False, ridge=0.0, aim="step")
    return method


def _check(calibrator: Calibrator, method: Method) -> None:
    if method.schedule is None:
        raise InvalidArgument("the method has no schedule yet; choose one first")
    if method.schedule.T != calibrator.T:
        raise InvalidArgument(
            f"the schedule has {method.schedule.T} steps and the pipeline call {calibrator.T}; make them agree"
        )
    if method.branches and not calibrator.reference.branches:
        raise InvalidArgument(
            "branches=True predicts from the calls' outputs, which have another shape here than what the solver "
            "receives; use branches=False"
        )
    if method.directions and (method.site != "guided" or not calibrator.reference.directions):
        raise InvalidArgument(
            f"directions={method.directions} predicts from the guidance direction, which needs site='guided' and two "
            "branches in every step; use directions=0"
        )
    _check_small(calibrator, method)


def _check_small(calibrator: Calibrator, method: Method) -> None:
    """Steps at which a small model helps are predicted ones of a plan that it can help."""
    if not method.small or method.schedule is None:
        return
    if calibrator.small is None:
        raise InvalidArgument(f"the method has small={list(method.small)} and there is no small model; give predictor=")
    if method.site != "guided" or not method.fitted or method.needs_truth:
        raise InvalidArgument(
            "a small model serves fitted plans at site 'guided' that aim at the trajectory, on the solver's own grid "
            "and without a rectifier; use such a method, or small=()"
        )
    steps = method.schedule.predicted_steps
    if list(method.small) != sorted({*method.small} & {*steps}):
        raise InvalidArgument(
            f"the method has small={list(method.small)}; name predicted steps of '{method.schedule}', rising: "
            f"{list(steps)}"
        )


def assemble(calibrator: Calibrator, method: Method, solved: Solved, heldout: dict[str, Any]) -> Profile:
    """The profile of a fitted method."""
    schedule = method.schedule
    if schedule is None:
        raise InvalidArgument("the method has no schedule yet; choose one first")
    reference = calibrator.reference
    predictor, rectifier = _predictor(method, schedule, reference, solved), None
    if solved.affine:
        rectifier = rectifier_tables(solved, schedule, predictor.targets, method.activation)
        if method.rectifier == "element":
            rectifier = with_room(rectifier, schedule)
        # Folded, one coefficient per element would be stored once for each term of formula (P).
        elif method.site != "hidden" and method.activation == "linear":
            predictor, rectifier = predictor.rectified(rectifier.kappa, rectifier.beta), None
    sigmas = reference.sigmas if solved.grid is None else solved.grid.float()
    return Profile(
        schedule=schedule,
        site=method.site,
        predictor=predictor,
        base_sigmas=reference.sigmas,
        sigmas=sigmas,
        rectifier=rectifier,
        compensation=compensation_of(solved, schedule.T),
        provenance=_provenance(calibrator, method, heldout),
    )


def extrapolated(profile: Profile) -> Profile:
    """The same schedule with a line in σ through the last two outputs of each call, which nothing is fitted for."""
    line = Predictor.extrapolation(
        profile.schedule, profile.predictor.targets, profile.base_sigmas, profile.provenance.boundaries
    )
    facts = replace(
        profile.provenance, method={**profile.provenance.method, "basis": "extrapolation"}, heldout={}, measured={}
    )
    return replace(profile, predictor=line, provenance=facts)


def _predictor(method: Method, schedule: Schedule, reference: Reference, solved: Solved) -> Predictor:
    contexts, branches = reference.contexts, reference.branches
    if method.site == "hidden":
        # The history holds residuals of the block stack: repeating one is residual reuse there.
        return Predictor.plain_reuse(schedule, contexts)
    targets = ("guided",) if method.site == "guided" else contexts
    make = Predictor.plain_reuse if method.basis == "reuse" else Predictor.residual_reuse
    plain = make(schedule, targets)
    if not solved.weights:
        return plain
    more = (DIRECTION,) * bool(method.directions) + (SMALL,) * bool(method.small)
    sources = (*targets, *(branches if method.branches else ()), *more)
    a = torch.zeros(schedule.T, len(targets), len(sources), max(method.levels, method.directions))
    a[:, :, : len(targets), :1] = plain.a
    d, small = plain.d.clone(), list(method.small)
    if small:
        a[small], d[small] = 0, 0
        a[small, 0, sources.index(SMALL), 0] = 1
    for (i, target), weights in solved.weights.items():
        names = method.features(target, branches, schedule.depth(i, reference.boundaries), small=i in method.small)
        for (source, level), weight in zip(names, weights, strict=True):
            a[i, targets.index(target), sources.index(source), level] += float(weight)
    return Predictor(targets, sources, a, d, plain.b)


def _provenance(calibrator: Calibrator, method: Method, heldout: dict[str, Any]) -> Provenance:
    reference, parts, teacher = calibrator.reference, calibrator.parts, calibrator.teacher
    fitted, chosen, judged = parts
    choices = {name: value for name, value in asdict(method).items() if name != "grid"}
    if method.correcting is None:
        del choices["correcting"]
    if not method.small:
        del choices["small"]
    choices["schedule"] = str(method.schedule)
    choices["prompts"] = {"fitted": len(fitted.texts), "chosen_on": len(chosen.texts), "judged": len(judged.texts)}
    choices |= {} if teacher is None else teacher.choices
    if fitted.inputs:
        choices["inputs"] = list(input_names(fitted.inputs))
    return Provenance(
        **identity_of(calibrator.pipe),
        **({} if teacher is None else teacher.facts(calibrator.pipe)),
        weights=fingerprint_of(calibrator.pipe),
        num_inference_steps=calibrator.T,
        contexts=reference.contexts,
        step_arguments=reference.step_arguments,
        calls=reference.calls,
        step_weights=reference.step_weights,
        guidance_weight=reference.weights[0],
        embedded_guidance=reference.embedded,
        call=calibrator.call,
        latent_shape=tuple(reference.recordings[0].latents.shape[2:]),
        channel_axis=calibrator.family.channel_axis,
        dtype=reference.dtype,
        prompt_count=len(fitted.texts),
        prompt_hash=prompt_hash([identity for part in parts for identity in part.identities]),
        holdout_count=len(chosen.texts) + len(judged.texts),
        seed=calibrator.seed,
        method=choices,
        versions={name: importlib.metadata.version(name) for name in ("diffusers", "ertacache", "torch")},
        heldout=heldout,
        boundaries=reference.boundaries,
        later_weights=reference.weights[1:],
        small_model=_small_model(calibrator) if method.small else {},
    )


def _small_model(calibrator: Calibrator) -> dict[str, Any]:
    if calibrator.small is None:
        raise InvalidArgument("there is no small model; give predictor=")
    return {**calibrator.small.identity, "share": calibrator.small_share}
