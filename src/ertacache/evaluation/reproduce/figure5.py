"""The paper's Figure 5: how many calibration prompts the method needs, at one schedule for all numbers of prompts."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ertacache.errors import InvalidArgument
from ertacache.evaluation.reproduce.entrants import computed_steps
from ertacache.evaluation.reproduce.kept import claim, kept
from ertacache.evaluation.reproduce.paper_figures import full_method, printed_figure
from ertacache.evaluation.reproduce.pictures import save_pictures
from ertacache.evaluation.reproduce.request import Ready, Request, prepare, write
from ertacache.evaluation.reproduce.settings import FIGURE5
from ertacache.extras import require
from ertacache.files import write_atomic
from ertacache.runtime.folder_lock import locked

SIZES = (2, 5, 10, 20, 50, 100, 200)
METRICS = ("psnr", "ssim", "clip_image")
#: Prompts that decide the schedule which all sizes share: the paper's smallest number.
_SCHEDULED = 20


@dataclass(frozen=True)
class Sweep:
    """One figure: the same call, prompts and schedule, calibrated on more and more prompts.

    Attributes:
        pipe: with one denoiser.
        call: arguments of the pipeline call.
        prompts, seed: measured; prompt n starts from the noise of seed + n.
        calibration_prompts: a size of n takes the first n. A quarter of them picks the strength of the timestep
            adjustment and is not fitted.
        out: folder; one result file for each size.
        threshold, steps: λ of the schedule, or the number of computed steps to come near.
        batch_size: prompts per pipeline call; None for all at once.
        timesteps: as in `ertacache.calibrate`.
    """

    pipe: Any
    call: Mapping[str, Any]
    prompts: tuple[str, ...]
    seed: int
    calibration_prompts: tuple[str, ...]
    out: Path
    threshold: float | None
    steps: int
    site: str = "output"
    batch_size: int | None = None
    timesteps: str = "auto"
    model: str = ""

    def sizes(self) -> list[int]:
        """Those of `SIZES` that there are prompts for.

        Raises:
            InvalidArgument: fewer than two calibration prompts.
        """
        if len(self.calibration_prompts) < SIZES[0]:
            raise InvalidArgument(f"{len(self.calibration_prompts)} calibration prompt(s) given; give at least 2")
        return [size for size in SIZES if size <= len(self.calibration_prompts)]

    def run(self, metrics: Sequence[str], show_progress: bool = True) -> dict[str, Any]:
        """Measure every size whose result file is not there yet; returns all of them.

        Raises:
            InvalidArgument: the folder holds another figure, is damaged or in use.
        """
        sizes = self.sizes()
        with locked(self.out):
            self._claim(metrics)
            schedule = self._schedule(show_progress)
            rows = [self._row(size, schedule, metrics, show_progress) for size in sizes]
        return {"sizes": sizes, "schedule": schedule, "K": schedule.count("#"), "T": len(schedule), "rows": rows}

    def _claim(self, metrics: Sequence[str]) -> None:
        """Refuse a folder that holds other results; otherwise write down whose they are."""
        own = {
            "model": self.model, "call": dict(self.call), "prompts": self.prompts, "seed": self.seed,
            "calibration_prompts": self.calibration_prompts, "threshold": self.threshold, "steps": self.steps,
            "site": self.site, "batch_size": self.batch_size, "timesteps": self.timesteps, "metrics": list(metrics),
        }  # fmt: skip
        claim(self.out, own)

    def _schedule(self, show_progress: bool) -> str:
        path = self.out / "schedule.txt"
        if not path.is_file():
            budget = {"compute_steps": self.steps} if self.threshold is None else {"threshold": self.threshold}
            prompts = self.calibration_prompts[:_SCHEDULED]
            found = self._calibrate(prompts, "schedule", show_progress, timesteps="none", rectifier="none", **budget)
            write(path, str(found.schedule))
        return path.read_text()

    def _calibrate(self, prompts: Sequence[str], name: str, show_progress: bool, **choices: Any) -> Any:
        from ertacache.calibration.calibrate import calibrate

        checkpoint = self.out / f"{name}.checkpoint"
        profile = calibrate(
            self.pipe, prompts, method="ertacache", site=self.site, batch_size=self.batch_size,  # pyright: ignore[reportArgumentType]
            checkpoint=checkpoint, show_progress=show_progress, **choices, **self.call,
        )  # fmt: skip
        shutil.rmtree(checkpoint, ignore_errors=True)
        return profile

    def _row(self, size: int, schedule: str, metrics: Sequence[str], show_progress: bool) -> dict[str, Any]:
        return kept(
            self.out / f"prompts-{size}.json", lambda: self._measured_row(size, schedule, metrics, show_progress)
        )

    def _measured_row(self, size: int, schedule: str, metrics: Sequence[str], show_progress: bool) -> dict[str, Any]:
        profile = self._calibrate(
            self.calibration_prompts[:size], f"prompts-{size}", show_progress, schedule=schedule,
            timesteps=self.timesteps,
        )  # fmt: skip
        profile.save(self.out / f"prompts-{size}.safetensors")
        return {"prompts": size, "strength": profile.provenance.method["strength"], **self._measure(profile, metrics)}

    def _measure(self, profile: Any, metrics: Sequence[str]) -> dict[str, Any]:
        """Mean, spread and values of each metric over the measured prompts."""
        from ertacache.calibration.pipeline_run import call_pipeline
        from ertacache.calibration.prompts import Prompts
        from ertacache.metrics import SampleMetrics
        from ertacache.runtime.apply import apply

        found, call = SampleMetrics(metrics), dict(self.call)
        for batch in Prompts(self.prompts, self.seed).batches(self.batch_size):
            reference = self._reference(batch, call)
            with apply(self.pipe, profile):
                images = call_pipeline(self.pipe, batch, call)
            for image, plain, prompt in zip(images, reference, batch.texts, strict=True):
                found.update(image, plain, prompt)
        return dict(found.compute())

    def _reference(self, batch: Any, call: dict[str, Any]) -> Tensor:
        """The uncached run of a batch, kept on the disk: every size is measured against it."""
        from safetensors.torch import load_file, save

        from ertacache.calibration.pipeline_run import call_pipeline

        path = self.out / "references" / f"{batch.seed}.safetensors"
        if not path.is_file():
            write_atomic(path, save({"images": call_pipeline(self.pipe, batch, call).contiguous()}))
        return load_file(path)["images"]


def run_figure(request: Request) -> dict[str, Any]:
    """Measure, draw and write figure5.json, figure5.png and figure5.svg.

    Raises:
        As `run.reproduce`.
    """
    from ertacache.evaluation.reproduce.figure5_plot import draw

    require("Figure 5", "matplotlib")
    ready = prepare(request)
    sweep = sweep_of(request, ready)
    names, missing = _metrics(ready.call)
    document = {
        "table": FIGURE5,
        "model": ready.setting.model,
        "prompts": len(sweep.prompts),
        "printed": printed_figure(FIGURE5),
        "missing_metrics": missing,
        **sweep.run(names),
    }
    write(request.out / "figure5.json", json.dumps(document, indent=1) + "\n")
    pictures = save_pictures(draw(document), request.out / FIGURE5)
    return {**document, "pictures": pictures, "text": "\n".join([text(document), "", *pictures])}


def sweep_of(request: Request, ready: Ready) -> Sweep:
    """The figure that a request asks for, at the schedule of the paper's full method."""
    setting = ready.setting
    model, T = setting.tables[FIGURE5], int(ready.call["num_inference_steps"])
    paper = full_method(model)
    return Sweep(
        pipe=ready.pipe,
        call=ready.call,
        prompts=ready.prompts,
        seed=ready.seed,
        calibration_prompts=ready.calibration_prompts,
        out=request.out,
        threshold=paper.threshold if ready.by == "threshold" else None,
        steps=computed_steps(paper, T),
        site=request.site,
        batch_size=ready.batch_size,
        model=setting.model,
    )


def text(document: dict[str, Any]) -> str:
    """The figure as lines for a terminal."""
    names = [name for name in METRICS if name in document["rows"][0]]
    lines = [
        f"Figure 5: {document['model']}, {document['K']} of {document['T']} steps computed, measured on "
        f"{document['prompts']} prompts",
        "",
        f"{'prompts':>8} {'strength':>9}" + "".join(f"{name:>20}" for name in names),
    ]
    for row in document["rows"]:
        cells = [f"{row[name]['mean']:.4f} ± {row[name]['std']:.4f}" for name in names]
        lines.append(f"{row['prompts']:8} {row['strength']:9g}" + "".join(f"{cell:>20}" for cell in cells))
    lines += ["", "mean ± standard deviation over the measured prompts", document["printed"]]
    return "\n".join([*lines, *(f"{name} is not measured: {why}" for name, why in document["missing_metrics"].items())])


def _metrics(call: Mapping[str, Any]) -> tuple[list[str], dict[str, str]]:
    """Of the figure's metrics, those that can be computed here, and why not the others."""
    from ertacache.metrics import available_metrics

    reasons = available_metrics(int(call["height"]), int(call["width"]), int(call.get("num_frames", 1)))
    missing = {name: reason for name in METRICS if (reason := reasons[name]) is not None}
    return [name for name in METRICS if name not in missing], missing
