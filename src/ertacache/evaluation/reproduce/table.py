"""The paper's figures beside the measured ones, with the difference: as JSON, as markdown and as aligned text."""

from collections.abc import Sequence
from typing import Any

from ertacache.evaluation.reproduce.measured import Folder, Measured
from ertacache.evaluation.reproduce.paper_figures import COLUMNS, NOTES, TITLES, PrintedRow, columns, printed_rows
from ertacache.evaluation.reproduce.settings import Setting

_NOTHING = "–"
_NO_MEMORY = "not measured on a CPU"


def build(table: str, setting: Setting, folder: Folder | None = None) -> dict[str, Any]:
    """One table as JSON values.

    Args:
        folder: what was measured; None for the printed figures alone.

    Returns:
        `rows` with the `paper`'s figures, those `here` and, for the weights that the paper measured, the
        `difference` (here − paper) by column; `notes` in the order of the rows' `marks`, from 1; `remarks`.
    """
    printed = printed_rows(table, setting.tables[table])
    names = columns(printed)
    used = [name for name in NOTES if any(name in row.notes for row in printed)]
    return {
        "table": table,
        "title": TITLES[table],
        "model": setting.model,
        "printed_model": setting.tables[table],
        "comparable": not setting.bundled,
        "columns": list(names),
        "rows": [_row(row, names, used, setting, folder) for row in printed],
        "notes": [NOTES[name] for name in used],
        "remarks": _remarks(names, setting, folder) + (_exceptions(printed, folder) if folder is not None else []),
        "run": _run(folder) if folder is not None else None,
    }


def markdown(document: dict[str, Any]) -> str:
    """The table as a page of markdown."""
    head, *rows = _cells(document)
    rules = [" --- ", " --- ", *(" ---: " for _ in head[2:])]
    lines = [f"# {_heading(document)}", ""]
    lines += ["| " + " | ".join(head) + " |", "|" + "|".join(rules) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", *(f"{number}. {note}" for number, note in enumerate(document["notes"], start=1))]
    return "\n".join([*lines, "", *(f"- {remark}" for remark in document["remarks"])]).rstrip() + "\n"


def text(document: dict[str, Any]) -> str:
    """The table for a terminal."""
    cells = _cells(document)
    widths = [max(len(row[place]) for row in cells) for place in range(len(cells[0]))]
    lines = [_heading(document), ""]
    for row in cells:
        names = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        figures = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join([*names, *figures]).rstrip())
    lines += ["", *(f"[{number}] {note}" for number, note in enumerate(document["notes"], start=1))]
    return "\n".join([*lines, "", *document["remarks"]]).rstrip()


def _row(
    row: PrintedRow, names: Sequence[str], used: Sequence[str], setting: Setting, folder: Folder | None
) -> dict[str, Any]:
    found = folder.entrants.get(row.id) if folder is not None else None
    here = {name: found.figures[name] for name in names if name in found.figures} if found else {}
    both = [name for name in here if name in row.figures] if not setting.bundled else []
    return {
        "id": row.id,
        "label": row.label,
        "marks": sorted(used.index(note) + 1 for note in row.notes),
        "paper": dict(row.figures),
        "here": here,
        "difference": {name: here[name] - row.figures[name] for name in both},
        **_facts(found, "memory" in names and folder is not None and not folder.on_gpu),
    }


def _facts(found: Measured | None, no_memory: bool) -> dict[str, Any]:
    return {
        "computed_steps": found.computed_steps if found else None,
        "cost": found.cost if found else None,
        "refusal": found.refusal if found else None,
        "memory": _NO_MEMORY if no_memory and found and found.figures else None,
    }


def _run(folder: Folder) -> dict[str, Any]:
    comparison = folder.comparison
    head = comparison.header
    return {
        "T": head.T,
        "prompts": len(head.prompts),
        "seed": head.seed,
        "seeds": head.seeds,
        "call": head.call,
        "machine": head.machine,
        "versions": head.versions,
        "missing_metrics": head.missing_metrics,
        "rows": comparison.rows_found,
        "expected_rows": comparison.rows_expected,
    }


def _remarks(names: Sequence[str], setting: Setting, folder: Folder | None) -> list[str]:
    if folder is None:
        return []
    comparison, remarks = folder.comparison, list(setting.remarks)
    head = comparison.header
    if setting.bundled:
        remarks.append(
            f"The paper's figures belong to published weights, not to {setting.model}. They are not comparable with "
            "those here, and no difference is given."
        )
    remarks.append(
        f"Measured on {len(head.prompts)} prompts with {head.seeds} seed(s) each, from seed {head.seed}, on "
        f"{head.machine}." + (f" Prompts: {setting.prompts}." if setting.prompts else "")
    )
    settings = [result.entrant.settings for result in comparison.results]
    if any(values.get("schedule") == "policy" and values.get("threshold") is None for values in settings):
        remarks.append(
            "Our schedules are those of the λ whose K is nearest to the share of steps that the printed speed-up "
            "implies, not of the printed λ."
        )
    remarks.append(
        "K: computed steps, of the methods that plan whole steps; cost: share of the uncached run's operations; both "
        "are means. Speed-up and latency: medians of whole pipeline calls on this machine; the paper's are an A800's."
    )
    if comparison.unfinished:
        found, expected = comparison.rows_found, comparison.rows_expected
        remarks.append(f"Unfinished: {found} of {expected} rows; run the same command again to go on.")
    if "vbench" in names:
        remarks.append("VBench is not measured by this command; see docs/reproduce.md.")
    for name in names:
        if reason := head.missing_metrics.get(COLUMNS[name].metric):
            remarks.append(f"{COLUMNS[name].title.split()[0]} is not measured: {reason}")
    return remarks


def _exceptions(printed: Sequence[PrintedRow], folder: Folder) -> list[str]:
    """Rows that did not run, that cost another share than asked for, or in which nothing was saved."""
    labels, remarks = {row.id: row.label for row in printed}, list[str]()
    for result in folder.comparison.results:
        entrant = result.entrant
        label = labels[entrant.id]
        if entrant.refusal is not None:
            remarks.append(f"{label} is not run: {entrant.refusal}.")
        elif result.rows and result.equal:
            remarks.append(f"{label} leaves every result as it is without cache: it saves nothing here.")
        elif result.rows and result.missed:
            remarks.append(
                f"{label} costs {result.cost.mean:.3f}, not the {entrant.target:.3f} that its speed-up implies: its "
                "setting gets no nearer here."
            )
    return remarks


def _heading(document: dict[str, Any]) -> str:
    same = document["model"] == document["printed_model"]
    beside = "" if same else f", beside the paper's rows for {document['printed_model']}"
    return f"{document['title']}: {document['model']}{beside}"


def _cells(document: dict[str, Any]) -> list[list[str]]:
    names, measured = document["columns"], document["run"] is not None
    rows = [["", "", "K", "cost", *(COLUMNS[name].title for name in names)]]
    for row in document["rows"]:
        label = row["label"] + "".join(f" [{mark}]" for mark in row["marks"])
        rows.append([label, "paper", "", "", *(_figure(name, row["paper"]) for name in names)])
        if not measured:
            continue
        if row["refusal"] is not None:
            rows.append(["", "not run", "", "", *(_NOTHING for _ in names)])
            continue
        here = [row["memory"] if name == "memory" and row["memory"] else _figure(name, row["here"]) for name in names]
        counted = [_number(row["computed_steps"], 1), _number(row["cost"], 3)]
        rows.append(["", "here", *counted, *here])
        rows.append(["", "difference", "", "", *(_figure(name, row["difference"], "+") for name in names)])
    return rows if measured else [[*row[:2], *row[4:]] for row in rows]


def _figure(name: str, figures: dict[str, float], sign: str = "") -> str:
    return _number(figures.get(name), COLUMNS[name].digits, sign)


def _number(value: float | None, digits: int, sign: str = "") -> str:
    return _NOTHING if value is None else f"{value:{sign}.{digits}f}"
