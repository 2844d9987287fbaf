"""The result file and its table, rewritten whenever something was measured: an interrupted run keeps what is there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_build import gib
from gpu_measure import Row

from ertacache.files import write_atomic

#: What is wanted of this package's rows; a share of `more_bytes` is of the bound that the row names.
GOALS = {"share_of_ideal": 0.98, "predicted_share": 0.01, "correction_share": 0.005}
_CAVEAT = (
    "Weights are random: times, memory and counted calls are real, and the pictures mean nothing. A method is compared "
    "by what it costs beside the calls that it makes, never by quality."
)
_TINY = (
    "Tiny models, which prove that this benchmark works and nothing else: beside a step of a few milliseconds nothing "
    "is cheap. No figure here says anything about a real model or a GPU."
)
_COLUMNS = (
    "model",
    "variant",
    "plan",
    "cost",
    "loop",
    "faster",
    "of ideal",
    "computed step",
    "predicted step",
    "memory",
)


class Report:
    """Rows and entries, on the disk after every change.

    Args:
        out: the JSON file; the table lies beside it as .md.
        say: prints a line.
    """

    def __init__(self, out: Path, header: dict[str, Any], say: Callable[[str], None]) -> None:
        self.out, self.header, self._say = out, header, say
        self.rows: list[Row] = []
        self.entries: list[dict[str, Any]] = []

    def row(self, row: Row) -> None:
        """Add a row, or put it in place of the one it repeats."""
        key = _key(row)
        for n, known in enumerate(self.rows):
            if _key(known) == key:
                self.rows[n] = row
                break
        else:
            self.rows.append(row)
        self._say(_line(cells(row)))
        self._write()

    def entry(self, model: str, variant: str, status: str, reason: str = "", **facts: Any) -> None:
        """Add what became of one entry: "measured", "in part", "skipped", "failed" or "not reached"."""
        self.entries.append({"model": model, "variant": variant, "status": status, "reason": reason, **facts})
        self._say(f"-- {_entry(self.entries[-1])}")
        self._write()

    def table(self) -> str:
        """Markdown."""
        header = self.header
        machine = ", ".join(f"{name} {value}" for name, value in header["machine"].items())
        lines = [f"{header['date']}, seed {header['seed']}, {header['minutes']:g} minutes: {machine}.", "", _CAVEAT]
        lines += [_TINY] if header["tiny"] else []
        lines += ["", _line(_COLUMNS), _line(["---"] * 3 + ["---:"] * (len(_COLUMNS) - 3))]
        models = list(dict.fromkeys(row["model"] for row in self.rows))
        rows = sorted(self.rows, key=lambda row: models.index(row["model"]))
        lines += [_line(cells(row)) for row in rows if row["plan"] != "calibration"]
        lines += [calibration(row) for row in rows if row["plan"] == "calibration"]
        lines += [f"- {_entry(entry)}" for entry in self.entries if entry["status"] != "measured" or entry["reason"]]
        return "\n".join(_spaced(lines)) + "\n"

    def _write(self) -> None:
        content = {"header": {**self.header, "note": _TINY if self.header["tiny"] else _CAVEAT, "goals": GOALS}}
        content |= {"rows": [_rounded(row) for row in self.rows], "entries": self.entries}
        write_atomic(self.out, (json.dumps(content, indent=1) + "\n").encode())
        write_atomic(self.out.with_suffix(".md"), self.table().encode())


def cells(row: Row) -> list[str]:
    """A row of the table."""
    reduced = f" ({row['layers']} layers)" if " of " in row["layers"] else ""
    names = [row["model"] + reduced, row["variant"], row["plan"]]
    if "reason" in row:
        return [*names, row["reason"], *[""] * 6]
    if row["plan"] == "calibration":
        return [*names, f"{row['uncached_runs']:g} runs", f"{row['seconds']:.3g} s", *[""] * 5]
    ratio, predicted = row.get("ratio"), row.get("predicted_seconds")
    return [
        *names,
        f"{row['cost']:.3f}",
        f"{row['seconds']:.3f} s",
        "" if ratio is None else f"{ratio:.2f}×",
        "" if ratio is None else f"{row['share_of_ideal']:.3f}",
        _step(row) if "step_seconds" in row else "",
        "" if predicted is None else f"{1000 * predicted:.3f} ms, {100 * row['predicted_share']:.2f} %",
        _memory(row),
    ]


def _step(row: Row) -> str:
    """A computed step, and by how much a correction makes it longer."""
    more = f", {100 * row['correction_share']:+.2f} %" if "correction_share" in row else ""
    return f"{1000 * row['step_seconds']:.2f} ms{more}"


def calibration(row: Row) -> str:
    """What a calibration took, and what one of the default plan would."""
    whole = row["derived"]
    return (
        f"- {row['model']}: a calibration on {row['prompts']} prompts at T = {row['T']} took {row['seconds']:.3g} s "
        f"({row['uncached_runs']:g} uncached runs of one prompt); the default plan on {whole['prompts']} prompts at "
        f"T = {whole['T']} is the work of {whole['uncached_runs']:g}, about {whole['seconds']:.3g} s of denoising."
    )


def _memory(row: Row) -> str:
    """The peak where there is nothing to compare it with; else what was reached beyond it, of what may be."""
    bound = f" of {_mib(row['bound_bytes'])}" if "bound_bytes" in row else ""
    if row.get("more_bytes") is not None:
        return f"+ {_mib(row['more_bytes'])}{bound}"
    if row["peak_bytes"] is not None:
        return gib(row["peak_bytes"])
    return f"held {_mib(row['held_bytes'])}{bound}" if bound else ""


def _mib(count: int) -> str:
    return f"{count / 2**20:.3g} MiB"


def _entry(entry: dict[str, Any]) -> str:
    reason = f": {entry['reason']}" if entry["reason"] else ""
    return f"{entry['model']}, {entry['variant']}: {entry['status']}{reason}"


def _key(row: Row) -> tuple[Any, ...]:
    return row["model"], row["variant"], row["plan"], row["K"]


def _line(parts: Any) -> str:
    return f"| {' | '.join(parts)} |"


def _spaced(lines: list[str]) -> list[str]:
    """An empty line between the table and the list after it."""
    starts = [n for n, line in enumerate(lines) if line.startswith("- ")]
    return [*lines[: starts[0]], "", *lines[starts[0] :]] if starts else lines


def _rounded(value: Any) -> Any:
    """Six significant digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return {name: _rounded(part) for name, part in value.items()} if isinstance(value, dict) else value
