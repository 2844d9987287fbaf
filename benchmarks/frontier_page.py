"""The tables of docs/frontier.md and of the README, from the result of benchmarks/frontier.py.

`python benchmarks/readme_table.py` puts them on their pages.
"""

import math
import statistics
from typing import Any

from frontier_plan import OURS, OWN

PICTURE = "![Quality against counted cost on every bundled model and guidance](images/frontier.png)"
#: Figures that the mean of several splits has.
_AVERAGED = {"cost", "psnr", "p10", "ssim", "mean"}
#: Of one model and guidance: budget -> its settings, one for each split.
Budgets = dict[int, list[dict[str, Any]]]


def by_model(result: dict[str, Any]) -> dict[str, Budgets]:
    """Settings by model and guidance, for people, and then by budget, from the highest cost to the lowest."""
    found: dict[str, Budgets] = {}
    for setting in sorted(result["settings"], key=lambda setting: (setting["budget"], setting["split"])):
        own = found.setdefault(_name(setting), {})
        own.setdefault(setting["budget"], []).append(setting)
    return {name: found[name] for name in dict.fromkeys(map(_name, result["settings"]))}


def _name(setting: dict[str, Any]) -> str:
    return f"{setting['model']}, guidance {setting['guidance']:g}"


def rows_of(result: dict[str, Any], setting: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Figures of a setting by method."""
    columns = result["header"]["columns"]
    return {row[0]: dict(zip(columns, row, strict=True)) for row in setting["rows"]}


def mean_of(figures: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of several splits, of rows or of leads; "worst" is the worst of all.

    Two splits have no prompt in common, and each has a calibration of its own: their errors are independent.
    """
    found = {name: statistics.fmean(one[name] for one in figures) for name in figures[0] if name in _AVERAGED}
    found["standard_error"] = math.hypot(*(one["standard_error"] for one in figures)) / len(figures)
    return found | ({"worst": min(one["worst"] for one in figures)} if "worst" in figures[0] else {})


def ours(result: dict[str, Any], splits: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Our plan's row in every split."""
    return [rows_of(result, setting)[OURS] for setting in splits]


def best_others(result: dict[str, Any], splits: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The row of the best other method in every split; it need not be the same one."""
    return [rows_of(result, setting)[setting["gain"]["over"]] for setting in splits]


def goals_table(result: dict[str, Any]) -> str:
    """Our plan beside the best other method, and how far it is ahead of it and of the even plan."""
    heads = ["", "K of T", "plan, dB", "tenth / worst", "SSIM", "best other, dB", "tenth / worst", "SSIM"]
    heads += ["plan minus best other", "by split", "goal", "plan minus even plan", "prompts"]
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * 4 + "---|" + "---:|" * 3 + "---|---|---:|---:|"]
    for name, own in by_model(result).items():
        for splits in own.values():
            if led := [setting for setting in splits if "gain" in setting]:
                lines.append(_goals_line(result, name, led))
    return "\n".join(lines)


def _goals_line(result: dict[str, Any], name: str, splits: list[dict[str, Any]]) -> str:
    """A line of it, of splits that have a lead."""
    first, gains = splits[0], [setting["gain"] for setting in splits]
    plan, other, gain = mean_of(ours(result, splits)), mean_of(best_others(result, splits)), mean_of(gains)
    names = " / ".join(dict.fromkeys(result["titles"][one["over"]] for one in gains))
    even = [setting["over_even"] for setting in splits if "over_even" in setting]
    goal = gains[0].get("goal")
    cells = [
        name, f"{first['K']} of {first['T']}", f"**{_quality(plan)}**", _lowest(plan),
        f"{_quality(other)}, {names}", _lowest(other), _difference(gain), " / ".join(map(_difference, gains)),
        "–" if goal is None else f"+{goal:g}: {'met' if gain['mean'] >= goal else 'not met'}",
        _difference(mean_of(even)) if even else "–", str(len(splits) * result["header"]["judged"]),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def methods_table(result: dict[str, Any], own: Budgets) -> str:
    """Every method of one model and guidance: methods down, budgets across."""
    firsts = [splits[0] for splits in own.values()]
    heads = [f"K = {setting['K']}, dB | cost" for setting in firsts]
    lines = [f"| | {' | '.join(heads)} |", "|---|" + "---:|" * 2 * len(own)]
    tables = [[rows_of(result, setting) for setting in splits] for splits in own.values()]
    for method in dict.fromkeys(method for splits in tables for table in splits for method in table):
        title = result["titles"][method]
        cells = [_method_cell([table.get(method) for table in splits]) for splits in tables]
        lines.append(f"| {f'**{title}**' if method in OWN else title} | {' | '.join(cells)} |")
    refused = {
        result["titles"][m]: why for splits in own.values() for one in splits for m, why in one["refused"].items()
    }
    notes = [f"- {title}: {reason}" for title, reason in refused.items()]
    return "\n".join([*lines, *(["", "Not run:", "", *notes] if notes else [])])


def _method_cell(splits: list[dict[str, Any] | None]) -> str:
    """PSNR in every split, and the mean cost; a dash where it was not measured."""
    known = [row for row in splits if row is not None]
    quality = " / ".join("–" if row is None else _quality(row) for row in splits)
    return f"{quality} | {mean_of(known)['cost']:.3f}" if known else "– | –"


def _quality(row: dict[str, Any]) -> str:
    return f"{row['psnr']:.1f} ± {row['standard_error']:.1f}"


def _lowest(row: dict[str, Any]) -> str:
    return f"{row['p10']:.1f} / {row['worst']:.1f} | {row['ssim']:.3f}"


def _difference(gain: dict[str, Any]) -> str:
    return f"{gain['mean']:+.1f} ± {gain['standard_error']:.1f}"


def part(result: dict[str, Any]) -> str:
    """All that is written between the markers."""
    head = result["header"]
    text = (
        f"{head['calibration']} calibration and {head['judged']} judged prompts in a split; two splits where a table "
        f"has {2 * head['judged']} prompts or two figures with / between them, the first split's first. "
        f"{head['machine']}; torch {head['versions']['torch']}, diffusers {head['versions']['diffusers']}."
    )
    if head["not_measured"]:
        text += f"\n\nNot measured here: {', '.join(head['not_measured'])}."
        text += " Most have a row at T/2 in [Results](results.md)."
    sections = [f"### {name}\n\n{methods_table(result, own)}" for name, own in by_model(result).items()]
    return "\n\n".join([text, PICTURE, goals_table(result), *sections])


def readme_part(result: dict[str, Any]) -> str:
    """The README's one table: our plan, the best other method and fewer steps in every setting with a goal."""
    aimed = {**result, "settings": [one for one in result["settings"] if "goal" in one.get("gain", {})]}
    shown = by_model(aimed)
    counts = sorted({len(splits) * result["header"]["judged"] for own in shown.values() for splits in own.values()})
    text = (
        "PSNR in dB against the uncached run of the **plan** / the best other method measured / fewer steps, and\n"
        "the plan's lead ± its standard error, at a half, a third and a fifth of the uncached run's cost, which is\n"
        f"counted inside the denoiser. Means over {' or '.join(map(str, counts))} prompts that no calibration has seen."
    )
    budgets = sorted({budget for own in shown.values() for budget in own})
    lines = [f"| | {' | '.join(f'T/{budget}' for budget in budgets)} |", "|---|" + "---:|" * len(budgets)]
    for name, own in shown.items():
        cells = [_readme_cell(result, own[budget]) if budget in own else "–" for budget in budgets]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([text, "", *lines])


def _readme_cell(result: dict[str, Any], splits: list[dict[str, Any]]) -> str:
    plan, best = mean_of(ours(result, splits))["psnr"], mean_of(best_others(result, splits))["psnr"]
    fewer = [table["fewer-steps"] for setting in splits if "fewer-steps" in (table := rows_of(result, setting))]
    least = f"{mean_of(fewer)['psnr']:.1f}" if fewer else "–"
    gain = mean_of([setting["gain"] for setting in splits])
    return f"**{plan:.1f}** / {best:.1f} / {least} ({_difference(gain)})"
