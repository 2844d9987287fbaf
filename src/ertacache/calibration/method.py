"""What makes a whole-step method: schedule, basis, grid and rectifier; and the profile that comes of fitting it."""

import importlib.metadata
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.element_rectifier import rectifier_tables, with_room
from ertacache.calibration.plan import Plan, Solved, feature_names
from ertacache.calibration.reference_log import Reference
from ertacache.core.predictor import Predictor
from ertacache.core.rectify import Granularity
from ertacache.core.schedule import Schedule
from ertacache.errors import InvalidArgument
from ertacache.pipelines.inputs import input_names
from ertacache.pipelines.weights import fingerprint_of
from ertacache.profile.fingerprint import prompt_hash
from ertacache.profile.profile import Activation, Profile, Site
from ertacache.profile.provenance import Provenance
from ertacache.runtime.identity import identity_of


@dataclass(frozen=True)
class Method:
    """Every choice of a calibration but the prompts.

    Attributes:
        levels, branches, ridge: of the fitted basis; see `closed_loop.Plan`.
        aim: what the fitted basis is fitted to; see `plan.Plan`.
        strength: γ of the timestep adjustment.
        threshold: the λ that gave the schedule, if one did.
    """

    basis: Literal["reuse", "residual", "fitted"]
    site: Site
    schedule: Schedule | None = None
    levels: int = 3
    branches: bool = False
    ridge: float = 0.0
    aim: Literal["step", "trajectory"] = "step"
    strength: float = 0.0
    rectifier: Granularity | None = None
    rectifier_ridge: float = 0.0
    activation: Activation = "linear"
    threshold: float | None = None


def policy_plan(method: Method, channel_axis: int) -> Plan:
    """The closed loop that decides a schedule. Guidance is linear in the outputs, so that reuse at each call and
    reuse of what the solver receives are one trajectory: at site `output` it is decided there too."""
    level = "hidden" if method.site == "hidden" else "guided"
    return Plan(level=level, residual=method.basis != "reuse", channel_axis=channel_axis)


def fit_plans(calibrator: Calibrator, method: Method) -> tuple[Solved, Tensor | None]:
    """Fit grid, predictor and rectifier of a method with a schedule; returns them and the adjusted grid, if any."""
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
    base: dict[str, Any] = {
        "schedule": method.schedule,
        "residual": method.basis != "reuse",
        "channel_axis": calibrator.family.channel_axis,
    }
    fit: dict[str, Any] = {
        "levels": method.levels if method.basis == "fitted" else 0,
        "branches": method.branches,
        "ridge": method.ridge if method.basis == "fitted" else 0.0,
        "aim": method.aim if method.basis == "fitted" else "step",
        "rectifier": method.rectifier,
        "rectifier_ridge": method.rectifier_ridge,
        "activation": method.activation,
    }
    nothing_to_fit = method.basis != "fitted" and method.rectifier is None
    if nothing_to_fit and method.strength == 0:
        return Solved(), None
    if method.site == "guided" or method.basis == "fitted":
        solved = calibrator.solve(Plan(level=method.site, strength=method.strength, **base, **fit))
        return solved, solved.grid
    grid = None
    if method.strength:
        level = "hidden" if method.site == "hidden" else "guided"
        grid = calibrator.solve(Plan(level=level, strength=method.strength, **base)).grid
    if nothing_to_fit:
        return Solved(), grid
    return calibrator.solve(Plan(level=method.site, **base, **fit), grid), grid


def assemble(
    calibrator: Calibrator, method: Method, solved: Solved, grid: Tensor | None, heldout: dict[str, Any]
) -> Profile:
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
    sigmas = reference.sigmas if grid is None else grid.float()
    return Profile(
        schedule=schedule,
        site=method.site,
        predictor=predictor,
        base_sigmas=reference.sigmas,
        sigmas=sigmas,
        rectifier=rectifier,
        provenance=_provenance(calibrator, method, solved.change, heldout),
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
    sources = (*targets, *branches) if method.branches else targets
    a = torch.zeros(schedule.T, len(targets), len(sources), method.levels)
    a[:, :, : len(targets), :1] = plain.a
    plan = Plan(level="guided", levels=method.levels, branches=method.branches)
    for (i, target), weights in solved.weights.items():
        names = feature_names(plan, target, branches, schedule.depth(i, reference.boundaries))
        for (source, level), weight in zip(names, weights, strict=True):
            a[i, targets.index(target), sources.index(source), level] += float(weight)
    return Predictor(targets, sources, a, plain.d, plain.b)


def _provenance(calibrator: Calibrator, method: Method, change: float, heldout: dict[str, Any]) -> Provenance:
    reference = calibrator.reference
    choices = {**asdict(method), "schedule": str(method.schedule), "last_pass_change": change}
    if calibrator.prompts.inputs:
        choices["inputs"] = list(input_names(calibrator.prompts.inputs))
    return Provenance(
        **identity_of(calibrator.pipe),
        weights=fingerprint_of(calibrator.pipe),
        num_inference_steps=calibrator.T,
        contexts=reference.contexts,
        step_arguments=reference.step_arguments,
        calls=reference.calls,
        step_weights=reference.step_weights,
        guidance_weight=reference.weights[0],
        embedded_guidance=reference.embedded,
        call=calibrator.call,
        latent_shape=tuple(reference.latents.shape[1:]),
        channel_axis=calibrator.family.channel_axis,
        dtype=reference.dtype,
        prompt_count=len(calibrator.prompts.texts),
        prompt_hash=prompt_hash([*calibrator.prompts.identities, *calibrator.heldout.identities]),
        holdout_count=len(calibrator.heldout.texts),
        seed=calibrator.seed,
        method=choices,
        versions={name: importlib.metadata.version(name) for name in ("diffusers", "ertacache", "torch")},
        heldout=heldout,
        boundaries=reference.boundaries,
        later_weights=reference.weights[1:],
    )
