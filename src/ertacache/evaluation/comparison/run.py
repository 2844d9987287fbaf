"""The comparison itself: every entrant is tuned, then all run side by side, prompt by prompt. It may be cut off."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ertacache.calibration.pipeline_run import check_call
from ertacache.calibration.progress import run_progress
from ertacache.calibration.spread import Map
from ertacache.errors import InvalidArgument
from ertacache.evaluation.comparison.entrant import Entrant, Tuned
from ertacache.evaluation.comparison.folder import Folder, reference_file
from ertacache.evaluation.comparison.job import Job, header
from ertacache.evaluation.comparison.maker import NO_CACHE, Maker, MakerElsewhere, metrics_for
from ertacache.evaluation.comparison.reference import Measurement
from ertacache.metrics import SampleMetrics, available_metrics
from ertacache.runtime.folder_lock import locked

#: Pipeline calls that tuning one entrant takes, for the estimate of the time that is left.
_TUNING_RUNS = 20


@dataclass
class Comparison:
    """One comparison under way.

    Attributes:
        elsewhere: how other processes work for it. spread: gives them the work; None where there are none.
    """

    maker: Maker
    folder: Folder
    progress: Callable[[str], None]
    elsewhere: MakerElsewhere
    spread: Map | None = None

    def tune(self, entrants: Sequence[Entrant]) -> list[Tuned]:
        """The entrants at their cost, from the folder if they are there."""
        kept = {entrant.id: self.folder.tuned(entrant) for entrant in entrants}
        kept[NO_CACHE.id] = kept[NO_CACHE.id] or Tuned(NO_CACHE, NO_CACHE.method)
        open_ones = [entrant for entrant in entrants if kept[entrant.id] is None]
        made = self._made([partial(Maker.tuned, entrant=entrant) for entrant in open_ones])
        found: list[Tuned] = []
        for entrant in entrants:
            known = kept[entrant.id]
            if known is None:
                known, notes = next(made)
                for name, note in notes.items():
                    self.folder.note(name, note)
            self.folder.keep(known)
            self.progress(f"tuned {entrant.id}")
            found.append(known)
        return found

    def run(self, entrants: Sequence[Tuned]) -> None:
        """Every row that is not there yet, in order."""
        job, running = self.maker.job, [tuned for tuned in entrants if tuned.refusal is None]
        runs = [(number, seed) for seed in range(job.seeds) for number in range(len(job.prompts))]
        rows = [(tuned, number, seed) for number, seed in runs for tuned in running]
        left = list[tuple[Tuned, int, int]]()
        for position, (tuned, number, seed) in enumerate(rows):
            if self.folder.has(position, tuned.id, number, seed):
                self.progress(f"prompt {number + 1}, {tuned.id}")
            else:
                left.append((tuned, number, seed))
        self._references_ahead(dict.fromkeys((number, seed) for _, number, seed in left))
        made = self._made([partial(Maker.row, tuned=tuned, number=number, seed=seed) for tuned, number, seed in left])
        for (tuned, number, _), (line, times) in zip(left, made, strict=True):
            self.folder.add(line, times)
            self.progress(f"prompt {number + 1}, {tuned.id}")

    def _references_ahead(self, runs: dict[tuple[int, int], None]) -> None:
        """Where work is spread, make the uncached runs before the rows that share them."""
        if self.spread is None:
            return
        open_ones = [run for run in runs if not reference_file(self.folder.path, *run).is_file()]
        for _ in self._made([partial(_leave_reference, number=number, seed=seed) for number, seed in open_ones]):
            pass

    def _made(self, units: Sequence[Callable[[Maker], Any]]) -> Iterator[Any]:
        """What the units make, in order, here or elsewhere."""
        if self.spread is None or not units:
            return (unit(self.maker) for unit in units)
        return self.spread(self.maker.pipe, self.elsewhere, units)


def _leave_reference(maker: Maker, number: int, seed: int) -> None:
    maker.reference(number, seed)


def run_comparison(
    pipe: Any,
    entrants: Sequence[Entrant],
    job: Job,
    out: Path,
    *,
    metrics: Sequence[str] | None = None,
    map: Map | None = None,
    show_progress: bool = True,
) -> Path:
    """Compare methods on one pipeline; the same call goes on where it was cut off.

    Args:
        pipe: any diffusers pipeline with one denoiser.
        entrants: with different ids; the uncached pipeline is always the first and need not be named.
        out: folder for everything; see docs/compare.md.
        metrics: names as in `ertacache.metrics.METRICS`; None for all that can be computed here.
        map: spreads tuning and rows over processes with a pipeline each, such as `ertacache.ray.map(num_gpus=1)`, all
            of which see `out`. The rows are the same.

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
        maker = Maker(pipe, job, out, SampleMetrics(()), progress)
        first = maker.warm_up()
        maker.metrics, missing = _metrics(pipe, first, metrics)
        head = header(job, maker.metrics.names, missing, first.images, first.executed.sigmas)
        elsewhere = MakerElsewhere(
            job, out.absolute(), maker.metrics.names, first.images.ndim == 5 and first.images.shape[1] > 1
        )
        comparison = Comparison(maker, Folder(out, head), progress, elsewhere, map)
        comparison.run(comparison.tune(entrants))
    return out


def _metrics(pipe: Any, first: Measurement, names: Sequence[str] | None) -> tuple[SampleMetrics, dict[str, str]]:
    """What is measured, and why the rest is not."""
    frames = _frames(first)
    height, width = first.images.shape[-2:]
    possible = available_metrics(height, width, frames)
    missing = {name: reason for name, reason in possible.items() if reason is not None}
    for name in names or ():
        if name in missing:
            raise InvalidArgument(f"{name} cannot be measured: {missing[name]}")
    chosen = [name for name in possible if name not in missing] if names is None else names
    return metrics_for(pipe, chosen, videos=frames > 1), missing if names is None else {}


def _frames(measured: Measurement) -> int:
    return measured.images.shape[1] if measured.images.ndim == 5 else 1
