"""Draws docs/images/compare.png, quality against speed-up, from the committed comparison on tiny-flux.

Run it after `make compare`: `python benchmarks/compare_picture.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ertacache.evaluation.report.comparison_file import ComparisonFile, Result, read_comparison
from ertacache.evaluation.report.comparison_rows import Entrant

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "benchmarks" / "results" / "compare" / "tiny-flux"
PICTURE = ROOT / "docs" / "images" / "compare.png"
INK, SOFT, GREY, OURS, BEST = "#1d2125", "#5b646d", "#c3c9ce", "#b8500c", "#1f5fa8"


@dataclass(frozen=True, slots=True)
class Named:
    """A method in colour. `at`: which of its points, the dearest first, has the label; `offset` is in points."""

    label: str
    colour: str
    at: int
    offset: tuple[int, int]
    align: str


def best_of(results: Sequence[Result], ending: str) -> Entrant:
    """The highest mean PSNR among methods whose title ends so."""
    return max((r for r in results if r.entrant.title.endswith(ending)), key=lambda result: result.psnr.mean).entrant


def named(comparison: ComparisonFile) -> dict[str, Named]:
    """Ours, the paper's, fewer steps, and the best cache of either library that people use."""
    dearest = max(comparison.sections, key=lambda section: section.target or 0)
    diffusers, cache_dit = (best_of(dearest.results, ending) for ending in ("(diffusers)", "(cache-dit)"))
    return {
        "fitted": Named("fitted (ours)", OURS, 0, (13, 6), "left"),
        "fewer-steps": Named("fewer steps", INK, 0, (12, 9), "left"),
        "ertacache": Named("ERTACache (paper)", SOFT, -1, (8, -24), "right"),
        diffusers.method: Named(diffusers.title, BEST, 0, (0, 15), "center"),
        cache_dit.method: Named(cache_dit.title, BEST, -1, (11, -5), "left"),
    }


def draw(comparison: ComparisonFile, path: Path) -> None:
    """One PNG, 800 pixels wide."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.6), dpi=100, layout="constrained")
    colours = named(comparison)
    results = [r for section in comparison.sections if section.target for r in section.results if r.speedup]
    rest = [result for result in results if result.entrant.method not in colours]
    axes.plot(*_points(rest), "o", color=GREY, markersize=6, zorder=1)
    for method, one in colours.items():
        own = sorted((r for r in results if r.entrant.method == method), key=lambda result: -result.psnr.mean)
        x, y = _points(own)
        errors = [result.psnr.standard_error for result in own]
        large = one.colour == OURS
        axes.errorbar(x, y, errors, fmt="o-", color=one.colour, markersize=7 + 2 * large, capsize=3, zorder=3)
        axes.annotate(
            one.label, (x[one.at], y[one.at]), one.offset, textcoords="offset points", ha=one.align, color=one.colour,
            fontsize=11.5, weight="bold" if large else "normal", zorder=4,
        )  # fmt: skip
    axes.set_xlabel("speed-up of the denoising loop (→ faster)", color=INK)
    axes.set_ylabel("PSNR against the uncached run, dB (↑ nearer)", color=INK)
    axes.set_title(_title(comparison, len(rest)), loc="left", fontsize=10, color=SOFT)
    axes.xaxis.set_major_formatter("{x:g}×")
    axes.set_xlim(1.0, 1.06 * max(result.speedup.median for result in results if result.speedup))
    axes.grid(color="#e6e9eb")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=SOFT)
    figure.savefig(path)
    pyplot.close(figure)


def _title(comparison: ComparisonFile, others: int) -> str:
    header = comparison.header
    costs = " and ".join(f"{cost:.0%}" for cost in header.costs)
    return (
        f"{header.model}, every method at {costs} of the operations; mean ± standard error, "
        f"{len(header.prompts)} prompts.\n"
        f"Grey: the {others} points of all other methods."
    )


def _points(results: Sequence[Result]) -> tuple[list[float], list[float]]:
    return [result.speedup.median for result in results if result.speedup], [result.psnr.mean for result in results]


if __name__ == "__main__":
    draw(read_comparison(FOLDER), PICTURE)
