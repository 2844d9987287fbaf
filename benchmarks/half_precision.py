"""What half-precision weights changed: `python benchmarks/half_precision.py BEFORE AFTER`, two folders of `compare`.

The bundled weights were stored in float32 when the results in this folder were measured, and are float16 since. BEFORE
is a committed folder of a comparison, AFTER the same command run again on the re-stored weights. Rewrites
benchmarks/results/half_precision.json: every method's mean before and after, and the largest change.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from ertacache.evaluation.report.comparison_file import ComparisonFile, read_comparison
from ertacache.evaluation.report.comparison_rows import NO_CACHE
from ertacache.files import write_atomic

RESULTS = Path(__file__).parent / "results" / "half_precision.json"


def means(folder: Path) -> dict[str, dict[str, float]]:
    """Mean PSNR (dB), SSIM and cost (share of the uncached run) of every method at every cost."""
    found: ComparisonFile = read_comparison(folder)
    results = {result.entrant.id: result for section in found.sections for result in section.results if result.rows}
    return {
        name: {
            "psnr": round(result.psnr.mean, 4),
            "ssim": round(result.metric("ssim").mean, 6),
            "cost": round(result.cost.mean, 5),
        }
        for name, result in results.items()
        if name != NO_CACHE
    }


def changes(before: Path, after: Path) -> dict[str, Any]:
    old, new = means(before), means(after)
    if old.keys() != new.keys():
        raise SystemExit(f"only one folder has {sorted(old.keys() ^ new.keys())}; run the same comparison twice")
    largest = {key: max(abs(new[name][key] - old[name][key]) for name in new) for key in ("psnr", "ssim", "cost")}
    return {
        "model": before.name,
        "largest_change": {key: round(value, 6) for key, value in largest.items()},
        "methods": {name: {"before": old[name], "after": new[name]} for name in sorted(new)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    found = changes(arguments.before, arguments.after)
    write_atomic(arguments.out, (json.dumps(found, indent=1) + "\n").encode())
    print(f"{found['model']}: {len(found['methods'])} rows, largest change {found['largest_change']}")


if __name__ == "__main__":
    main()
