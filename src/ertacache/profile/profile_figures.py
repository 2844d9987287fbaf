"""The figures of a profile that were measured on prompts, as cells: judged, chosen between, and of all its plans.

Every text is escaped for a terminal. Files from before there were judged prompts have no tables.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from ertacache.profile.content import Content
from ertacache.profile.foreign import at, number, printable
from ertacache.profile.provenance import Provenance

#: Candidates that are shown; a search may have tried hundreds.
_MOST = 12
_NONE = "–"


@dataclass(frozen=True)
class Table:
    """A title, the heads of columns, rows as long, the row to point out, and a remark below."""

    title: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    marked: int | None = None
    remark: str = ""


def tables(profile: Content) -> list[Table]:
    """What the prompts said of one plan: judged, and what it was chosen from."""
    return [*_judged(profile), *_candidates(profile.provenance), *_by_step(profile.provenance)]


def judged_plans(facts: Provenance) -> list[tuple[str, object]]:
    """(name, figures) of the plan and of what the same cost buys otherwise, the plan first; none in older files, and
    where the prompts were too few to keep some for judging."""
    held = facts.heldout
    if not _figure(held, "psnr", "p10", 1) or number(facts.method, "prompts", "judged") == 0:
        return []
    steps = number(held, "fewer_steps", "steps")
    shorter = "fewer steps" if steps is None else f"{steps:g} solver steps"
    named = [("this plan", held), (shorter, held.get("fewer_steps")), ("residual reuse", held.get("reuse"))]
    if at(held, "teacher", "precision") is not None:  # what counts is how near each is to the full-precision run
        named = [(name, at(part, "teacher")) for name, part in named]
        named.insert(1, ("quantised, every step computed", at(held, "teacher", "uncached")))
    return [(name, part) for name, part in named if spread(part, "psnr", 1)]


def prompts_of(facts: Provenance) -> int:
    """The number of prompts that the figures are of."""
    given = number(facts.heldout, "prompts")
    return facts.holdout_count if given is None else int(given)


def spread(table: object, name: str, prompts: int, digits: int = 1) -> str:
    """Mean ± standard error; empty where there is no mean. Older files hold the deviation of one prompt instead."""
    mean, error = _figure(table, name, "mean", digits), number(table, name, "standard_error")
    deviation = number(table, name, "std")
    if error is None and deviation is not None and prompts > 1:
        error = deviation / math.sqrt(prompts)
    return mean + (f" ± {error:.{digits}f}" if mean and error is not None and prompts > 1 else "")


def gain(facts: Provenance) -> str:
    """The gain over fewer steps in dB, with its standard error; empty where it was not measured."""
    mean, error = number(facts.heldout, "gain", "mean"), number(facts.heldout, "gain", "standard_error")
    if mean is None:
        return ""
    return f"{mean:+.1f}" + (f" ± {error:.1f}" if error is not None and prompts_of(facts) > 1 else "")


def confidence(facts: Provenance) -> float | None:
    """That the plan beats fewer steps; None where it is not known."""
    found = number(facts.heldout, "confidence")
    return found if found is not None and 0 <= found <= 1 else None


def percent(share: float) -> str:
    """A confidence in words: no finite number of prompts makes it certain."""
    if not 0.001 <= share <= 0.999:
        return "over 99.9%" if share > 0.5 else "under 0.1%"
    return f"{100 * share:.1f}%"


def plans(profile: Content) -> list[Table]:
    """A line for each of several plans in one file, where they were judged."""
    grids = [own.provenance for own in (profile, *profile.others)]
    if len(grids) == 1 or not any(map(judged_plans, grids)):
        return []
    rows: list[tuple[str, ...]] = []
    for own in (profile, *profile.others):
        facts = own.provenance
        weights = [weight for weight in (*facts.guidance_weights, facts.embedded_guidance) if weight is not None]
        steps = f"{own.schedule.K} of {own.schedule.T}"
        guidance = ", ".join(f"{weight:g}" for weight in weights) or _NONE
        rows.append((size_of(facts) or _NONE, guidance, steps, *_plan(facts)))
        for scale, part in _between(facts):
            rows.append((size_of(facts) or _NONE, f"{scale:g}, between", steps, *_plan(part)))
    head = ("size", "guidance", "steps", "PSNR, dB", "10%", "worst", "gain, dB", "confidence")
    return [Table(f"{len(grids)} plans in this file", head, rows)]


def _plan(facts: Provenance) -> tuple[str, ...]:
    sure = confidence(facts)
    return (
        *_cells(facts.heldout, prompts_of(facts)), gain(facts) or _NONE, _NONE if sure is None else percent(sure)
    )  # fmt: skip


def _between(facts: Provenance) -> list[tuple[float, Provenance]]:
    """(guidance scale, facts with its figures) of what was measured between the scale of a plan and the next."""
    found = facts.heldout.get("between")
    given = cast("list[object]", found) if isinstance(found, list) else []
    return [
        (scale, replace(facts, heldout=cast("dict[str, Any]", part)))
        for part in given[:_MOST]
        if isinstance(part, dict) and (scale := number(cast("object", part), "scale")) is not None
    ]


def size_of(facts: Provenance) -> str:
    """Height × width and, of a clip, frames, where the calibration was told; else empty."""
    found = [number(facts.call, name) for name in ("height", "width", "num_frames")]
    if found[0] is None or found[1] is None:
        return ""
    return "×".join(f"{size:g}" for size in found if size is not None)


def _judged(profile: Content) -> list[Table]:
    facts = profile.provenance
    prompts, plan = prompts_of(facts), f"{round(profile.counted_steps, 2):g} of {profile.schedule.T} steps"
    rows = [
        (name, *_cells(part, prompts), spread(part, "ssim", prompts, 3) or _NONE) for name, part in judged_plans(facts)
    ]
    if not rows:
        return []
    title = f"judged on {prompts} prompt{'s' * (prompts != 1)}, at the cost of {plan}"
    remark = "± standard error of the mean; a tenth of the prompts lies below the value at 10%"
    return [Table(title, ("", "PSNR, dB", "10%", "worst", "SSIM"), rows, remark=remark)]


def _cells(part: object, prompts: int) -> tuple[str, str, str]:
    """PSNR with its standard error, its 10th percentile and the worst prompt."""
    p10, worst = (_figure(part, "psnr", name, 1) or _NONE for name in ("p10", "worst"))
    return spread(part, "psnr", prompts) or _NONE, p10, worst


def _candidates(facts: Provenance) -> list[Table]:
    """What the plan was chosen from, in the order of the file; the chosen one is always among those shown."""
    found = at(facts.heldout, "chosen_on", "candidates")
    given = cast("list[object]", found) if isinstance(found, list) else []
    prompts = int(number(facts.heldout, "chosen_on", "prompts") or 0)
    chosen = next((n for n, one in enumerate(given) if at(one, "chosen") is True), None)
    shown = list(range(min(len(given), _MOST)))
    if chosen is not None and chosen not in shown:
        shown.append(chosen)
    rows: list[tuple[str, ...]] = []
    for n in shown:
        steps, name = number(given[n], "K"), at(given[n], "name")
        own = given[n] if at(given[n], "teacher") is None else at(given[n], "teacher")  # what they were compared by
        error = _figure(own, None, "latent_log10_error", 2, "diverged")
        rows.append(
            (
                (_NONE if name is None else printable(name)) + " (chosen)" * (n == chosen),
                _NONE if steps is None else f"{steps:g}",
                (spread(own, "psnr", prompts) if error != "diverged" else "") or _NONE,
                error or _NONE,
            )
        )
    if not rows:
        return []
    other = "other " if judged_plans(facts) else ""
    title = f"chosen between {len(given)} plans on {prompts} {other}prompt{'s' * (prompts != 1)}"
    left_out = f"; {len(rows)} of {len(given)} are shown" if len(rows) < len(given) else ""
    remark = f"the best of several looks better than it is: these figures flatter the chosen plan{left_out}"
    marked = None if chosen is None else shown.index(chosen)
    return [Table(title, ("plan", "steps", "PSNR, dB", "log10 error"), rows, marked, remark)]


def _by_step(facts: Provenance) -> list[Table]:
    """How far the latents are from those of the full-precision run, after some of the steps, the last among them."""
    found = [at(facts.heldout, "by_step", name) for name in ("quantised", "profile")]
    columns = [cast("list[object]", part) for part in found if isinstance(part, list)]
    T = min(map(len, columns), default=0)
    if not T:
        return []
    shown = sorted({round((n + 1) * T / min(T, _MOST)) - 1 for n in range(min(T, _MOST))})
    cells = [[number({"error": column[i]}, "error") for column in columns] for i in shown]
    rows = [
        (str(i), *(_NONE if error is None else f"{10 * error:.1f}" for error in row))
        for i, row in zip(shown, cells, strict=True)
    ]
    head = ("step", "quantised, dB", "with the profile, dB")[: 1 + len(columns)]
    prompts = number(facts.heldout, "by_step", "prompts") or 0
    remark = f"squared deviation over that of the latent, mean of {prompts:g} fitted prompt{'s' * (prompts != 1)}"
    return [Table("off the full-precision run after a step", head, rows, remark=remark)]


def _figure(table: object, name: str | None, key: str, digits: int, unbounded: str = "∞") -> str:
    """A number in words; None, where it is set down, is one without bound."""
    part = table if name is None else at(table, name)
    if isinstance(part, Mapping) and key in part and part[key] is None:
        return unbounded
    value = number(cast("object", part), key)
    return "" if value is None else f"{value:.{digits}f}"
