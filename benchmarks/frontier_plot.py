"""Draws docs/images/frontier.png from benchmarks/results/frontier.json: `python benchmarks/frontier_plot.py`."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

from frontier_page import Budgets, best_others, by_model, mean_of, rows_of
from frontier_plan import OURS, OWN

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "frontier.json"
PICTURE = ROOT / "docs" / "images" / "frontier.png"
INK, SOFT, GREY, COLOUR, BEST = "#1d2125", "#5b646d", "#c3c9ce", "#b8500c", "#1f5fa8"
#: Method -> its line's colour; every other method is a grey point.
LINES = {"uniform": SOFT, "fewer-steps": INK}
COLUMNS = 2


def points(result: dict[str, Any], own: Budgets) -> dict[str, list[tuple[float, float, float]]]:
    """Cost, PSNR and its standard error of every method at every budget, by method; means over the splits."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for splits in own.values():
        rows = [row for setting in splits for row in rows_of(result, setting).values()]
        for method in dict.fromkeys(row["method"] for row in rows):
            mean = mean_of([row for row in rows if row["method"] == method])
            found.setdefault(method, []).append((mean["cost"], mean["psnr"], mean["standard_error"]))
    return {method: sorted(places) for method, places in found.items()}


def best(result: dict[str, Any], own: Budgets) -> list[tuple[float, float]]:
    """Cost and PSNR of the best other method at each budget."""
    led = [[setting for setting in splits if "gain" in setting] for splits in own.values()]
    means = [mean_of(best_others(result, splits)) for splits in led if splits]
    return sorted((mean["cost"], mean["psnr"]) for mean in means)


def panel(axes: Any, result: dict[str, Any], name: str, own: Budgets) -> None:
    """One model and guidance; our line on top of everything."""
    places = points(result, own)
    rest = [place for method, found in places.items() if method not in {*LINES, *OWN} for place in found]
    axes.plot([x for x, *_ in rest], [y for _, y, _ in rest], "o", color=GREY, markersize=4, zorder=1)
    for method, colour in LINES.items():
        if method in places:
            x, y, _ = zip(*places[method], strict=True)
            axes.plot(x, y, "o-", color=colour, markersize=4, linewidth=1.4, zorder=2)
    if others := best(result, own):
        axes.plot(*zip(*others, strict=True), "s--", color=BEST, markersize=5, linewidth=1.6, zorder=3)
    if OURS in places:
        x, y, error = zip(*places[OURS], strict=True)
        axes.errorbar(x, y, error, fmt="o-", color=COLOUR, markersize=7, linewidth=2.4, capsize=3, zorder=4)
    axes.set_title(name, loc="left", fontsize=15, color=INK)
    axes.set_xlim(0.15, 0.6)
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.grid(color="#e6e9eb")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=SOFT, labelsize=13)


def draw(result: dict[str, Any], path: Path) -> None:
    """Small multiples, one panel per model and guidance."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D
    from PIL import Image

    panels = by_model(result)
    rows = -(-(len(panels) + 1) // COLUMNS)
    figure, grid = pyplot.subplots(rows, COLUMNS, figsize=(8, 3.0 * rows), dpi=100, layout="constrained", squeeze=False)
    for axes, (name, own) in zip(grid.flat, panels.items(), strict=False):
        panel(axes, result, name, own)
    for axes in grid.flat[len(panels) :]:
        axes.axis("off")
    names = {"plan (ours)": (COLOUR, "o-"), "best other method at that cost": (BEST, "s--")}
    names |= {"fewer steps": (INK, "o-"), "uniform residual reuse": (SOFT, "o-"), "every other method": (GREY, "o")}
    handles = [
        Line2D([], [], color=colour, marker=form[0], linestyle=form[1:] or "none", label=name)
        for name, (colour, form) in names.items()
    ]
    last = grid.flat[len(panels)]
    last.legend(handles=handles, loc="upper left", frameon=False, fontsize=13, labelcolor=INK)
    figure.supxlabel("counted cost, as a share of the uncached run", color=INK, fontsize=15)
    figure.supylabel("PSNR against the uncached run, dB", color=INK, fontsize=15)
    drawn = BytesIO()
    figure.savefig(drawn)
    pyplot.close(figure)
    Image.open(drawn).convert("RGB").quantize(64).save(path, optimize=True)


def main() -> None:
    draw(json.loads(RESULTS.read_text()), PICTURE)


if __name__ == "__main__":
    main()
