"""Measuring plans on prompts that no calibration has seen, against the uncached run; one JSON line per plan."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ertacache.calibration.pipeline_run import Final, run_pipeline
from ertacache.calibration.prompts import Prompts
from ertacache.core.analysis import decompose
from ertacache.core.offload import Offload
from ertacache.core.schedule import Schedule
from ertacache.errors import CalibrationError
from ertacache.evaluation.row_figures import latent_error, mean_frame_psnr, rounded
from ertacache.evaluation.sample_files import save_samples
from ertacache.metrics import PairedMetrics, temporal_flicker
from ertacache.metrics.summary import PerSample
from ertacache.profile.profile import Profile
from ertacache.runtime.player import Player
from ertacache.runtime.run import Controller, Run
from ertacache.runtime.run_stats import RunStats
from ertacache.runtime.watch import Watch, now


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
    """Also takes the time from `set_timesteps` to the end of the last step, and keeps every latent: T + 1 of them."""

    seconds: float = 0.0
    trajectory: list[Tensor] = field(default_factory=list[Tensor])

    def begin(self, run: Run) -> None:
        super().begin(run)
        self.trajectory.clear()
        self._start = now()

    def solve(self, run: Run, output: Tensor, x: Tensor) -> Tensor:
        self.trajectory.append(x.to("cpu", torch.float32, copy=True))
        return super().solve(run, output, x)

    def end_step(self, run: Run, x_next: Tensor) -> None:
        super().end_step(run, x_next)
        if run.steps_done == run.T - 1:
            self.seconds = now() - self._start
            self.trajectory.append(self.latents)


@dataclass
class Measured:
    """What one plan gave on all prompts; `trajectory` [T + 1, N, *] and `outputs` [T, N, *] are the solver's."""

    images: Tensor
    latents: Tensor
    trajectory: Tensor
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
        pipe: any pipeline that a profile can be applied to.
        prompts: never used in a calibration.
        call: arguments of the pipeline call.
        group: name of this group in the report.
        out: folder for `results.jsonl` and the samples.
        batch_size: prompts per pipeline call.
        samples: how many prompts keep their pictures.
        offload_history: where the histories of profiles wait; see `runtime.apply`.
    """

    pipe: Any
    prompts: Prompts
    call: dict[str, Any]
    group: str
    out: Path
    batch_size: int | None = None
    samples: int = 6
    offload_history: Offload = None
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
            **_of_clips(measured.images, self._reference.images),
            "latent_error": latent_error(measured.latents, self._reference.latents),
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
            inner = (
                Player(trial.profile, stats, self.offload_history, keep_nan=True)
                if trial.profile is not None
                else Controller()
            )
            timed = Timed(inner, keep_outputs=True)
            with Watch(self.pipe) as watch:
                start = now()
                # A plan that diverged is compared as the black picture that a person would see.
                images = run_pipeline(self.pipe, batch, timed, call, hidden=hidden).nan_to_num(0.0)
                total = now() - start
            calls = sum(watch.executed.computed_calls)
            if trial.profile is not None and calls != stats.computed.total():
                raise CalibrationError(
                    f"{trial.label}: {calls} real denoiser calls were counted, {stats.computed.total()} due; "
                    "the plan does not do what it says"
                )
            counts = dict(stats.computed) if trial.profile is not None else {"all": calls}
            kept = (timed.latents, torch.stack(timed.trajectory), torch.stack(timed.outputs), timed.sigmas)
            parts.append(Measured(images, *kept, counts, timed.seconds, total, stats.extra_bytes))
        count = len(self.prompts.texts)
        return Measured(
            images=torch.cat([part.images for part in parts]),
            latents=torch.cat([part.latents for part in parts]),
            trajectory=torch.cat([part.trajectory for part in parts], 1),
            outputs=torch.cat([part.outputs for part in parts], 1),
            sigmas=parts[0].sigmas,
            calls=parts[0].calls,
            denoise_seconds=sum(part.denoise_seconds for part in parts) / count,
            image_seconds=sum(part.image_seconds for part in parts) / count,
            extra_bytes=max(part.extra_bytes for part in parts),
        )

    def _decomposition(self, trial: Trial, measured: Measured) -> dict[str, list[float]] | None:
        """Eq. 7-11, which compare outputs at equal sigmas: not for an adjusted grid or fewer steps.

        The deviation of the latent is measured, since only Euler's solver adds it up as Eq. 11 does.
        """
        reference = self._reference
        if reference is None or trial.profile is None or not torch.equal(measured.sigmas, reference.sigmas):
            return None
        if not measured.latents.isfinite().all():
            return None
        parts = decompose(measured.sigmas, measured.outputs, reference.outputs, trial.profile.schedule)
        apart = (measured.trajectory - reference.trajectory).double().flatten(1).square().mean(1).sqrt()
        return rounded(feature_shift=parts.feature_shift, amplified=parts.amplified, deviation=apart)


def _of_clips(images: Tensor, references: Tensor) -> dict[str, Any]:
    """What only clips [N, F, 3, H, W] have: the flicker of each, and the PSNR of each frame, a mean over the clips."""
    facts: dict[str, Any] = mean_frame_psnr(images, references)
    if images.ndim == 5 and images.shape[1] > 1:
        flicker = PerSample(("flicker",))
        flicker.merge({"flicker": temporal_flicker(images, references).tolist()})
        facts |= flicker.compute()
    return facts
