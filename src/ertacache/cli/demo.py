"""`ertacache demo`: the whole job on a bundled model, in a few minutes."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ertacache.cli.ablation import group_name, table
from ertacache.cli.command import shows_progress
from ertacache.cli.generate import Drawing
from ertacache.cli.options import Placement
from ertacache.extras import require


@dataclass(frozen=True)
class Size:
    """How much the demo of a model does.

    Attributes:
        budget: steps to compute.
        calibration, prompts: how many to calibrate on and to measure.
        kinds: files to write.
    """

    budget: int
    calibration: int = 24
    prompts: int = 16
    kinds: tuple[str, ...] = ("png",)


def of_clips(budget: int) -> Size:
    """A clip takes many times as long as a picture."""
    return Size(budget, calibration=6, prompts=4, kinds=("mp4", "gif"))


_SIZES = {
    "tiny-flux": Size(15),
    "tiny-flux-base": Size(15),
    "tiny-wan": of_clips(23),
    "tiny-cogvideox": of_clips(31),
    "tiny-open-sora": of_clips(19),
    "nano-flux": Size(15),
}


_CPU = Placement("cpu", "float32", "none")


def demo(
    model: Annotated[str, typer.Argument(help="Bundled model.")] = "tiny-flux",
    out: Annotated[Path, typer.Option(help="Folder for profile, pictures or clips, and report.")] = Path("out/demo"),
) -> dict[str, Any]:
    """Calibrate, generate and compare on a bundled model: the whole job in a few minutes."""
    from ertacache.cli.model import check
    from ertacache.pipelines import bundled
    from ertacache.runtime.folder_lock import check_results

    bundled.check_name(model)
    require("the report of the demo", "jinja2")
    if "mp4" in _SIZES[model].kinds:
        require("the mp4 file of the demo", "imageio_ffmpeg")
    check(model, _CPU)
    check_results(out)
    return run_demo(model, out)


def run_demo(model: str, out: Path) -> dict[str, Any]:
    """Calibrate, generate and compare on a bundled model.

    Args:
        out: folder for `profile.safetensors`, `uncached` and `ertacache` as pictures or clips, and `report.html`.

    Returns:
        Paths, seconds and the text for people.
    """
    start = time.perf_counter()
    from ertacache.calibration.calibrate import calibrate
    from ertacache.cli.inspect import inspect
    from ertacache.cli.model import load
    from ertacache.evaluation.ablation_run import AblationRun
    from ertacache.pipelines import bundled
    from ertacache.pipelines.loading import call_arguments

    size, progress = _SIZES[model], shows_progress()
    pipe, call = load(model, _CPU), call_arguments(model, {})
    texts = bundled.calibration_prompts(size.calibration, model)
    held = bundled.heldout_prompts(size.prompts, model)
    profile = calibrate(pipe, texts, compute_steps=size.budget, effort="fast", show_progress=progress, **call)
    path = profile.save(out / "profile.safetensors")
    drawn = [
        Drawing(model, used, out=out / f"{name}.{kind}").draw(held[:1], {}, _CPU)[0]["text"]
        for name, used in (("uncached", None), ("ertacache", str(path)))
        for kind in size.kinds
    ]
    run, group = AblationRun(out, held, model=model), group_name(model, call)
    rows = run.add(pipe, texts, [size.budget], call, group=group, full=False, show_progress=progress)
    report = run.report()
    seconds = time.perf_counter() - start
    lines = [inspect(str(path))["text"], *drawn, table(rows), f"report: {report}", f"demo took {seconds:.0f} s"]
    return {"profile": str(path), "report": str(report), "seconds": seconds, "text": "\n\n".join(lines)}
