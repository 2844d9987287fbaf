"""Pictures of methods side by side, with cost and PSNR under each: Figures 3 and 4."""

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ertacache.evaluation.comparison.entrant import Entrant
from ertacache.evaluation.comparison.job import Job
from ertacache.evaluation.comparison.maker import NO_CACHE
from ertacache.evaluation.comparison.run import run_comparison
from ertacache.evaluation.report.comparison_file import Result, read_comparison
from ertacache.evaluation.report.embedded import is_pixel_art
from ertacache.evaluation.report.samples import Sample, open_frames
from ertacache.evaluation.reproduce.request import Ready, Request
from ertacache.profile.profile import Profile

#: Of the comparison, inside of the figure's.
_FOLDER = "comparison"
#: Inches: width of a picture, what its two lines of text take, and what a prompt takes.
_WIDTH, _CAPTION, _PROMPT = 1.6, 0.5, 0.2


def compare(
    ready: Ready, request: Request, entrants: Sequence[Entrant], titles: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run the entrants on the measured prompts; a comparison that was cut off goes on.

    Args:
        titles: by id, where the methods' own are not wanted.

    Returns:
        `prompts` that are shown, whether it is a `video`, the `methods`, each with `cost` and `psnr` of every
        measured prompt and a sample of each that is shown, and why others were `refused`.
    """
    job = Job(
        prompts=ready.prompts,
        calibration_prompts=ready.calibration_prompts,
        call=ready.call,
        model=ready.setting.model,
        seed=ready.seed,
        samples=request.samples,
        batch_size=ready.batch_size,
    )
    out = run_comparison(ready.pipe, entrants, job, request.out / _FOLDER)
    comparison = read_comparison(out)
    results = (comparison.reference, *comparison.results)
    named = {result.entrant.id: (titles or {}).get(result.entrant.id, result.entrant.title) for result in results}
    return {
        "measured": len(job.prompts),
        "prompts": list(job.prompts[: request.samples]),
        "video": comparison.header.video,
        "methods": [{"title": named[result.entrant.id], **_facts(result, out)} for result in results if result.rows],
        "refused": {
            named[result.entrant.id]: result.entrant.refusal for result in comparison.results if result.entrant.refusal
        },
    }


def _facts(result: Result, folder: Path) -> dict[str, Any]:
    plain = result.entrant.id == NO_CACHE.id
    own = result.entrant.settings.get("profile")
    profile = Profile.load(str(folder / own["file"])) if own else None
    return {
        "id": result.entrant.id,
        "cost": [row.cost for row in result.rows],
        "K": profile.schedule.K if profile else None,
        "strength": profile.provenance.method["strength"] if profile else None,
        "psnr": None if plain else [row.metrics["psnr"] for row in result.rows],
        "samples": [
            {"file": f"{_FOLDER}/{row.sample}", "frames": len(row.frame_psnr) if row.frame_psnr else None}
            for row in result.rows
            if row.sample
        ],
    }


def tell(document: dict[str, Any]) -> list[str]:
    """Cost and PSNR of each method, and which are missing."""
    lines = [f"{'':32} {'K':>3} {'cost':>6} {'PSNR (dB)':>14}  over {document['measured']} prompts"]
    for method in document["methods"]:
        values = method["psnr"]
        psnr = "" if values is None else f"{statistics.fmean(values):6.2f} ± {_std(values):4.2f}"
        steps = "" if method["K"] is None else method["K"]
        moved = f"  strength {method['strength']:g}" if method["strength"] else ""
        cost = statistics.fmean(method["cost"])
        lines.append(f"{method['title'][:32]:32} {steps:>3} {cost:6.3f} {psnr:>14}{moved}".rstrip())
    return [*lines, *(f"{title} is not shown: {why}" for title, why in document["refused"].items())]


def draw(document: dict[str, Any], folder: Path) -> Any:
    """A row of pictures, or of first over last frames, for each prompt that is shown.

    Args:
        document: as `compare` makes it.
        folder: in which the samples lie.

    Raises:
        InvalidArgument: a sample is missing or damaged.
    """
    from matplotlib.figure import Figure

    methods, prompts = document["methods"], document["prompts"]
    rows = 2 if document["video"] else 1
    width, height = open_frames(_sample(methods[0], 0, folder))[0].size
    tall = rows * _WIDTH * height / width + _CAPTION + _PROMPT
    figure: Any = Figure(figsize=(_WIDTH * len(methods) + 0.3, len(prompts) * tall + 0.3), layout="constrained")
    figure.suptitle(f"{document['model']}, {document['T']} steps", fontsize=9, x=0.01, ha="left", weight="bold")
    parts = figure.subfigures(len(prompts), 1, squeeze=False)[:, 0]
    for n, (part, prompt) in enumerate(zip(parts, prompts, strict=True)):
        shown = textwrap.shorten(prompt, 25 * len(methods), placeholder=" …").replace("$", r"\$")
        part.suptitle(shown, fontsize=8, x=0.01, ha="left")
        axes = part.subplots(rows, len(methods), squeeze=False)
        for column, method in enumerate(methods):
            frames = open_frames(_sample(method, n, folder))
            for row, frame in enumerate((frames[0], frames[-1])[:rows]):
                _picture(axes[row, column], frame)
            axes[-1, column].set_xlabel(_caption(method, n), fontsize=8)
        for row, name in enumerate(("first frame", "last frame")[:rows] if rows > 1 else ()):
            axes[row, 0].set_ylabel(name, fontsize=8)
    return figure


def _sample(method: dict[str, Any], n: int, folder: Path) -> Sample:
    """The n-th sample of a method."""
    sample = method["samples"][n]
    psnr = 0.0 if method["psnr"] is None else method["psnr"][n]
    return Sample(folder / sample["file"], f"sample {sample['file']} of {method['title']}", sample["frames"], psnr)


def _picture(axes: Any, frame: Any) -> None:
    axes.imshow(frame, interpolation="nearest" if is_pixel_art(frame) else "antialiased")
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)


def _caption(method: dict[str, Any], n: int) -> str:
    psnr = "" if method["psnr"] is None else f", {method['psnr'][n]:.1f} dB"
    name = textwrap.fill(method["title"], 24)
    return f"{name}\ncost {method['cost'][n]:.2f}{psnr}"


def _std(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
