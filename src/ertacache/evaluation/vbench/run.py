"""Scores of generated videos by VBench, which runs in an environment of its own; videos pass as mp4 files."""

import hashlib
import json
import math
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from ertacache.errors import InvalidArgument, MissingExtra, VBenchFailed
from ertacache.evaluation.vbench.environment import VERSION, default_folder, python_of, ready, stream
from ertacache.evaluation.vbench.scores import MODES, VIDEOS_PER_PROMPT, total_score
from ertacache.files import json_object, write_atomic

_INDEXED = re.compile(rf".+-[0-{VIDEOS_PER_PROMPT - 1}]\.mp4", re.DOTALL)
_WORKER = Path(__file__).with_name("worker.py")


class Part(TypedDict):
    """One dimension: VBench's raw score, how many videos it is of, and how many more there should have been."""

    score: float
    videos: int
    missing: int


def run(
    videos: Path,
    out: Path,
    mode: str = "standard",
    dimensions: Sequence[str] | None = None,
    folder: Path | None = None,
    device: str = "cuda",
) -> dict[str, Any]:
    """Score a folder of mp4 files, one dimension at a time, and write `out`; an interrupted run goes on.

    Args:
        videos: folder of mp4 files and nothing else; for the standard mode named as `video_name` does.
        out: JSON file to write. Each finished dimension is kept in the folder `{out}.parts` beside it, with VBench's
            values for every video.
        mode: `standard` (VBench's prompts) or `custom` (any videos, six dimensions).
        dimensions: all of the mode by default.
        folder: of the environment; `default_folder()` by default.
        device: as torch names it.

    Returns:
        What `out` holds: `dimensions` (score, normalised, videos, missing of each), `quality`, `semantic`, `total`.

    Raises:
        InvalidArgument: an unknown mode or dimension, unfit videos, or kept results of other videos.
        MissingExtra: the environment has not been made.
        VBenchFailed: VBench failed or cannot run (no such device, no detectron2, no video of a dimension).
    """
    names = _checked_dimensions(mode, dimensions)
    key = _key(mode, _checked_videos(videos, mode))
    folder = (folder or default_folder()).absolute()
    if ready(folder) is None:
        where = "" if folder == default_folder().absolute() else f" --folder {folder}"
        raise MissingExtra(f"{folder} holds no finished VBench environment; run `ertacache vbench setup{where}` first")
    if out.is_dir():
        raise InvalidArgument(f"--out is {out}, which is a folder; name a JSON file")
    if out.absolute().parent == videos.absolute():
        raise InvalidArgument(f"--out is {out}, among the videos, where only mp4 files may be; name another folder")
    kept = out.with_name(f"{out.name}.parts")
    kept.mkdir(parents=True, exist_ok=True)
    parts = {name: part for name in names if (part := _kept(kept / f"{name}.json", key)) is not None}
    left = [name for name in names if name not in parts]
    command = [str(python_of(folder)), "-I", "-u", str(_WORKER), str(videos.absolute()), mode, device]
    if left:
        # Or hours pass before it turns out that a later dimension cannot run.
        stream([*command, "check", *left], "VBench's check before the run", "mend it, or choose other --dimensions")
    for name in left:
        sys.stderr.write(f"VBench: {name} ({names.index(name) + 1} of {len(names)})\n")
        found = _scored(command, name)
        write_atomic(kept / f"{name}.json", json.dumps({**found, "key": key}).encode())
        parts[name] = _part(found)
    totals = total_score({name: parts[name]["score"] for name in names})
    rows = {name: {**parts[name], "normalised": totals["normalised"][name]} for name in names}
    means = {name: totals[name] for name in ("quality", "semantic", "total")}
    result = {"vbench": VERSION, "mode": mode, "videos": str(videos), "dimensions": rows, **means}
    write_atomic(out, (json.dumps(result, indent=2) + "\n").encode())
    return result


def _checked_dimensions(mode: str, dimensions: Sequence[str] | None) -> list[str]:
    if mode not in MODES:
        raise InvalidArgument(f"mode is {mode!r}; choose one of {', '.join(MODES)}")
    names = list(dict.fromkeys(MODES[mode] if dimensions is None else dimensions))
    for name in names:
        if name not in MODES["standard"]:
            raise InvalidArgument(f"dimension {name!r} is unknown; choose from {', '.join(MODES[mode])}")
        if name not in MODES[mode]:
            raise InvalidArgument(
                f"dimension {name!r} needs VBench's own prompts (--mode standard); custom videos have "
                f"{', '.join(MODES[mode])}"
            )
    if not names:
        raise InvalidArgument(f"no dimensions were given; choose from {', '.join(MODES[mode])}")
    return names


def _checked_videos(videos: Path, mode: str) -> list[Path]:
    if not videos.is_dir():
        raise InvalidArgument(f"{videos} is no folder; give a folder of mp4 files")
    files = sorted(videos.iterdir())
    if not files:
        raise InvalidArgument(f"{videos} is empty; give a folder of mp4 files")
    for file in files:
        # VBench expects every video to have the ending of whichever entry the file system lists first.
        if file.suffix != ".mp4" or not file.is_file():
            raise InvalidArgument(
                f"{videos} holds {file.name!r}, which is no mp4 file; VBench needs a folder of nothing but mp4 files"
            )
        if mode == "standard" and not _INDEXED.fullmatch(file.name):
            raise InvalidArgument(
                f"{file.name!r} is no name of the standard protocol; name videos '{{prompt}}-0.mp4' to "
                f"'{{prompt}}-{VIDEOS_PER_PROMPT - 1}.mp4', or use --mode custom"
            )
    return files


def _key(mode: str, files: list[Path]) -> str:
    """Changes when a result that was kept would no longer be that of these videos."""
    listed = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps([VERSION, mode, listed]).encode()).hexdigest()


def _kept(path: Path, key: str) -> Part | None:
    if not path.is_file():
        return None
    try:
        found = json_object(path.read_bytes())
        part, same = _part(found), found["key"] == key
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidArgument(f"{path} is damaged ({error!r}); delete it to score that dimension again") from error
    if not same:
        raise InvalidArgument(
            f"{path} is of other videos or another mode; delete {path.parent} to score these, or give another --out"
        )
    return part


def _part(found: dict[str, Any]) -> Part:
    return {"score": float(found["score"]), "videos": int(found["videos"]), "missing": int(found["missing"])}


def _scored(command: list[str], name: str) -> dict[str, Any]:
    remedy = "the dimensions before it are kept: mend it and run the command again to go on"
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        stream([*command, "score", name, str(result)], f"VBench's {name}", remedy)
        found = json.loads(result.read_bytes())
    if not math.isfinite(found["score"]):
        raise VBenchFailed(f"VBench gives {name} the score {found['score']}; look for broken videos; {remedy}")
    return found
