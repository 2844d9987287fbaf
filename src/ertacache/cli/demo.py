"""The whole job on a bundled model, in a few minutes: calibrate, generate with and without, compare, report."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ertacache.cli import commands
from ertacache.errors import InvalidArgument
from ertacache.extras import require
from ertacache.pipelines import bundled
from ertacache.pipelines.loading import call_arguments, load_pipeline


@dataclass(frozen=True)
class Size:
    """How much the demo of a model does.

    Attributes:
        budget: steps to compute.
        calibration, prompts: how many to calibrate on and to measure.
        history: of the fitted predictor.
        kinds: files to write.
    """

    budget: int
    calibration: int = 24
    prompts: int = 16
    history: int | Literal["auto"] = "auto"
    kinds: tuple[str, ...] = ("png",)


def of_clips(budget: int) -> Size:
    """A clip takes many times as long as a picture."""
    return Size(budget, calibration=6, prompts=4, history=3, kinds=("mp4", "gif"))


_SIZES = {
    "tiny-flux": Size(15),
    "tiny-flux-base": Size(15),
    "tiny-wan": of_clips(23),
    "tiny-cogvideox": of_clips(31),
}


def run_demo(model: str, out: Path) -> dict[str, Any]:
    """Calibrate, generate and compare on a bundled model.

    Args:
        out: folder for `profile.safetensors`, `uncached` and `ertacache` as pictures or clips, and `report.html`.

    Returns:
        Paths, seconds and the text for people.

    Raises:
        InvalidArgument: no bundled model.
        MissingExtra: the zoo, or what the report or a clip needs, is not installed.
    """
    if model not in bundled.NAMES:
        raise InvalidArgument(f"no bundled model {model!r}; there are {', '.join(bundled.NAMES)}")
    size = _SIZES[model]
    require("the report of the demo", "jinja2")
    if "mp4" in size.kinds:
        require("the mp4 file of the demo", "imageio_ffmpeg")
    start = time.perf_counter()
    from ertacache.calibration.calibrate import calibrate
    from ertacache.evaluation.ablation_run import AblationRun

    pipe, call = load_pipeline(model), call_arguments(model, {})
    texts = bundled.calibration_prompts(size.calibration, model)
    held = bundled.heldout_prompts(size.prompts, model)
    options: dict[str, Any] = {"schedule": "uniform", "basis": "fitted", "history": size.history}
    out.mkdir(parents=True, exist_ok=True)
    profile = calibrate(pipe, texts, compute_steps=size.budget, **options, **call).save(out / "profile.safetensors")
    described = commands.inspect(str(profile), None)["text"]
    drawn = [
        commands.generate(model, held[0], used, out / f"{name}.{kind}", 0, {}, "cpu", "float32")["text"]
        for name, used in (("uncached", None), ("ertacache", str(profile)))
        for kind in size.kinds
    ]
    run = AblationRun(out, held, model=model)
    rows = run.add(pipe, texts, [size.budget], call, group=commands.group_name(model, call), full=False)
    report = run.report()
    seconds = time.perf_counter() - start
    lines = [described, *drawn, commands.table(rows), f"report: {report}", f"demo took {seconds:.0f} s"]
    return {"profile": str(profile), "report": str(report), "seconds": seconds, "text": "\n\n".join(lines)}
