"""One bundled model under one scheme: its prompts, its pipelines, and the runs that every row shares, made once."""

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from frontier_cells import SEED, captions
from kept import kept

from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.checkpoint import RunStore, owned
from ertacache.calibration.full_precision import FullPrecision, full_precision
from ertacache.calibration.held_out import measure
from ertacache.calibration.prompts import Prompts
from ertacache.files import write_atomic
from ertacache.pipelines.loading import call_arguments, with_steps
from ertacache.pipelines.quantizers.quantize import quantized_copy

#: Pictures before clips.
MODELS = ("tiny-flux", "tiny-flux-base", "tiny-wan", "tiny-cogvideox")
#: The scheme of a model that is not quantised.
FULL = "full"
#: w8a4 takes the memory that two grids of w4a4 do.
SCHEMES = ("w4a4", "w4a8", "w8a4", "w8a8")
BATCH = 8


class Counts(NamedTuple):
    """Prompts that coefficients are fitted to, that choose among corrections, and that judge."""

    fitted: int
    chosen: int
    judged: int


@dataclass
class Setting:
    """A model under a scheme.

    Attributes:
        full: the pipeline in full precision.
        work: of all settings. call: arguments of the pipeline call that are not the model's own.
    """

    model: str
    scheme: str
    full: Any
    counts: Counts
    work: Path
    call: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def folder(self) -> Path:
        """Where its figures and runs are kept."""
        return self.work / self.model / self.scheme

    @property
    def pool(self) -> Path:
        """Where the full-precision runs of all schemes are kept."""
        return self.work / self.model / "full-precision"

    @property
    def settings(self) -> dict[str, Any]:
        """What its figures depend on beside model, scheme and row."""
        return {**self.counts._asdict(), "seed": SEED, "call": self.call, "torch": torch.__version__}

    def check(self) -> None:
        """Refuse a folder of other settings.

        Raises:
            SystemExit: naming both.
        """
        kept(self.pool / "settings.json", self.settings, dict)

    @cached_property
    def pipe(self) -> Any:
        """The pipeline that is measured."""
        return self.full if self.scheme == FULL else quantized_copy(self.full, self.scheme)

    @cached_property
    def texts(self) -> list[str]:
        """Calibration prompts, then those that judge, as `options` split them."""
        used, judged = captions(self.model, 0, self.counts.fitted + self.counts.chosen, self.counts.judged)
        return [*used, *judged]

    @property
    def one(self) -> Prompts:
        """The first prompt."""
        return Prompts((self.texts[0],), SEED)

    @property
    def options(self) -> dict[str, Any]:
        """What every calibration here has in common, beside prompts and checkpoint."""
        whole = sum(self.counts)
        call = with_steps(self.full, call_arguments(self.model, self.call))
        return {"choose": self.counts.chosen / whole, "seed": SEED, "batch_size": BATCH, "call": call}

    @property
    def runs(self) -> Path:
        """The checkpoint of whatever aims at the full-precision run."""
        return self.folder / "runs"

    def owned(self) -> AbstractContextManager[None]:
        """Keep those runs to this process."""
        return owned(self.runs)

    @cached_property
    def teacher(self) -> FullPrecision | None:
        """What is aimed at and measured from; None where that is the pipeline itself."""
        return None if self.scheme == FULL else full_precision(self.pipe, self.full)

    @cached_property
    def calibrator(self) -> Calibrator:
        """With the runs of all prompts, quantised and in full precision; of a model the latter are made once."""
        found = self._calibrator(self.runs, self.teacher)
        if self.teacher is not None:
            with self._pooled(found, self.teacher.name):
                _ = found.taught, measure(found, None, "chosen"), measure(found, None, "judged")
        return found

    def uncorrected(self) -> dict[str, list[float]]:
        """How far it is off on the judged prompts as it is, without runs of any other prompts."""
        found = self._calibrator(self.runs, self.teacher)
        with self.owned(), self._pooled(found, full_precision(self.pipe, self.full).name):
            return measure(found, None, "judged")

    @contextmanager
    def _pooled(self, found: Calibrator, name: str) -> Generator[None]:
        """Full-precision runs that are there are not made again, and those made within are there for other schemes."""
        calls = range(len(found.batches)), *(range(-(-count // BATCH)) for count in self.counts[1:])
        names = [f"{part}{name} {n}" for part, part_calls in zip(_PARTS, calls, strict=True) for n in part_calls]
        copied(names, found.store, self.pool, found.store.folder)
        yield
        copied(names, found.store, found.store.folder, self.pool)

    def own_runs(self) -> Path:
        """A checkpoint for what aims at the quantised model's own uncached run, with the runs that are there."""
        folder, own = self.folder / "own-runs", self.calibrator
        with owned(folder):
            found = self._calibrator(folder, None)
            calls = range(len(own.batches)), *(range(-(-count // BATCH)) for count in self.counts[1:])
            names = [f"{part}reference {n}" for part, part_calls in zip(_PARTS, calls, strict=True) for n in part_calls]
            copied(names, found.store, self.runs, folder)
        return folder

    def _calibrator(self, folder: Path, teacher: Any) -> Calibrator:
        judge = self.counts.judged / sum(self.counts)
        return Calibrator(self.pipe, self.texts, judge=judge, checkpoint=folder, teacher=teacher, **self.options)


#: Before the names of runs of fitted, choosing and judging prompts.
_PARTS = ("", "chosen ", "judged ")


def copied(names: list[str], store: RunStore, source: Path, target: Path) -> None:
    """Give one checkpoint the runs of these names that another one has, where they are the same in both."""
    for name in names:
        for kind in ("bin", "pt"):  # the result last: it says that the recording is there
            file = store.file(name, kind).name
            if (source / file).is_file() and not (target / file).exists():
                write_atomic(target / file, (source / file).read_bytes())
