"""Rows of an ablation in words, where their labels are made of internal names."""

import re

from ertacache.evaluation.report.ablation_rows import FEWER_STEPS, NO_CACHE, Row

_BASES = {
    "residual": "residual reuse",
    "reuse": "plain reuse",
    "fitted": "fitted",
    "extrapolation": "order-1 extrapolation",
    "order-1 extrapolation": "order-1 extrapolation",
}
_SITES = {"output": "", "hidden": " inside the blocks", "guided": ""}
_PLANS = {
    "uniform at the policy's K": "evenly spaced, as many as the λ policy",
    "uniform": "evenly spaced",
    "policy": "λ policy",
    "policy + timesteps": "λ policy + time grid",
    "policy + rectifier": "λ policy + rectifier",
    "policy + timesteps + rectifier": "λ policy + time grid + rectifier",
}
#: Stages, for the key of a plot.
STAGES = {"uniform": "evenly spaced", "policy": "λ policy", "+ timesteps": "+ time grid", "+ rectifier": "+ rectifier"}
_LABEL = re.compile(r"(?P<basis>[^,]+), (?P<site>\w+): (?P<plan>[^(]+?)(?: \((?P<fit>.*)\))?")
_FIT = re.compile(r"(?P<kind>own history|both branches), last (?P<levels>\d+), (?P<aim>\w+)")


def name_of(row: Row) -> str:
    """How the row predicts and on which schedule; its label where that says something else."""
    found = _LABEL.fullmatch(row.label)
    if not found or found["basis"] not in _BASES or found["site"] not in _SITES or found["plan"] not in _PLANS:
        return row.label
    return f"{_BASES[found['basis']]}{_SITES[found['site']]}, {_PLANS[found['plan']]}"


def note_of(row: Row) -> str:
    """What was tuned: history and aim of a fit, the threshold λ of the policy, the strength γ of the time grid."""
    label = _LABEL.fullmatch(row.label)
    fit = _FIT.fullmatch(label["fit"]) if label and label["fit"] else None
    notes: list[str] = []
    if fit:
        whose = "both branches'" if fit["kind"] == "both branches" else "its own"
        notes.append(f"from {whose} last {fit['levels']} outputs, aimed at the {fit['aim']}")
    tuned = (("λ", row.threshold), ("γ", row.strength))
    notes += [f"{letter} {value:.4g}" for letter, value in tuned if value]
    return ", ".join(notes)


def family_of(row: Row) -> str:
    """Rows of one family share a colour: how and where they predict."""
    if row.stage in (FEWER_STEPS, NO_CACHE):
        return row.stage
    known = row.basis in _BASES and row.site in _SITES
    if known:
        return f"{_BASES[row.basis or '']}{_SITES[row.site or '']}"
    return " · ".join(part for part in (row.basis, row.site) if part) or row.stage


def group_of(row: Row) -> str:
    """The name of a row's group."""
    return row.group.replace("_", " ").replace(" cfg ", " CFG ")
