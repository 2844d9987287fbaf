"""A profile in words and as plain facts: one place for the command line, `str`, and notebooks.

A profile file may come from a stranger: its texts are escaped, and its free dictionaries may hold anything.
"""

import math
from collections.abc import Mapping
from typing import Any, cast

from ertacache.profile.content import Content
from ertacache.profile.provenance import Provenance

#: Held-out prompts below which a mean says nothing.
FEWEST_PROMPTS = 4
#: Held-out PSNR in dB below which a plan's pictures are others than the uncached ones.
LEAST_PSNR = 20.0
_LONGEST = 200


def printable(value: object) -> str:
    """A text, or the `repr` of another value, on one line: control and bidirectional characters, line breaks and lone
    surrogates are escaped, and what is too long is cut."""
    text = value if isinstance(value, str) else repr(value)
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[:_LONGEST])
    return shown + "..." * (len(text) > _LONGEST)


def summary_facts(profile: Content) -> dict[str, Any]:
    """The facts of a profile as JSON."""
    facts = profile.provenance
    return {
        "schedule": str(profile.schedule),
        "K": profile.schedule.K,
        "T": profile.schedule.T,
        "site": profile.site,
        "method": facts.method,
        "adjusted_grid": _adjusted(profile),
        "coefficients": list(profile.predictor.a.shape),
        "model": facts.model_class,
        "scheduler": facts.scheduler_class,
        "contexts": list(facts.contexts),
        "guidance_weight": facts.guidance_weight,
        "embedded_guidance": facts.embedded_guidance,
        "latent_shape": list(facts.latent_shape),
        "call": facts.call,
        "prompts": {"fitted": facts.prompt_count, "heldout": facts.holdout_count, "seed": facts.seed},
        "heldout": facts.heldout,
        "measured": facts.measured,
        "versions": facts.versions,
        "settings": {"model": facts.model_config, "scheduler": facts.scheduler_config},
        "step_arguments": facts.step_arguments,
        "calls": [list(change) for change in facts.calls],
        "step_weights": list(facts.step_weights),
        "others": [summary_facts(other) for other in profile.others],
    }


def one_line(profile: Content) -> str:
    """The profile in one line, as a prompt or a debugger shows it."""
    facts = profile.provenance
    parts = [
        printable(facts.model_class),
        f"{profile.schedule.K} of {profile.schedule.T} steps",
        f"{_basis(profile)} at {profile.site}".strip(),
    ]
    if profile.others:
        parts.append(f"{1 + len(profile.others)} time grids")
    if psnr := _spread(facts.heldout, "psnr", _prompts(facts)):
        parts.append(f"{psnr} dB on {_prompts(facts)} prompts")
    return f"Profile({', '.join(parts)})"


def summary_text(profile: Content) -> str:
    """The profile in lines for people, and one further down for each other time grid."""
    return "\n".join(line for own in (profile, *profile.others) for line in _lines(own, profile))


def _lines(profile: Content, first: Content) -> list[str]:
    head = f"{profile.schedule}  computes {profile.schedule.K} of {profile.schedule.T} steps"
    return [head, *(f"{label}: {words}" for label, words in summary_rows(profile, first))]


def summary_rows(profile: Content, first: Content) -> list[tuple[str, str]]:
    """What there is to say of a profile beside its schedule: (label, words), escaped for a terminal.

    Args:
        first: the profile whose file it is in; of one that has others, each says its size.
    """
    facts, method = profile.provenance, profile.provenance.method
    calls = ", ".join(map(printable, facts.contexts))
    rows = [
        ("model", f"{printable(facts.model_class)} with {printable(facts.scheduler_class)}, calls {calls}"),
        *(_size(facts) if first.others else ()),
        ("method", f"{_basis(profile)} at site {profile.site}{_history(profile)}".strip()),
    ]
    if facts.guidance_weight is not None or facts.embedded_guidance is not None:
        weights = [f"{weight:g}" for weight in (*facts.guidance_weights, facts.embedded_guidance) if weight is not None]
        rows.append(("guidance", ", ".join(weights)))
    rows += _changes(facts)
    if profile.rectifier is not None or method.get("rectifier"):
        kind = method.get("rectifier") or "given"
        activation = profile.rectifier.activation if profile.rectifier is not None else "linear"
        rows.append(("rectifier", f"{printable(kind)}, {activation}"))
    if _adjusted(profile):
        strength = _number(method, "strength")
        rows.append(("time grid", "adjusted" + (f", strength {strength:g}" if strength is not None else "")))
    if (threshold := _number(method, "threshold")) is not None:
        rows.append(("threshold", f"{threshold:g}"))
    return rows + _quality(facts) + _cost(facts)


def _changes(facts: Provenance) -> list[tuple[str, str]]:
    """Calls that are not the same in every step, or have several branches in their batch; what the solver is given."""
    rows: list[tuple[str, str]] = []
    if len(facts.calls) > 1 or any(branches > 1 for _, calls in facts.calls for branches in calls.values()):
        made = [
            ", ".join(printable(name) + f" × {calls[name]}" * (calls[name] > 1) for name in sorted(calls))
            + f" from step {step}"
            for step, calls in facts.calls
        ]
        rows.append(("calls", "; ".join(made)))
    known = [weight for weight in facts.step_weights if weight is not None]
    if known and min(known) < max(known):
        rows.append(("guidance by step", f"{min(known):g} to {max(known):g}"))
    if facts.step_arguments:
        given = (f"{printable(name)} {number:g}" for name, number in sorted(facts.step_arguments.items()))
        rows.append(("solver", ", ".join(given)))
    return rows


def _size(facts: Provenance) -> list[tuple[str, str]]:
    """Height × width and, of a clip, frames, where the calibration was told."""
    found = [_number(facts.call, name) for name in ("height", "width", "num_frames")]
    if found[0] is None or found[1] is None:
        return []
    return [("size", "×".join(f"{number:g}" for number in found if number is not None))]


def _basis(profile: Content) -> str:
    basis = profile.provenance.method.get("basis")
    return printable(basis) if isinstance(basis, str) else ""


def _history(profile: Content) -> str:
    levels = profile.predictor.levels
    both = len(profile.predictor.sources) > len(profile.predictor.targets)
    depth = f", from the last {levels} computed steps" if levels > 1 else ", from the last computed step"
    return depth + (" of both branches" if both else "")


def _adjusted(profile: Content) -> bool:
    return bool((profile.sigmas != profile.base_sigmas).any())


def _quality(facts: Provenance) -> list[tuple[str, str]]:
    """What was measured on held-out prompts, and what it is worth."""
    held, prompts = facts.heldout, _prompts(facts)
    if not (psnr := _spread(held, "psnr", prompts)):
        return [("quality", "not measured")]
    count = f"{prompts} held-out prompt{'s' * (prompts != 1)}"
    rows = [("quality", f"PSNR {psnr} dB{_ssim(held, prompts)} on {count} (± standard error)")]
    fewer = held.get("fewer_steps")
    if reached := _spread(fewer, "psnr", prompts):
        steps = _number(fewer, "steps")
        at = f" at {steps:g} steps" if steps is not None else ""
        rows.append(("fewer steps", f"PSNR {reached} dB{_ssim(fewer, prompts)}{at}, the same cost without a profile"))
    if (gain := _number(held, "gain", "mean")) is not None:
        error = _number(held, "gain", "standard_error")
        spread = f" ± {error:.1f}" if error is not None and prompts > 1 else ""
        rows.append(("gain", f"{gain:+.1f}{spread} dB over fewer steps"))
    if held.get("wins") is False:
        rows.append(("warning", "loses to fewer steps: run the pipeline with fewer steps, or calibrate another plan"))
    if (mean := _number(held, "psnr", "mean")) is not None and mean < LEAST_PSNR:
        rows.append(("warning", f"far from the uncached results, below {LEAST_PSNR:g} dB: compute more steps"))
    if prompts < FEWEST_PROMPTS:
        rows.append(("warning", f"fewer than {FEWEST_PROMPTS} held-out prompts: no measurement"))
    return rows


def _cost(facts: Provenance) -> list[tuple[str, str]]:
    """What a run costs with and without the profile, and what making it cost."""
    measured, rows = facts.measured, list[tuple[str, str]]()
    if (speed_up := _number(measured, "speed_up")) is not None:
        cached, uncached = _number(measured, "cached_seconds"), _number(measured, "uncached_seconds")
        known = cached is not None and uncached is not None
        rows.append(("speed", f"{speed_up:.2f}× faster" + (f", {cached:.3g} s for {uncached:.3g} s" if known else "")))
    runs, seconds = _number(measured, "uncached_runs"), _number(measured, "calibration_seconds")
    parts = [
        *([f"{runs:.3g} uncached runs of one prompt"] if runs is not None else []),
        *([f"{seconds:.3g} s"] if seconds is not None else []),
    ]
    return [*rows, ("calibration", "cost " + ", ".join(parts))] if parts else rows


def _prompts(facts: Provenance) -> int:
    given = _number(facts.heldout, "prompts")
    return facts.holdout_count if given is None else int(given)


def _spread(table: object, name: str, prompts: int, digits: int = 1) -> str:
    """Mean ± standard error; empty where there is no mean. Older files hold the deviation of one prompt instead."""
    mean, error = _number(table, name, "mean"), _number(table, name, "standard_error")
    if mean is None:
        return ""
    deviation = _number(table, name, "std")
    if error is None and deviation is not None and prompts > 1:
        error = deviation / math.sqrt(prompts)
    return f"{mean:.{digits}f}" + (f" ± {error:.{digits}f}" if error is not None and prompts > 1 else "")


def _ssim(table: object, prompts: int) -> str:
    spread = _spread(table, "ssim", prompts, 4)
    return f", SSIM {spread}" if spread else ""


def _number(table: object, *path: str) -> float | None:
    """The finite number at a path of keys, whatever lies on the way."""
    value = table
    for key in path:
        if not isinstance(value, Mapping):
            return None
        value = cast("Mapping[str, object]", value).get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None
