"""Draws the reports of the committed results: `python benchmarks/reports.py [--out FOLDER]`.

Every report lies beside its result files, or under FOLDER in a folder of the same name, as the documentation's site
wants them.
"""

import argparse
from pathlib import Path

from ertacache.evaluation.report.ablation import write_report
from ertacache.evaluation.report.comparison import write_comparison_report

RESULTS = Path(__file__).parent / "results"


def draw(results: Path, out: Path) -> list[Path]:
    """One report.html for every folder of results."""
    pages: list[Path] = []
    for file in sorted(results.rglob("results.jsonl")):
        folder = file.parent
        if "parts" in folder.relative_to(results).parts:  # of a run under way
            continue
        page = out / folder.relative_to(results) / "report.html"
        compared = (folder / "entrants.json").is_file()
        pages.append(write_comparison_report(folder, page) if compared else write_report(file, page))
    return pages


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, help="the folder of the results")
    arguments = parser.parse_args()
    for page in draw(arguments.results, arguments.out or arguments.results):
        print(page)
