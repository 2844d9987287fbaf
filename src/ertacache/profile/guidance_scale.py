"""The guidance scale that a profile belongs to, and how two profiles differ in it."""

from ertacache.profile.provenance import Provenance

#: Relative difference in guidance up to which coefficients still belong.
GUIDANCE_TOLERANCE = 0.01


def same_guidance(found: float, expected: float) -> bool:
    """Whether coefficients of one guidance weight serve another; NaN is no weight."""
    return abs(found - expected) <= GUIDANCE_TOLERANCE * max(1.0, abs(expected))


def weight_at(facts: Provenance, step: int) -> float | None:
    """The weight of two-branch guidance at a step of the calibration; None where there is none or it is unknown."""
    if facts.step_weights:
        return facts.step_weights[step]
    if step == 0 or step in facts.boundaries:  # an older profile knows no more
        return facts.guidance_weights[sum(boundary <= step for boundary in facts.boundaries)]
    return None


def scale_that_differs(one: Provenance, other: Provenance) -> str | None:
    """The field in which the guidance of two calibrations differs; None where it does in none, or in both of them."""
    pairs = {name: (getattr(one, name), getattr(other, name)) for name in ("embedded_guidance", "guidance_weight")}
    differing = [name for name, pair in pairs.items() if not _same(*pair)]
    return differing[0] if len(differing) == 1 and None not in pairs[differing[0]] else None


def _same(one: float | None, other: float | None) -> bool:
    return one == other if one is None or other is None else same_guidance(one, other)
