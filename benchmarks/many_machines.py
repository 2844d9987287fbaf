"""What a calibration of published models takes on many GPUs: arithmetic on what prices.py knows, no measurement.

Run by hand: `python benchmarks/many_machines.py`. A stage is over when its last unit is, and the next one needs it. The
units are those that `calibrate(..., map=...)` spreads, one prompt a call, of the recommended plan at half of the steps;
together they are the work that `calibrate` announces. Rewrites benchmarks/results/many_machines.json and the tables in
docs/many-machines.md.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from prices import MODELS, Model, price

from ertacache.calibration.defaults import CHOOSE, HOLDOUT
from ertacache.calibration.effort import duration, loops_of_search, size_in_words
from ertacache.calibration.first_steps import share_of
from ertacache.calibration.prompts import split_prompts
from ertacache.calibration.proposals import Effort
from ertacache.calibration.recording import bytes_of
from ertacache.calibration.search import DIRECTIONS, LEVELS

ROOT = Path(__file__).parent.parent
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "many_machines.json", ROOT / "docs" / "many-machines.md"
NAMES = ("FLUX.1-dev, 1024×1024", "Wan2.1-1.3B, 480×832×81", "Wan2.1-14B, 720×1280×81")
#: Height, width and frames of their results, which lie in float32 beside the recordings.
PIXELS = {NAMES[0]: (1024, 1024, 1), NAMES[1]: (480, 832, 81), NAMES[2]: (720, 1280, 81)}
GPUS = (1, 2, 8, 16, 64)
PROMPTS = 24
EFFORTS: tuple[Effort, ...] = ("fast", "balanced")


@dataclass(frozen=True)
class Stage:
    """Units that need nothing of one another.

    Attributes:
        runs: of one unit, in uncached runs of one prompt.
        parts: into how many a unit would fall if a closed loop were spread over its prompts; 1 for others.
        moved: bytes that its units write to, or read from, what all machines share.
    """

    name: str
    units: int
    runs: float
    moved: int
    parts: int = 1

    def waited(self, gpus: int, *, split: bool = False) -> float:
        """Uncached runs after which the last unit is there."""
        units, runs = (self.units * self.parts, self.runs / self.parts) if split else (self.units, self.runs)
        return -(-units // gpus) * runs


def stages(model: Model, effort: Effort) -> list[Stage]:
    """Those of one calibration, in order."""
    choose = 0.0 if effort == "fast" else CHOOSE
    parts = split_prompts([f"prompt {n}" for n in range(PROMPTS)], choose, HOLDOUT, 0)
    fitted, chosen, judged = (len(part.texts) for part in parts)
    loops = loops_of_search(effort, directed=model.directed, target=False)
    x, output = (prod(model.latent) * size for size in (model.latent_bytes, model.output_bytes))
    recorded = bytes_of(model.steps, x, output, output * model.directed)
    latents, picture = bytes_of(model.steps, x, 0, 0), 12 * prod(PIXELS[model.name])
    share = (model.steps // 2) / model.steps
    return [
        Stage("first steps", 1, share_of(model.steps), 0),
        Stage("uncached runs", fitted + chosen + judged, 1.0, fitted * recorded + (chosen + judged) * picture),
        Stage("one early error", loops.single, 1.0, loops.single * latents),
        Stage("closed loops", loops.cheap, fitted * share, loops.cheap * fitted * latents, parts=fitted),
        Stage("plans, to choose", chosen * loops.measured, share, chosen * loops.measured * picture),
        *(Stage(f"{name}, to judge", judged, share, judged * picture) for name in ("the plan", "fewer steps", "reuse")),
    ]


def priced(model: Model, effort: Effort) -> dict[str, Any]:
    """What one calibration takes on each number of GPUs."""
    made = stages(model, effort)
    runs = sum(stage.units * stage.runs for stage in made)
    announced = price(model, effort, PROMPTS)["runs"]
    if abs(runs - announced) > 0.01:
        raise ValueError(f"{model.name}, {effort}: the stages are {runs:.2f} runs, and {announced} are announced")
    waits = {gpus: sum(stage.waited(gpus) for stage in made) for gpus in GPUS}
    split = {gpus: sum(stage.waited(gpus, split=True) for stage in made) for gpus in GPUS}
    features = LEVELS + DIRECTIONS * model.directed  # a float64 matrix of them and a vector
    longest = max(made, key=lambda stage: stage.waited(GPUS[-1]))
    return {
        "model": model.name, "effort": effort, "prompts": PROMPTS, "runs": round(runs, 2),
        "seconds": {gpus: round(wait * model.seconds, 1) for gpus, wait in waits.items()},
        "busy": {gpus: round(runs / (gpus * wait), 3) for gpus, wait in waits.items()},
        "seconds_if_loops_were_split": {gpus: round(wait * model.seconds, 1) for gpus, wait in split.items()},
        "longest": longest.name, "longest_share": round(longest.waited(GPUS[-1]) / waits[GPUS[-1]], 3),
        "moved": {stage.name: stage.moved for stage in made if stage.moved},
        "sums_of_a_step": 8 * features * (features + 1),
    }  # fmt: skip


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """Times and bytes as Markdown."""
    lines = [
        "| model, effort | " + " | ".join(f"{gpus} GPU{'s' * (gpus > 1)}" for gpus in GPUS) + " | waits for, on 64 |",
        "|---|" + "---:|" * len(GPUS) + "---|",
    ]
    for row in rows:
        cells = [f"{duration(row['seconds'][gpus])}, {row['busy'][gpus]:.0%}" for gpus in GPUS]
        waits = f"{row['longest']}, {row['longest_share']:.0%} of the time"
        lines.append(f"| {row['model']}, {row['effort']} | " + " | ".join(cells) + f" | {waits} |")
    names = list(dict.fromkeys(name for row in rows for name in row["moved"] if row["moved"][name]))
    shown = [name for name in names if not name.endswith("judge")]
    lines += ["", "| bytes moved | " + " | ".join(shown) + " | to judge |", "|---|" + "---:|" * (len(shown) + 1)]
    for row in rows:
        moved = row["moved"]
        cells = [size_in_words(moved[name]) if moved.get(name) else "none" for name in shown]
        judged = size_in_words(sum(count for name, count in moved.items() if name.endswith("judge")))
        lines.append(f"| {row['model']}, {row['effort']} | " + " | ".join([*cells, judged]) + " |")
    return "\n".join(lines)


def updated(page: str, rows: Sequence[dict[str, Any]]) -> str:
    """The page with its tables made anew."""
    begin, end = "<!-- many machines -->\n", "\n<!-- /many machines -->"
    before, rest = page.split(begin)
    return before + begin + tables(rows) + end + rest.split(end)[1]


def main() -> None:
    rows = [priced(model, effort) for model in MODELS if model.name in NAMES for effort in EFFORTS]
    RESULTS.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    PAGE.write_text(updated(PAGE.read_text(), rows))


if __name__ == "__main__":
    main()
