"""One setting of the frontier (model, guidance, split of the prompts) and what a method is worth in it."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from frontier_plan import Planned, calibrated, name_of, title_of

from ertacache.baselines.baseline import Baseline, Bench
from ertacache.calibration.prompts import Prompts
from ertacache.errors import CalibrationError
from ertacache.evaluation.comparison.entrant import Entrant, Tuned
from ertacache.evaluation.comparison.measure import Prices, measure
from ertacache.evaluation.comparison.reference import Measurement, kept_reference
from ertacache.evaluation.comparison.tune import tune
from ertacache.evaluation.row_figures import latent_error
from ertacache.evaluation.separate import check_separate
from ertacache.metrics import SampleMetrics
from ertacache.pipelines.loading import call_arguments, load_pipeline, with_steps
from ertacache.profile.profile import Profile
from ertacache.runtime.watch import Executed
from ertacache_zoo import catalogue

#: Name of the guidance weight in the call; the model's own weight and about twice that. tiny-flux knows weights up to
#: 14 from its training; at 14 plain reuse on tiny-flux-base is where it is on published models.
GUIDANCE: dict[str, tuple[str, tuple[float, ...]]] = {
    "tiny-flux": ("guidance_scale", (10.0, 14.0)),
    "tiny-flux-base": ("true_cfg_scale", (4.0, 7.0, 14.0)),
    "tiny-wan": ("guidance_scale", (5.0, 10.0)),
    "tiny-cogvideox": ("guidance_scale", (6.0, 12.0)),
    "tiny-open-sora": ("guidance_scale", (7.0, 14.0)),
}
#: Budgets: T over these, rounded, is the number of steps that everything is to cost.
BUDGETS = (2, 3, 4, 5)
SEED, BATCH = 10_000, 8


def captions(name: str, split: int, calibration: int, judged: int) -> tuple[list[str], list[str]]:
    """Calibration and judged captions of one split; no caption is in two splits or in both lists."""
    used, measured = (
        list(dict.fromkeys(draw(2 * (split + 1) * n, name)))[split * n : (split + 1) * n]
        for draw, n in ((catalogue.calibration_prompts, calibration), (catalogue.heldout_prompts, judged))
    )
    check_separate(used, measured)
    return used, measured


@dataclass(frozen=True)
class Cell:
    """A model at one guidance weight, with one split of the prompts.

    Attributes:
        calibration, judged: how many prompts.
        call: arguments of the pipeline call that are not the model's own.
    """

    model: str
    guidance: float
    split: int
    calibration: int
    judged: int
    call: dict[str, Any] = field(default_factory=dict[str, Any], hash=False)

    @property
    def name(self) -> str:
        return f"{self.model}@{self.guidance:g}/split-{self.split}"

    def file(self, work: Path, method: str, budget: int) -> Path:
        """Where the figures of a method are kept."""
        return work / self.name / f"{method}@{budget}.json"

    @property
    def settings(self) -> dict[str, Any]:
        """What the figures depend on beside the names in their file's path."""
        own = {"calibration": self.calibration, "judged": self.judged, "seed": SEED, "call": self.call}
        return {**own, "torch": torch.__version__}


def cells(models: list[str], guidance: list[float] | None, splits: list[int], **prompts: Any) -> Iterator[Cell]:
    """Every setting; `guidance` chooses among the weights of a model, where it is given."""
    for model in models:
        for weight in GUIDANCE[model][1]:
            if guidance is None or weight in guidance:
                for split in splits:
                    yield Cell(model, weight, split, **prompts)


@dataclass
class Judge:
    """A cell with its pipeline: tunes methods on the calibration prompts and measures them on the judged ones.

    Args:
        folder: for the uncached runs.
        pipe: of the cell's model.
        wanted: what it will be asked for: all plans of an effort are calibrated with the first of them.
    """

    cell: Cell
    folder: Path
    pipe: Any
    wanted: Sequence[tuple[int, Baseline]] = ()
    _plans: dict[str, dict[int, Profile]] = field(default_factory=dict[str, dict[int, Profile]], init=False)

    def __post_init__(self) -> None:
        cell = self.cell
        used, judged = captions(cell.model, cell.split, cell.calibration, cell.judged)
        weight = {GUIDANCE[cell.model][0]: cell.guidance}
        call = with_steps(self.pipe, call_arguments(cell.model, {**weight, **cell.call}))
        self.prompts = Prompts(tuple(judged), SEED + 1000 * cell.split)
        self.bench = Bench(self.pipe, call, Prompts(tuple(used), 1000 * cell.split))
        self.prices, self.metrics = Prices(self.pipe, call), SampleMetrics(("psnr", "ssim"))

    @cached_property
    def references(self) -> list[tuple[Prompts, Measurement]]:
        """The uncached runs of the judged prompts, in batches."""
        return [
            (batch, kept_reference(self.folder / f"uncached-{n}.safetensors", self._uncached(batch)))
            for n, batch in enumerate(self.prompts.batches(BATCH))
        ]

    def _uncached(self, batch: Prompts) -> Any:
        return lambda: measure(self.pipe, None, batch, self.bench.call)

    def figures(self, method: Baseline, budget: int) -> dict[str, Any]:
        """What a method is worth at T/budget steps' cost: per judged prompt, and the processor time that it took."""
        begun, T = time.process_time(), self.bench.T
        K = round(T / budget)
        if isinstance(method, Planned):
            method = self._from_one_recording(method, K)
        entrant = Entrant(f"{name_of(method)}@{budget}", method, K / T)
        tuned = tune(entrant, self.bench, self.prices, lambda _: None)
        facts = {"method": name_of(method), "title": title_of(method), "T": T, "K": K}
        if tuned.refusal is not None:
            return {**facts, "refusal": tuned.refusal}
        tuning = time.process_time() - begun
        rows = list(self._judged(tuned))
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        seconds = {
            "tuning_seconds": round(tuning, 2),
            "judging_seconds": round(time.process_time() - begun - tuning, 2),
        }
        return {**facts, "knob": knob(tuned.method), "tuned_cost": tuned.cost, **columns, **seconds}

    def _from_one_recording(self, plan: Planned, K: int) -> Planned:
        """The plan with its profile at K steps, and those at the other numbers of steps that are wanted of it."""
        if K not in self._plans.get(plan.effort, {}):
            others = {
                round(self.bench.T / budget) for budget, method in self.wanted if name_of(method) == name_of(plan)
            }
            self._plans[plan.effort] = calibrated(self.bench, plan.effort, sorted({K, *others}))
        return replace(plan, profiles=self._plans[plan.effort])

    def _judged(self, tuned: Tuned) -> Iterator[dict[str, float]]:
        """One row per judged prompt. Who decides at run time decides for a whole batch, and so runs alone."""
        for batch, reference in self.references:
            for n, (one, images, run) in enumerate(self._runs(tuned, batch)):
                steps = self.prices.of(tuned, one, run)
                figures = self.metrics.measure(images, reference.images[n], one.texts[0])
                latents = run.latents, reference.executed.latents[n : n + 1]
                yield {
                    **{name: round(value, 4) for name, value in figures.items()},
                    "latent_error": round(latent_error(*latents), 4),
                    "cost": round(sum(steps) / self.bench.T, 5),
                    "block_calls": sum(run.block_calls),
                }

    def _runs(self, tuned: Tuned, batch: Prompts) -> Iterator[tuple[Prompts, torch.Tensor, Executed]]:
        """Each prompt of a batch with its images and what was executed for it."""
        together = not tuned.method.batch
        for part in batch.batches(None if together else 1):
            found, size = measure(self.pipe, tuned.method, part, self.bench.call), len(part.texts)
            for n, one in enumerate(part.batches(1)):
                yield one, found.images[n], share_of(found.executed, n, size)


def share_of(executed: Executed, n: int, size: int) -> Executed:
    """What a run of `size` prompts executed for its prompt n, as if that had run alone.

    Raises:
        CalibrationError: the prompts did not go through the denoiser side by side.
    """
    if any(elements % size for elements in executed.elements):
        raise CalibrationError(f"{size} prompts went through the denoiser as {executed.elements} entries")
    return Executed(
        sigmas=executed.sigmas,
        denoiser_calls=executed.denoiser_calls,
        block_calls=executed.block_calls,
        attention_calls=executed.attention_calls,
        elements=[elements // size for elements in executed.elements],
        latents=executed.latents[n : n + 1],
    )


def knob(method: Baseline) -> str:
    """What was turned, and to where; of a plan, its schedule."""
    if isinstance(method, Planned) and method.profile is not None:
        return str(method.profile.schedule)
    return f"{method.knob.field} {getattr(method, method.knob.field):.4g}"


def loaded(cell: Cell, folder: Path, wanted: Sequence[tuple[int, Baseline]] = ()) -> Judge:
    """A cell's judge with the bundled model."""
    return Judge(cell, folder, load_pipeline(cell.model), wanted)
