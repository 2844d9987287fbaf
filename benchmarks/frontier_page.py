"""The tables of docs/frontier.md and of the README, from the result of benchmarks/frontier.py.

`python benchmarks/readme_table.py` puts them on their pages.
"""

from typing import Any

from frontier_plan import OURS, OWN

PICTURE = "![Quality against counted cost on every bundled model and guidance](images/frontier.png)"


def setting_name(setting: dict[str, Any]) -> str:
    """Model and guidance, for people."""
    return f"{setting['model']}, guidance {setting['guidance']:g}"


def by_model(result: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Settings by model and guidance, from the highest cost to the lowest."""
    found: dict[str, list[dict[str, Any]]] = {}
    for setting in result["settings"]:
        found.setdefault(setting_name(setting), []).append(setting)
    return {name: sorted(own, key=lambda setting: setting["budget"]) for name, own in found.items()}


def rows_of(result: dict[str, Any], setting: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Figures of a setting by method."""
    columns = result["header"]["columns"]
    return {row[0]: dict(zip(columns, row, strict=True)) for row in setting["rows"]}


def goals_table(result: dict[str, Any]) -> str:
    """Our plan beside the best other method, and how far it is ahead of it and of the even plan."""
    heads = ["", "K of T", "plan, dB", "tenth / worst", "SSIM", "best other, dB", "tenth / worst", "SSIM"]
    heads += ["plan minus best other", "goal", "plan minus even plan", "prompts"]
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * 4 + "---|" + "---:|" * 3 + "---|---:|---:|"]
    for name, own in by_model(result).items():
        for setting in (setting for setting in own if "gain" in setting):
            gain, rows = setting["gain"], rows_of(result, setting)
            plan, other = rows[OURS], rows[gain["over"]]
            goal = f"+{gain['goal']:g}: {'met' if gain['met'] else 'not met'}" if "goal" in gain else "–"
            even = _difference(setting["over_even"]) if "over_even" in setting else "–"
            best = f"{_quality(other)}, {result['titles'][gain['over']]} | {_lowest(other)}"
            cells = [name, f"{setting['K']} of {setting['T']}", f"**{_quality(plan)}**", _lowest(plan), best]
            lines.append(f"| {' | '.join([*cells, _difference(gain), goal, even, str(setting['prompts'])])} |")
    return "\n".join(lines)


def methods_table(result: dict[str, Any], own: list[dict[str, Any]]) -> str:
    """Every method of one model and guidance: methods down, budgets across."""
    heads = [f"K = {setting['K']}, dB | cost" for setting in own]
    lines = [f"| | {' | '.join(heads)} |", "|---|" + "---:|" * 2 * len(own)]
    tables = [rows_of(result, setting) for setting in own]
    for method in dict.fromkeys(method for table in tables for method in table):
        cells = [f"{_quality(t[method])} | {t[method]['cost']:.3f}" if method in t else "– | –" for t in tables]
        title = result["titles"][method]
        lines.append(f"| {f'**{title}**' if method in OWN else title} | {' | '.join(cells)} |")
    refused = {result["titles"][method]: reason for setting in own for method, reason in setting["refused"].items()}
    notes = [f"- {title}: {reason}" for title, reason in refused.items()]
    return "\n".join([*lines, *(["", "Not run:", "", *notes] if notes else [])])


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
        f"{head['calibration']} calibration and {head['judged']} judged prompts in a split; two splits where the table "
        f"has {2 * head['judged']} prompts. {head['machine']}; torch {head['versions']['torch']}, diffusers "
        f"{head['versions']['diffusers']}."
    )
    if head["not_measured"]:
        text += f"\n\nNot measured here: {', '.join(head['not_measured'])}."
        text += " Most have a row at T/2 in [Results](results.md)."
    sections = [f"### {name}\n\n{methods_table(result, own)}" for name, own in by_model(result).items()]
    return "\n\n".join([text, PICTURE, goals_table(result), *sections])


def readme_part(result: dict[str, Any]) -> str:
    """The README's one table: our plan, the best other method and fewer steps in every setting with a goal."""
    counts = sorted({setting["prompts"] for setting in result["settings"]})
    prompts = " or ".join(map(str, counts))
    text = (
        "PSNR in dB against the uncached run of the **plan** / the best other method measured / fewer steps, and\n"
        "the plan's lead ± its standard error, at a half, a third and a fifth of the uncached run's cost, which is\n"
        f"counted inside the denoiser. Means over {prompts} prompts that no calibration has seen."
    )
    budgets = sorted({setting["budget"] for setting in result["settings"] if "goal" in setting.get("gain", {})})
    lines = [f"| | {' | '.join(f'T/{budget}' for budget in budgets)} |", "|---|" + "---:|" * len(budgets)]
    for name, own in by_model(result).items():
        settings = {setting["budget"]: setting for setting in own if "gain" in setting}
        cells = [_readme_cell(result, settings[budget]) if budget in settings else "–" for budget in budgets]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([text, "", *lines])


def _readme_cell(result: dict[str, Any], setting: dict[str, Any]) -> str:
    rows, gain = rows_of(result, setting), setting["gain"]
    fewer = f"{rows['fewer-steps']['psnr']:.1f}" if "fewer-steps" in rows else "–"
    figures = f"**{rows[OURS]['psnr']:.1f}** / {rows[gain['over']]['psnr']:.1f} / {fewer}"
    return f"{figures} ({_difference(gain)})"
