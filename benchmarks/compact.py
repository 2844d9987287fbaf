"""Makes folders of finished runs small enough to commit: `python benchmarks/compact.py FOLDER...`

Figures keep six digits, a row leaves out the schedule that its method's first row has, and of the samples only those
stay that a report shows: of an ablation, the rows that the tables name. Done twice, it changes nothing.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ertacache.evaluation.report.samples import Sample, open_frames
from ertacache.evaluation.sample_files import save_clip_sample, write_image
from ertacache.files import write_atomic

#: Prompts whose pictures, or clips, stay.
PICTURES, CLIPS = 2, 1
DIGITS = 6
#: (site, basis, stage) of the ablation's rows that tables and reports show with a sample.
SHOWN = {
    (None, None, "no cache"),
    (None, None, "fewer steps"),
    ("output", "residual", "uniform"),
    ("output", "residual", "+ rectifier"),
    ("hidden", "residual", "+ rectifier"),
    ("guided", "fitted", "uniform"),
}


def compact(folder: Path) -> None:
    """Rewrite a folder in place; new files are there before old ones go."""
    results, compared = folder / "results.jsonl", (folder / "entrants.json").is_file()
    head, *rows = read_lines(results)
    rows = compact_comparison(head, rows) if compared else compact_ablation(rows)
    samples = {name: row for row in rows for name in (row["samples"] if "samples" in row else [row.get("sample")])}
    samples.pop(None, None)
    for name, row in samples.items():
        rewrite_sample(folder, name, len(row["frame_psnr"]) if "frame_psnr" in row else None)
    write_lines(results, [head, *rows])
    for path in (folder / "samples").glob("*"):
        if f"samples/{path.name}" not in samples:
            path.unlink()
    if compared:
        times = folder / "timings.jsonl"
        write_lines(times, [_filled(rounded(line)) for line in read_lines(times)])
        compact_l1(folder / "l1.json")


def compact_comparison(head: dict[str, Any], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a comparison, in their order."""
    samples, firsts = CLIPS if head["video"] else PICTURES, dict[str, dict[str, Any]]()
    made: list[dict[str, Any]] = []
    for row in map(rounded, rows):
        if row["prompt"] >= samples:
            row |= {"sample": None, "decomposition": None}
        first = firsts.setdefault(row["entrant"], row)
        # A row without a schedule has that of the first; what is null is as good as left out.
        if row is not first and row.get("step_cost") == first["step_cost"] and row.get("sigmas") == first.get("sigmas"):
            row |= {"step_cost": None, "sigmas": None}
        made.append(_filled(row))
    return made


def _filled(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if value is not None}


def compact_ablation(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of an ablation, in their order."""
    made: list[dict[str, Any]] = []
    for row in map(rounded, rows):
        shown = (row["site"], row["basis"], row["stage"]) in SHOWN
        names = [str(Path(name).with_suffix(".webp")) for name in row["samples"][:1]]
        made.append({**row, "samples": names if shown else []})
    return made


def rewrite_sample(folder: Path, name: str, frames: int | None) -> None:
    """A sample as a WebP without loss; what was a PNG is read in its stead where there is no WebP yet."""
    path = folder / name
    found = path if path.is_file() else path.with_suffix(".png")
    pictures = open_frames(Sample(found, str(found), frames, psnr=0.0))
    tensors = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).movedim(-1, 1) / 255
    if frames is None:
        write_image(tensors[0], path, lossless=True)
    else:
        save_clip_sample(tensors, path)


def compact_l1(path: Path) -> None:
    """TeaCache's calibration: the curves that a report draws. The polynomial stays as it is."""
    if path.is_file():
        found = json.loads(path.read_text())
        write_atomic(path, json.dumps({**found, "contexts": rounded(found["contexts"])}).encode())


def rounded(value: Any) -> Any:
    """Anything of JSON, with figures of six digits."""
    match value:
        case float():
            return float(f"{value:.{DIGITS}g}")
        case list():
            return [rounded(item) for item in value]
        case dict():
            return {key: rounded(item) for key, item in value.items()}
        case _:
            return value


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """JSON lines without blanks."""
    write_atomic(path, "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+")
    for folder in parser.parse_args().folders:
        compact(folder)
