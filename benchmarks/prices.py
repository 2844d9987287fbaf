"""What a calibration of published models takes: arithmetic on their latent sizes and stated times, no measurement.

Run by hand: `python benchmarks/prices.py`. The work is that which `calibrate` announces (`effort.work_of`), of the
recommended plan at half of the steps. Rewrites benchmarks/results/prices.json and the table in docs/large-models.md.
"""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ertacache.calibration.defaults import CHOOSE, HOLDOUT
from ertacache.calibration.effort import duration, loops_of_search, size_in_words, work_of
from ertacache.calibration.first_steps import FirstSteps
from ertacache.calibration.prompts import split_prompts
from ertacache.calibration.proposals import Effort
from ertacache.calibration.recording import bytes_of

ROOT = Path(__file__).parent.parent
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "prices.json", ROOT / "docs" / "large-models.md"
EFFORTS: tuple[Effort, ...] = ("fast", "balanced", "thorough")
PROMPTS = (24, 64)


@dataclass(frozen=True)
class Model:
    """A published model as it is run.

    Attributes:
        latent: shape of what the solver integrates, without the batch axis.
        latent_bytes, output_bytes: of an element of it, and of the denoiser's output.
        directed: whether a step has two branches of guidance.
        steps, seconds: of an uncached run of one prompt. source: who states the seconds, and on what.
    """

    name: str
    latent: tuple[int, ...]
    latent_bytes: int
    output_bytes: int
    directed: bool
    steps: int
    seconds: float
    source: str


#: FLUX packs 2 × 2 latents of 16 channels; WanPipeline integrates in float32; Open-Sora makes 15 latent frames of 51.
MODELS = (
    Model("FLUX.1-dev, 1024×1024", (4096, 64), 2, 2, False, 28, 14.26, "A800, MagCache's repository"),
    Model("Wan2.1-1.3B, 480×832×81", (16, 21, 60, 104), 4, 2, True, 50, 199, "A800, arXiv 2508.21091, Table 1"),
    Model("Wan2.1-14B, 720×1280×81", (16, 21, 90, 160), 4, 2, True, 50, 3300, "A800, TeaCache's repository (55 min)"),
    Model("CogVideoX-2b, 480×720×49", (13, 16, 60, 90), 2, 2, True, 50, 78.48, "A800, arXiv 2508.21091, Table 1"),
    Model("Open-Sora 1.2, 480×854×51", (4, 15, 60, 106), 2, 2, True, 30, 44.56, "A800, arXiv 2508.21091, Table 1"),
)


def price(model: Model, effort: Effort, prompts: int) -> dict[str, Any]:
    """The announced work of one calibration at half of the steps, one prompt a call."""
    x, output = (prod(model.latent) * size for size in (model.latent_bytes, model.output_bytes))
    seen = FirstSteps(
        steps=model.steps,
        outputs={"": model.latent},
        received=model.latent,
        directed=model.directed,
        recorded=bytes_of(model.steps, x, output, output * model.directed),
        seconds=model.seconds / model.steps,
    )
    choose = 0.0 if effort == "fast" else CHOOSE
    parts = split_prompts([f"prompt {n}" for n in range(prompts)], choose, HOLDOUT, 0)
    loops = [(loops_of_search(effort, directed=model.directed, target=False), model.steps // 2)]
    work = work_of(loops, parts, 1, seen)
    return {
        "model": model.name, "effort": effort, "prompts": prompts, "calls": work.calls, "runs": round(work.runs, 2),
        "seconds": round(work.seconds, 1), "bytes": work.bytes,
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown: runs of one prompt and time for each effort; a recording takes as much for every effort."""
    head = ["model", "prompts", *(f"{effort}: runs, time" for effort in EFFORTS), "on the disk", "stated, one run"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 2) + "---|"]
    for model in MODELS:
        for count in PROMPTS:
            own = [row for row in rows if (row["model"], row["prompts"]) == (model.name, count)]
            cells = [f"{row['runs']:.0f}, {duration(row['seconds'])}" for row in own]
            disk = size_in_words(max(row["bytes"] for row in own))
            stated = f"{model.seconds:g} s for {model.steps} steps, {model.source}"
            lines.append("| " + " | ".join([model.name, str(count), *cells, disk, stated]) + " |")
    return "\n".join(lines)


def updated(page: str, rows: list[dict[str, Any]]) -> str:
    """The page with its table made anew."""
    begin, end = "<!-- prices -->\n", "\n<!-- /prices -->"
    before, rest = page.split(begin)
    return before + begin + table(rows) + end + rest.split(end)[1]


def main() -> None:
    rows = [price(model, effort, count) for model in MODELS for count in PROMPTS for effort in EFFORTS]
    RESULTS.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    PAGE.write_text(updated(PAGE.read_text(), rows))


if __name__ == "__main__":
    main()
