"""Draws docs/images/split-switch.png and .svg: quality and captions by the large model's share, as benchmarks/split.py
found them. `python benchmarks/split_plot.py` draws the committed result."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

from split_page import of_kind, steps_of

from ertacache.files import write_atomic
from ertacache.split.judged import grid_of

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "split.json"
PICTURE = ROOT / "docs" / "images" / "split-switch.png"
INK, SOFT, COLOUR, BEST = "#1d2125", "#5b646d", "#b8500c", "#1f5fa8"


def draw(result: dict[str, Any], path: Path) -> None:
    """PSNR on the left, captions on the right; as PNG, and as SVG beside it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from PIL import Image

    T = steps_of(result)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), dpi=100, layout="constrained")
    switches = [row for row in of_kind(result, "switch") if row["steps"] < T]
    chosen = {row["models"].count(0) for row in of_kind(result, "measured") if "models" in row}
    kinds = {
        "every switch": (switches, COLOUR, ".-"),
        "the paper's grid": ([row for row in switches if row["steps"] in grid_of(T)], INK, "s"),
        "measured": ([row for row in switches if row["steps"] in chosen], BEST, "D"),
        "fewer steps": (of_kind(result, "fewer"), SOFT, ".--"),
        "with a cache on both sides": (of_kind(result, "cached"), BEST, "^:"),
    }
    for name, (rows, colour, form) in kinds.items():
        if rows:
            ordered = sorted(rows, key=lambda row: row["share"])
            x = [row["share"] for row in ordered]
            left.plot(x, [row["psnr"] for row in ordered], form, color=colour, markersize=6, label=name)
            right.plot(x, [row["shape"] for row in ordered], form, color=colour, markersize=6)
    right.axhline(next(row["shape"] for row in of_kind(result, "switch") if row["steps"] == T), color=INK, lw=0.8)
    left.set_ylabel("PSNR to the large model, dB")
    right.set_ylabel("objects of captions right")
    left.legend(frameon=False, fontsize=9)
    for axes in (left, right):
        axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        axes.grid(color="#e6e9eb")
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("operations in the cloud, as a share of the large model's run", fontsize=11)
    drawn, vector = BytesIO(), BytesIO()
    figure.savefig(drawn)
    # Without what differs from one drawing to the next.
    with matplotlib.rc_context({"svg.hashsalt": "split", "svg.fonttype": "none"}):
        figure.savefig(vector, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    Image.open(drawn).convert("RGB").quantize(64).save(path, optimize=True)
    write_atomic(path.with_suffix(".svg"), vector.getvalue())


if __name__ == "__main__":
    draw(json.loads(RESULTS.read_text()), PICTURE)
