"""One pipeline at work for a comparison, in its process or in another: it tunes entrants and makes rows."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from ertacache.baselines.baseline import Baseline, Bench, Knob
from ertacache.calibration.prompts import Prompts
from ertacache.calibration.spread import check_seen
from ertacache.evaluation.comparison.entrant import Entrant, Tuned
from ertacache.evaluation.comparison.folder import reference_file, results_file
from ertacache.evaluation.comparison.job import Job
from ertacache.evaluation.comparison.measure import Prices, measure, row, save_sample
from ertacache.evaluation.comparison.reference import Measurement, kept_reference
from ertacache.evaluation.comparison.tune import tune
from ertacache.metrics import SampleMetrics
from ertacache.pipelines.solvers import is_euler


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
class Maker:
    """Attributes:
    out: folder of the comparison, for references and samples.
    progress: told of every run while an entrant is tuned.
    """

    pipe: Any
    job: Job
    out: Path
    metrics: SampleMetrics
    progress: Callable[[str], None] = lambda _: None

    @cached_property
    def prices(self) -> Prices:
        return Prices(self.pipe, self.job.call)

    @cached_property
    def bench(self) -> Bench:
        prompts = Prompts(self.job.calibration_prompts, 0)
        return Bench(self.pipe, self.job.call, prompts, self.job.batch_size, progress=self.progress)

    def warm_up(self) -> Measurement:
        """A run that counts for nothing: what runs first in a process is slow for reasons that are not its own."""
        return measure(self.pipe, None, Prompts(self.job.calibration_prompts[:1], 0), self.job.call)

    def tuned(self, entrant: Entrant) -> tuple[Tuned, dict[str, Any]]:
        """The entrant at its cost, and what methods measured beforehand, by file."""
        return tune(entrant, self.bench, self.prices, self.progress), self.bench.notes

    def reference(self, number: int, seed: int) -> Measurement:
        """The uncached run of a prompt, from its file if it is there."""
        prompt, decomposed = (
            self.job.prompt(number, seed),
            self._sampled(number, seed) and is_euler(self.pipe.scheduler),
        )
        return kept_reference(
            reference_file(self.out, number, seed),
            lambda: measure(self.pipe, None, prompt, self.job.call, keep_outputs=decomposed),
        )

    def row(self, tuned: Tuned, number: int, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """One row of the results, and that of the times."""
        prompt, sampled = self.job.prompt(number, seed), self._sampled(number, seed)
        reference, plain = self.reference(number, seed), tuned.id == NO_CACHE.id
        measured = reference
        if not plain:
            decomposed = sampled and is_euler(self.pipe.scheduler)
            measured = measure(self.pipe, tuned.method, prompt, self.job.call, keep_outputs=decomposed)
        line = row(
            tuned.id,
            number,
            seed,
            measured,
            reference,
            step_cost=[1.0] * self.job.T if plain else self.prices.of(tuned, prompt, measured.executed),
            metrics=self.metrics.measure(measured.images[0], reference.images[0], prompt.texts[0]),
            sample=save_sample(measured.images, self.out, tuned.id, number, seed) if sampled else None,
        )
        times = {
            "entrant": tuned.id,
            "prompt": number,
            "seed": seed,
            "seconds": measured.executed.seconds,
            "image_seconds": measured.image_seconds,
            "peak_bytes": measured.peak_bytes,
        }
        return line, times

    def _sampled(self, number: int, seed: int) -> bool:
        return seed == 0 and number < self.job.samples


@dataclass(frozen=True, eq=False)
class MakerElsewhere:
    """How another process makes a maker of the same rows.

    Attributes:
        metrics: their names. videos: whether they are of clips.
    """

    job: Job
    out: Path
    metrics: tuple[str, ...]
    videos: bool

    def __call__(self, pipe: Any) -> Maker:
        check_seen(results_file(self.out), "out")
        maker = Maker(pipe, self.job, self.out, metrics_for(pipe, self.metrics, videos=self.videos))
        maker.warm_up()
        return maker


def metrics_for(pipe: Any, names: Sequence[str], *, videos: bool) -> SampleMetrics:
    """Metrics by name, on the pipeline's device."""
    device = str(getattr(pipe, "device", "cpu"))
    # Videos as the video papers' scripts average LPIPS, images as LPIPS's own does.
    return SampleMetrics(names, lpips_spatial=videos, device=device if device.startswith("cuda") else "cpu")
