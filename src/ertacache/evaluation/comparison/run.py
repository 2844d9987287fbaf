"""The comparison itself: every entrant is tuned, then all run side by side, prompt by prompt. It may be cut off."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ertacache.baselines.baseline import Baseline, Bench, Knob
from ertacache.calibration.pipeline_run import check_call
from ertacache.calibration.progress import run_progress
from ertacache.calibration.prompts import Prompts
from ertacache.errors import InvalidArgument
from ertacache.evaluation.comparison.entrant import Entrant, Tuned
from ertacache.evaluation.comparison.folder import Folder
from ertacache.evaluation.comparison.job import Job, header
from ertacache.evaluation.comparison.measure import Prices, measure, row, save_sample
from ertacache.evaluation.comparison.reference import Measurement, kept_reference
from ertacache.evaluation.comparison.tune import tune
from ertacache.metrics import SampleMetrics, available_metrics
from ertacache.pipelines.solvers import is_euler
from ertacache.runtime.folder_lock import locked

#: Pipeline calls that tuning one entrant takes, for the estimate of the time that is left.
_TUNING_RUNS = 20


@dataclass(frozen=True)
class NoCache(Baseline):
    """The pipeline as it is."""

    key: ClassVar[str] = "no-cache"
    title: ClassVar[str] = "no cache"
    paper: ClassVar[str] = "none"
    work: ClassVar[str] = "everything"
    knob: ClassVar[Knob] = Knob("", 0, 0)

    def applied(self, pipe: Any, call: Any) -> AbstractContextManager[Any]:
        return nullcontext()


NO_CACHE = Entrant("no-cache", NoCache())


@dataclass
class Comparison:
    """One comparison under way."""

    pipe: Any
    job: Job
    folder: Folder
    metrics: SampleMetrics
    prices: Prices
    bench: Bench
    progress: Callable[[str], None]

    def tune(self, entrant: Entrant) -> Tuned:
        """The entrant at its cost, from the folder if it is there."""
        known = self.folder.tuned(entrant)
        if known is None:
            plain = Tuned(entrant, entrant.method)
            known = plain if entrant is NO_CACHE else tune(entrant, self.bench, self.prices, self.progress)
            for name, note in self.bench.notes.items():
                self.folder.note(name, note)
            self.folder.keep(known)
        self.progress(f"tuned {entrant.id}")
        return known

    def run(self, entrants: Sequence[Tuned]) -> None:
        """Every row that is not there yet, in order."""
        running = [tuned for tuned in entrants if tuned.refusal is None]
        position = 0
        for seed in range(self.job.seeds):
            for number in range(len(self.job.prompts)):
                for tuned in running:
                    if not self.folder.has(position, tuned.id, number, seed):
                        self._row(tuned, number, seed)
                    position += 1
                    self.progress(f"prompt {number + 1}, {tuned.id}")

    def _row(self, tuned: Tuned, number: int, seed: int) -> None:
        prompt, sampled = self.job.prompt(number, seed), seed == 0 and number < self.job.samples
        decomposed = sampled and is_euler(self.pipe.scheduler)
        reference = kept_reference(
            self.folder.reference(number, seed), lambda: self._measure(None, prompt, keep_outputs=decomposed)
        )
        plain = tuned.entrant is NO_CACHE
        measured = reference if plain else self._measure(tuned.method, prompt, keep_outputs=decomposed)
        line = row(
            tuned.id,
            number,
            seed,
            measured,
            reference,
            step_cost=[1.0] * self.job.T if plain else self.prices.of(tuned, prompt, measured.executed),
            metrics=self.metrics.measure(measured.images[0], reference.images[0], prompt.texts[0]),
            sample=save_sample(measured.images, self.folder.path, tuned.id, number, seed) if sampled else None,
        )
        times = {
            "entrant": tuned.id,
            "prompt": number,
            "seed": seed,
            "seconds": measured.executed.seconds,
            "image_seconds": measured.image_seconds,
            "peak_bytes": measured.peak_bytes,
        }
        self.folder.add(line, times)

    def _measure(self, method: Baseline | None, prompt: Prompts, *, keep_outputs: bool) -> Measurement:
        return measure(self.pipe, method, prompt, self.job.call, keep_outputs=keep_outputs)


def run_comparison(
    pipe: Any,
    entrants: Sequence[Entrant],
    job: Job,
    out: Path,
    *,
    metrics: Sequence[str] | None = None,
    show_progress: bool = True,
) -> Path:
    """Compare methods on one pipeline; the same call goes on where it was cut off.

    Args:
        pipe: any diffusers pipeline with one denoiser.
        entrants: with different ids; the uncached pipeline is always the first and need not be named.
        out: folder for everything; see docs/compare.md.
        metrics: names as in `ertacache.metrics.METRICS`; None for all that can be computed here.

    Returns:
        `out`.

    Raises:
        InvalidArgument: the folder is damaged, in use, or holds another comparison, a name that is no metric, or a
            call that the pipeline does not take.
        CalibrationError: a method that cannot be calibrated on this pipeline.
    """
    check_call(pipe, job.call)
    entrants = [NO_CACHE, *entrants]
    if len({entrant.id for entrant in entrants}) < len(entrants):
        raise InvalidArgument("two entrants have one id; compare every method once at each cost")
    rows = len(entrants) * len(job.prompts) * job.seeds
    expected = rows + _TUNING_RUNS * len(entrants)
    with locked(out), run_progress(show_progress, "compare", expected=expected) as progress:
        # Also warms everything up: what runs first in a process is slow for reasons that are not its own.
        first = measure(pipe, None, Prompts(job.calibration_prompts[:1], 0), job.call)
        chosen, missing = _metrics(pipe, first, metrics)
        head = header(job, chosen.names, missing, first.images, first.executed.sigmas)
        folder = Folder(out, head)
        bench = Bench(pipe, job.call, Prompts(job.calibration_prompts, 0), job.batch_size, progress=progress)
        comparison = Comparison(pipe, job, folder, chosen, Prices(pipe, job.call), bench, progress)
        comparison.run([comparison.tune(entrant) for entrant in entrants])
    return out


def _metrics(pipe: Any, first: Measurement, names: Sequence[str] | None) -> tuple[SampleMetrics, dict[str, str]]:
    """What is measured, and why the rest is not."""
    frames = first.images.shape[1] if first.images.ndim == 5 else 1
    height, width = first.images.shape[-2:]
    possible = available_metrics(height, width, frames)
    missing = {name: reason for name, reason in possible.items() if reason is not None}
    for name in names or ():
        if name in missing:
            raise InvalidArgument(f"{name} cannot be measured: {missing[name]}")
    device = str(getattr(pipe, "device", "cpu"))
    chosen = [name for name in possible if name not in missing] if names is None else names
    # Videos as the video papers' scripts average LPIPS, images as LPIPS's own does.
    metrics = SampleMetrics(chosen, lpips_spatial=frames > 1, device=device if device.startswith("cuda") else "cpu")
    return metrics, missing if names is None else {}
