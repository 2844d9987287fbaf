"""Whether a profile belongs to a call; every check names the field, both values and the remedy."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ertacache.errors import ProfileMismatch
from ertacache.pipelines.branches import branch_count, direction_of
from ertacache.pipelines.solvers import numbers_in
from ertacache.profile.guidance_scale import same_guidance, weight_at
from ertacache.profile.profile import Profile
from ertacache.runtime.run import Run


def check_context(profile: Profile, context: str) -> None:
    """The name of a call of the first step.

    Raises:
        ProfileMismatch: calibration had none of that name.
    """
    if context not in profile.provenance.contexts:
        raise ProfileMismatch(
            f"call names: the profile has {list(profile.provenance.contexts)}, this call is {context!r}; call the "
            "pipeline with the same kind of guidance as in calibration"
        )


def check_shape(profile: Profile, shape: tuple[int, ...]) -> None:
    """Channel count of what the solver receives, and the whole shape where coefficients have it.

    Args:
        shape: without the batch axis.

    Raises:
        ProfileMismatch: at the first that differs.
    """
    facts = profile.provenance
    axis = facts.channel_axis if facts.channel_axis < 0 else facts.channel_axis - 1
    _same("latent channels", facts.latent_shape[axis], shape[axis], "use the model it was calibrated on")
    if any(sum(size > 1 for size in table) > 1 for table in _coefficient_shapes(profile)):
        _same(
            "latent shape",
            facts.latent_shape,
            shape,
            "use the size of the calibration, or rectifier='channel'",
        )


def check_output(profile: Profile, context: str, shape: tuple[int, ...]) -> None:
    """Whether the coefficients of sites output and hidden can meet what a call of the first step returned.

    Args:
        shape: without the batch axis.

    Raises:
        ProfileMismatch: they do not broadcast.
    """
    for table in _coefficient_shapes(profile) if profile.site != "guided" else ():
        pairs = zip(reversed(table), reversed(shape), strict=False)
        if len(table) > len(shape) or any(size not in (1, own) for size, own in pairs):
            raise ProfileMismatch(
                f"coefficients: the profile has them of shape {list(table)}, call {context!r} returns {list(shape)}; "
                "use the size of the calibration, or calibrate on this model"
            )


def _coefficient_shapes(profile: Profile) -> list[tuple[int, ...]]:
    own = [profile.predictor.coef_shape]
    return own if profile.rectifier is None else [*own, tuple(profile.rectifier.kappa.shape[2:])]


def check_calls(profile: Profile, run: Run) -> None:
    """The set of calls of a step that is complete.

    Nothing predicts a call that the first step does not make (skip-layer guidance that starts later): it is computed
    wherever it comes, but at site guided, where every call of a predicted step is free.

    Raises:
        ProfileMismatch: other calls than in the calibration in the first step, or in one of a fitted profile.
    """
    expected = calls_at(profile, run.step)
    if sorted(run.contexts) == sorted(expected):
        return
    if run.steps_done == 0 or (profile.provenance.calls and depends_on_guidance(profile)):
        raise ProfileMismatch(
            f"call names: at step {run.step} the profile has {list(expected)}, this call made {run.contexts}; call the "
            "pipeline with the same kind of guidance (true_cfg_scale needs a negative_prompt, even an empty one)"
        )


def check_branches(profile: Profile, run: Run, context: str, x: Tensor) -> int:
    """How many branches of guidance a call on the latent `x` [n B, *] has in its batch; 1 where that is not known.

    Raises:
        ProfileMismatch: other than in the calibration, for a fitted profile.
    """
    if not profile.provenance.calls:
        return 1
    found = branch_count(x, run.batch)
    expected = calls_at(profile, run.step).get(context, found)
    if found != expected and depends_on_guidance(profile):
        raise ProfileMismatch(
            f"guidance branches: at step {run.step} the profile has {expected} in the batch of call {context!r}, this "
            f"call {found}; call the pipeline with guidance on, off and switched over as in the calibration"
        )
    return found


def calls_at(profile: Profile, step: int) -> dict[str, int]:
    """The calls of a step of the calibration, with their branches where these are known."""
    facts = profile.provenance
    known = [calls for first, calls in facts.calls if first <= step]
    return known[-1] if known else dict.fromkeys(facts.contexts, 1)


def check_weight(profile: Profile, step: int, weight: float | None) -> None:
    """The guidance weight of a computed step, as `Weighed.read` gives it.

    Raises:
        ProfileMismatch: a fitted profile meets another one than in the calibration.
    """
    facts = profile.provenance
    where = f"at step {step} " if facts.step_weights else ""
    _same_guidance(profile, "guidance weight", weight_at(facts, step), weight, where)


def check_embedded(profile: Profile, weight: float | None) -> None:
    """The guidance weight that the denoiser is given.

    Raises:
        ProfileMismatch: a fitted profile meets another one than in the calibration.
    """
    _same_guidance(profile, "embedded guidance", profile.provenance.embedded_guidance, weight)


def direction_at(run: Run, outputs: Mapping[str, Tensor], guided: Tensor) -> Tensor:
    """The guidance direction [B, *] of a computed step, see `direction_of`.

    Raises:
        ProfileMismatch: the calls of the step are not two branches.
    """
    direction = direction_of(outputs, guided)
    if direction is None:
        found = ", ".join(f"{name!r} {list(output.shape)}" for name, output in outputs.items())
        raise ProfileMismatch(
            f"guidance direction: the profile predicts from the difference of two branches, and step "
            f"{run.step} made {found} for {list(guided.shape)}; run with guidance on in every computed step, as in the "
            "calibration, or calibrate on such runs"
        )
    return direction


def check_options(profile: Profile, run: Run) -> None:
    """The numbers that the pipeline gives `scheduler.step`, such as DDIM's eta.

    Raises:
        ProfileMismatch: others than in the calibration.
    """
    facts = profile.provenance
    if not facts.calls:  # an older profile does not know
        return
    found = numbers_in(run.options)
    for name in sorted(facts.step_arguments.keys() | found.keys()):
        expected = facts.step_arguments.get(name)
        if expected != found.get(name):
            raise ProfileMismatch(
                f"{name}: the profile was calibrated with {expected}, this call gives scheduler.step "
                f"{found.get(name)}; use that {name}, or calibrate with this one"
            )


def check_boundary(profile: Profile, run: Run, taken_over: bool) -> None:
    """Whether another denoiser takes over where the profile says, at the first call of a step.

    Raises:
        ProfileMismatch: it does so at another step.
    """
    boundaries = profile.provenance.boundaries
    if taken_over != (run.step in boundaries):
        found = f"takes over at step {run.step}" if taken_over else f"does not at step {run.step}"
        raise ProfileMismatch(
            f"denoisers: in the profile another one takes over at steps {list(boundaries)}, and here one {found}; use "
            "the pipeline's boundary_ratio and step count of the calibration"
        )


def depends_on_guidance(profile: Profile) -> bool:
    """Whether the coefficients were fitted: reuse of an output or a residual is right at any guidance weight.

    It looks at all of them, so ask it last.
    """
    tables = profile.predictor
    reuse = all(bool(((table == 0) | (table == 1)).all()) for table in (tables.a, tables.d))
    fixed = reuse and not tables.b.any()
    return profile.rectifier is not None or profile.site == "guided" or not fixed


def _same_guidance(profile: Profile, field: str, expected: float | None, found: float | None, where: str = "") -> None:
    """Refuse another weight; one that either side does not know, as where the branches hardly differ, is no other."""
    if expected is None or found is None:
        return
    if same_guidance(found, expected) or not depends_on_guidance(profile):
        return
    runs_at = "mixes its outputs in another way" if math.isnan(found) else f"runs at {found:.4g}"
    raise ProfileMismatch(
        f"{field}: {where}the profile was calibrated at {expected:.4g}, this call {runs_at}; use that guidance or "
        "calibrate at this one"
    )


def _same(field: str, expected: Any, found: Any, remedy: str) -> None:
    if expected != found:
        raise ProfileMismatch(f"{field}: the profile has {expected!r}, this pipeline {found!r}; {remedy}")
