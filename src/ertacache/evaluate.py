"""Measuring plans on prompts that no calibration has seen, against the uncached run; one JSON line per plan."""

import json
import platform
import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ertacache.calibrator import deviation
from ertacache.core.analysis import decompose
from ertacache.core.schedule import Schedule
from ertacache.errors import CalibrationError, InvalidArgument
from ertacache.hooks import Controller, Run
from ertacache.metrics import PairedMetrics
from ertacache.models import denoiser_of, family_of, unwrapped
from ertacache.profile import Profile
from ertacache.recording import Final, Prompts, run_pipeline
from ertacache.runtime import Player, RunStats
from ertacache.watch import now


@dataclass(frozen=True)
class Trial:
    """One plan to measure.

    Attributes:
        label: for people.
        stage: no cache, fewer steps, uniform, policy, + timesteps or + rectifier.
        budget: the number of steps that was asked for.
        profile: None for the uncached pipeline.
        steps: number of solver steps, where that is the plan.
    """

    label: str
    stage: str
    budget: int | None = None
    profile: Profile | None = None
    steps: int | None = None


@dataclass
class Timed(Final):
    """Also takes the time from `set_timesteps` to the end of the last step."""

    seconds: float = 0.0

    def begin(self, run: Run) -> None:
        super().begin(run)
        self._start = now()

    def end_step(self, run: Run, x_next: Tensor) -> None:
        super().end_step(run, x_next)
        if run.steps_done == run.T - 1:
            self.seconds = now() - self._start


@dataclass
class Measured:
    """What one plan gave on all prompts."""

    images: Tensor
    latents: Tensor
    outputs: Tensor
    sigmas: Tensor
    calls: dict[str, int]
    denoise_seconds: float
    image_seconds: float
    extra_bytes: int


@dataclass
class Evaluation:
    """One group of trials: a pipeline, its call and the prompts; the uncached run is made once.

    Args:
        pipe: any pipeline with one denoiser.
        prompts: never used in a calibration.
        call: arguments of the pipeline call.
        group: name of this group in the report.
        out: folder for `results.jsonl` and the samples.
        batch_size: prompts per pipeline call.
        samples: how many prompts keep their pictures.
    """

    pipe: Any
    prompts: Prompts
    call: dict[str, Any]
    group: str
    out: Path
    batch_size: int | None = None
    samples: int = 6
    _reference: Measured | None = field(default=None, init=False)

    def row(self, trial: Trial) -> dict[str, Any]:
        """Measure one trial and return its row; the first call measures the uncached run as well."""
        if self._reference is None:
            self._reference = self._measure(Trial("no cache", "no cache"))
        plain = trial.profile is None and trial.steps is None
        measured = self._reference if plain else self._measure(trial)
        metrics = PairedMetrics()
        metrics.update(measured.images, self._reference.images)
        facts = self._facts(trial)
        slug = re.sub(r"[^a-z0-9]+", "-", f"{self.group} {facts['id']}".lower()).strip("-")
        return {
            **facts,
            "group": self.group,
            "calls": measured.calls,
            **metrics.compute(),
            "latent_error": max(deviation(measured.latents, self._reference.latents), -99.0),
            "denoise_seconds": measured.denoise_seconds,
            "image_seconds": measured.image_seconds,
            "extra_bytes": measured.extra_bytes,
            "sigmas": [round(float(sigma), 6) for sigma in measured.sigmas],
            "decomposition": self._decomposition(trial, measured),
            "samples": save_samples(measured.images[: self.samples], self.out, slug),
        }

    def _facts(self, trial: Trial) -> dict[str, Any]:
        profile = trial.profile
        T = trial.steps or (
            profile.schedule.T if profile else len(self._reference.sigmas) - 1 if self._reference else 0
        )
        method: dict[str, Any] = profile.provenance.method if profile else {}
        parts = [str(trial.budget), method.get("site"), method.get("basis"), trial.label]
        return {
            "id": "/".join(part for part in parts if part),
            "label": trial.label,
            "site": method.get("site"),
            "basis": method.get("basis"),
            "stage": trial.stage,
            "K": profile.schedule.K if profile else T,
            "T": T,
            "budget": trial.budget,
            "schedule": str(profile.schedule if profile else Schedule.all_computed(T)),
            "threshold": method.get("threshold"),
            "strength": method.get("strength"),
        }

    def _measure(self, trial: Trial) -> Measured:
        call = self.call if trial.steps is None else {**self.call, "num_inference_steps": trial.steps}
        hidden = trial.profile is not None and trial.profile.site == "hidden"
        parts: list[Measured] = []
        for batch in self.prompts.batches(self.batch_size):
            stats = RunStats()
            inner = Player(trial.profile, stats) if trial.profile is not None else Controller()
            timed = Timed(inner, keep_outputs=True)
            with count_calls(self.pipe) as counter:
                start = now()
                images = run_pipeline(self.pipe, batch, timed, call, hidden=hidden)
                total = now() - start
            if trial.profile is not None and counter.calls != stats.computed.total():
                raise CalibrationError(
                    f"{trial.label}: {counter.calls} real denoiser calls were counted, {stats.computed.total()} due; "
                    "the plan does not do what it says"
                )
            calls = dict(stats.computed) if trial.profile is not None else {"all": counter.calls}
            outputs = torch.stack(timed.outputs)
            parts.append(
                Measured(images, timed.latents, outputs, timed.sigmas, calls, timed.seconds, total, stats.extra_bytes)
            )
        count = len(self.prompts.texts)
        return Measured(
            images=torch.cat([part.images for part in parts]),
            latents=torch.cat([part.latents for part in parts]),
            outputs=torch.cat([part.outputs for part in parts], 1),
            sigmas=parts[0].sigmas,
            calls=parts[0].calls,
            denoise_seconds=sum(part.denoise_seconds for part in parts) / count,
            image_seconds=sum(part.image_seconds for part in parts) / count,
            extra_bytes=max(part.extra_bytes for part in parts),
        )

    def _decomposition(self, trial: Trial, measured: Measured) -> dict[str, list[float]] | None:
        """Eq. 7-11, which compare outputs at equal sigmas: not for an adjusted grid or fewer steps."""
        reference = self._reference
        if reference is None or trial.profile is None or not torch.equal(measured.sigmas, reference.sigmas):
            return None
        parts = decompose(measured.sigmas, measured.outputs, reference.outputs, trial.profile.schedule)
        tables = {"feature_shift": parts.feature_shift, "amplified": parts.amplified, "deviation": parts.deviation}
        return {name: [round(float(value), 6) for value in table] for name, table in tables.items()}


@dataclass
class CallCounter:
    """Number of times the denoiser really computed."""

    calls: int = 0


@contextmanager
def count_calls(pipe: Any) -> Generator[CallCounter]:
    """Count from inside the denoiser, in a part of its first block, below everything that a cache could answer."""
    denoiser = unwrapped(denoiser_of(pipe))
    lists = family_of(denoiser).block_lists
    part: nn.Module = next(getattr(denoiser, lists[0])[0].children()) if lists else next(denoiser.children())
    counter = CallCounter()

    def add(module: nn.Module, args: Any) -> None:
        counter.calls += 1

    handle = part.register_forward_pre_hook(add)
    try:
        yield counter
    finally:
        handle.remove()


def header(model: str, prompts: Prompts, call: dict[str, Any], steps: int) -> dict[str, Any]:
    """First line of a result file."""
    import diffusers

    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__, "python": platform.python_version()}
    return {
        "kind": "header",
        "model": model,
        "prompts": list(prompts.texts),
        "seed": prompts.seed,
        "versions": versions,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {_device_name()}",
        "call": call,
        "T": steps,
    }


def write_rows(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Write a whole result file, all or nothing."""
    from ertacache.profile_file import write_atomic

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(json.dumps(line) + "\n" for line in lines).encode())


def save_samples(images: Tensor, out: Path, slug: str) -> list[str]:
    """PNG files of images [N, 3, H, W] in [0, 1] under `out`/samples; returns their paths relative to `out`."""
    names = [f"samples/{slug}-{n}.png" for n in range(len(images))]
    for name, image in zip(names, images, strict=True):
        write_image(image, out / name)
    return names


def write_image(image: Tensor, path: Path, *, lossless: bool = False) -> None:
    """One image [3, H, W] in [0, 1] as a file of the kind that its name says; a WebP without loss, if asked for.

    Raises:
        InvalidArgument: an unknown kind of file.
    """
    from PIL import Image

    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        Image.fromarray(pixels).save(path, optimize=True, lossless=lossless)
    except ValueError as error:
        raise InvalidArgument(f"cannot write a picture to {path} ({error}); name a .png file") from error


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
