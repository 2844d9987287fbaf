"""A profile in words and as plain facts: one place for the command line, `str`, and notebooks.

A profile file may come from a stranger: its texts are escaped, and its free dictionaries may hold anything.
"""

from typing import Any

from ertacache.profile.checks import SMALL
from ertacache.profile.content import Content
from ertacache.profile.foreign import at, number, printable
from ertacache.profile.profile_figures import (
    Table,
    confidence,
    gain,
    judged_plans,
    percent,
    plans,
    prompts_of,
    size_of,
    spread,
    tables,
)  # fmt: skip
from ertacache.profile.provenance import Provenance

#: Held-out prompts below which a mean says nothing.
FEWEST_PROMPTS = 4
#: Held-out PSNR in dB below which a plan's pictures are others than the uncached ones.
LEAST_PSNR = 20.0
#: Confidence below which a gain over fewer steps is not settled.
LEAST_CONFIDENCE = 0.95


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
        "prompts": {
            "fitted": facts.prompt_count,
            "heldout": facts.holdout_count,
            **{name: int(count) for name, count in _split(facts).items()},
            "seed": facts.seed,
        },
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
    if (grids := len({own.base_sigmas.numpy().tobytes() for own in (profile, *profile.others)})) > 1:
        parts.append(f"{grids} time grids")
    if (scales := (1 + len(profile.others)) // grids) > 1:
        parts.append(f"{scales} guidance scales")
    if psnr := spread(facts.heldout, "psnr", prompts_of(facts)):
        parts.append(f"{psnr} dB on {prompts_of(facts)} prompts")
    return f"Profile({', '.join(parts)})"


def summary_text(profile: Content) -> str:
    """The profile in lines for people, and one further down for each other time grid."""
    lines = [line for table in plans(profile) for line in table_lines(table)]
    return "\n".join([*lines, *(line for own in (profile, *profile.others) for line in _lines(own, profile))])


def _lines(profile: Content, first: Content) -> list[str]:
    head = f"{profile.schedule}  computes {profile.schedule.K} of {profile.schedule.T} steps"
    rows = [f"{label}: {words}" for label, words in summary_rows(profile, first)]
    return [head, *rows, *(line for table in tables(profile) for line in table_lines(table))]


def table_lines(table: Table) -> list[str]:
    """A table for a terminal: the first column is set left, numbers are set right."""
    cells = [table.head, *table.rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells]
    remark = [f"  ({table.remark})"] * bool(table.remark)
    return [f"{table.title}:", *(f"  {line}".rstrip() for line in lines), *remark]


def summary_rows(profile: Content, first: Content) -> list[tuple[str, str]]:
    """What there is to say of a profile beside its schedule: (label, words), escaped for a terminal.

    Args:
        first: the profile whose file it is in; of one that has others, each says its size.
    """
    facts, method = profile.provenance, profile.provenance.method
    calls = ", ".join(map(printable, facts.contexts))
    rows = [
        ("model", f"{printable(facts.model_class)} with {printable(facts.scheduler_class)}, calls {calls}"),
        *([("size", size)] if first.others and (size := size_of(facts)) else ()),
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
        strength = number(method, "strength")
        rows.append(("time grid", "adjusted" + (f", strength {strength:g}" if strength is not None else "")))
    if (threshold := number(method, "threshold")) is not None:
        rows.append(("threshold", f"{threshold:g}"))
    return rows + _small(profile) + _quality(facts) + _cost(facts)


def _small(profile: Content) -> list[tuple[str, str]]:
    """The small model that is called on predicted steps, and what its calls come to."""
    if not (steps := profile.small_steps):
        return []
    kept, count = profile.provenance.small_model, len(steps)
    words = f"{printable(kept['model_class'])} at {count} predicted step{'s' * (count > 1)}, {kept['share']:.3g} of a"
    return [("small model", f"{words} step each: as much as {profile.counted_steps:.1f} computed steps in all")]


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


def _basis(profile: Content) -> str:
    basis = profile.provenance.method.get("basis")
    return printable(basis) if isinstance(basis, str) else ""


def _history(profile: Content) -> str:
    """How far back the predictor looks, and at what beside the history of its targets."""
    predictor, contexts = profile.predictor, profile.provenance.contexts
    depths = {
        name: sum(bool(predictor.a[:, :, s, level].any()) for level in range(predictor.levels))
        for s, name in enumerate(predictor.sources)
    }
    others = [name for name in predictor.sources if name not in (*predictor.targets, SMALL)]
    both = any(name in contexts or name.rpartition(":")[0] in contexts for name in others)
    words = ", from the last " + _steps(predictor.levels) + " of both branches" * both
    if others and not both:
        words += f", with the guidance direction of the last {_steps(depths[others[0]])}"
    return words


def _steps(count: int) -> str:
    return f"{count} computed steps" if count > 1 else "computed step"


def _adjusted(profile: Content) -> bool:
    return bool((profile.sigmas != profile.base_sigmas).any())


def _split(facts: Provenance) -> dict[str, float]:
    """How many prompts were fitted, chosen on and judged, where a file says so."""
    found: dict[str, float] = {}
    for name in ("fitted", "chosen_on", "judged"):
        if (count := number(facts.method, "prompts", name)) is None:
            return {}
        found[name] = count
    return found


def _quality(facts: Provenance) -> list[tuple[str, str]]:
    """What was measured on prompts that no fit has seen."""
    held, prompts, judged = facts.heldout, prompts_of(facts), judged_plans(facts)
    rows: list[tuple[str, str]] = []
    if split := _split(facts):
        rows.append(("prompts", "{fitted:g} fitted, {chosen_on:g} chosen on, {judged:g} judged".format(**split)))
    if not (psnr := spread(held, "psnr", prompts)):
        return [*rows, ("quality", "not measured")]
    count = f"{prompts} {'judged' if judged else 'held-out'} prompt{'s' * (prompts != 1)}"
    rows.append(("quality", f"PSNR {psnr} dB{_ssim(held, prompts)} on {count} (± standard error)"))
    fewer = held.get("fewer_steps")
    rows += _correction(facts)
    rows += _teacher(facts, prompts)
    if not judged and (reached := spread(fewer, "psnr", prompts)):
        steps = number(fewer, "steps")
        at = f" at {steps:g} steps" if steps is not None else ""
        rows.append(("fewer steps", f"PSNR {reached} dB{_ssim(fewer, prompts)}{at}, the same cost without a profile"))
    if gained := gain(facts):
        sure = confidence(facts)
        trust = "" if sure is None else f", {percent(sure)} confidence that it beats them"
        of = f" from the {whose_runs(held['teacher'])} run" if "teacher" in held else ""
        rows.append(("gain", f"{gained} dB over fewer steps{of}{trust}"))
    return rows + _warnings(facts, prompts)


def _correction(facts: Provenance) -> list[tuple[str, str]]:
    """What the correction of a quantised model gains, or that there is none."""
    held, name = facts.heldout, at(facts.heldout, "correction", "name")
    if name is None:
        return []
    mean, error = (number(held, "correction", "gain", key) for key in ("mean", "standard_error"))
    gained = "" if mean is None else f", {mean:+.2f} ± {error or 0:.2f} dB to the quantised run"
    if at(held, "correction", "installed") is not True:
        return [("correction", f"none, since {printable(name)} is the best there is{gained}")]
    return [("correction", f"{printable(name)}{gained}")]


def whose_runs(teacher: object) -> str:
    """What to call the runs that a plan was fitted to and measured from, where that are not the uncached ones."""
    return "fine" if at(teacher, "precision") is None else "full-precision"


def _teacher(facts: Provenance, prompts: int) -> list[tuple[str, str]]:
    """How near a plan with a teacher is to its runs, beside what was not fitted to be."""
    teacher, steps = facts.heldout.get("teacher"), number(facts.heldout, "teacher", "steps")
    precision = at(teacher, "precision")
    if (steps is None and precision is None) or not (psnr := spread(teacher, "psnr", prompts)):
        return []
    run = f"the run of {steps:g} steps" if steps is not None else f"the run in {printable(precision)}"
    words = f"PSNR {psnr} dB from {run}"
    others = {"the uncached run": at(teacher, "uncached"), "fewer steps": at(facts.heldout, "fewer_steps", "teacher")}
    found = [f"{name} {own}" for name, part in others.items() if (own := spread(part, "psnr", prompts))]
    return [(f"{whose_runs(teacher)} run", ", ".join([words, *found]))]


def _warnings(facts: Provenance, prompts: int) -> list[tuple[str, str]]:
    """What the figures are worth."""
    held, sure, found = facts.heldout, confidence(facts), list[str]()
    if held.get("wins") is False:
        found.append("loses to fewer steps: run the pipeline with fewer steps, or calibrate another plan")
    elif sure is not None and sure < LEAST_CONFIDENCE:
        found.append(
            f"not known to beat fewer steps: the confidence is {percent(sure)}, below {LEAST_CONFIDENCE:.0%}; judge it "
            "on more prompts, or run fewer steps"
        )
    aimed, whose = (at(held, "teacher"), whose_runs(held["teacher"])) if "teacher" in held else (held, "uncached")
    if (mean := number(aimed, "psnr", "mean")) is not None and mean < LEAST_PSNR:
        found.append(f"far from the {whose} results, below {LEAST_PSNR:g} dB: compute more steps")
    if (split := _split(facts)) and split["chosen_on"] and not split["judged"]:
        found.append("measured on the prompts that chose the plan, which flatters it: calibrate on more prompts")
    if prompts < FEWEST_PROMPTS:
        kind = "judged" if judged_plans(facts) else "held-out"
        found.append(f"fewer than {FEWEST_PROMPTS} {kind} prompts: no measurement")
    return [("warning", words) for words in found]


def _cost(facts: Provenance) -> list[tuple[str, str]]:
    """What a run costs with and without the profile, and what making it cost."""
    measured, rows = facts.measured, list[tuple[str, str]]()
    if (speed_up := number(measured, "speed_up")) is not None:
        cached, uncached = number(measured, "cached_seconds"), number(measured, "uncached_seconds")
        known = cached is not None and uncached is not None
        rows.append(("speed", f"{speed_up:.2f}× faster" + (f", {cached:.3g} s for {uncached:.3g} s" if known else "")))
    runs, seconds = number(measured, "uncached_runs"), number(measured, "calibration_seconds")
    parts = [
        *([f"{runs:.3g} uncached runs of one prompt"] if runs is not None else []),
        *([f"{seconds:.3g} s"] if seconds is not None else []),
    ]
    return [*rows, ("calibration", "cost " + ", ".join(parts))] if parts else rows


def _ssim(table: object, prompts: int) -> str:
    found = spread(table, "ssim", prompts, 4)
    return f", SSIM {found}" if found else ""
