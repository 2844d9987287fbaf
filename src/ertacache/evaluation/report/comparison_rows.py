"""What the lines of a comparison's files hold: header, entrants, rows, times and TeaCache's calibration."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from ertacache.evaluation.report.figures import Decomposition, decomposition_of
from ertacache.evaluation.report.json_object import JsonObject

NO_CACHE = "no-cache"
FEWER_STEPS = "fewer-steps"
UNIFORM = "uniform"

#: What a row is known by: entrant, prompt, seed.
Key = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Header:
    """Where the figures come from; `sigmas` is the uncached grid, T + 1 values."""

    model: str
    prompts: tuple[str, ...]
    seed: int
    seeds: int
    T: int
    call: dict[str, Any]
    costs: tuple[float, ...]
    metrics: tuple[str, ...]
    missing_metrics: dict[str, str]
    video: bool
    versions: dict[str, Any]
    machine: str
    sigmas: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Entrant:
    """A method with its settings; `target` is the wanted share of the uncached operations, None as published."""

    id: str
    method: str
    title: str
    paper: str
    work: str
    batch: str
    target: float | None
    tuned_cost: float | None
    settings: dict[str, Any]
    refusal: str | None

    @property
    def label(self) -> str:
        """Title, with the name of a published setting: the id is then "method:name"."""
        _, colon, name = self.id.partition(":")
        return f"{self.title}, {name.replace('-', ' ')}" if self.target is None and colon else self.title


@dataclass(frozen=True, slots=True)
class Row:
    """One run of an entrant, as counted.

    Attributes:
        line: number in results.jsonl.
        metrics: by the names in the header.
        cost: share of the uncached run's operations.
        step_cost: operations of each step that ran, as shares of an uncached step.
        sigmas: grid of its own, one value more than steps; None for the header's.
        sample: file relative to the folder.
        frame_psnr: of every frame of a clip, dB; None for a picture.
    """

    line: int
    entrant: str
    prompt: int
    seed: int
    metrics: Mapping[str, float]
    cost: float
    denoiser_calls: int
    block_calls: int
    attention_calls: int
    step_cost: tuple[float, ...]
    sigmas: tuple[float, ...] | None
    decomposition: Decomposition | None
    sample: str | None
    frame_psnr: tuple[float, ...] | None

    @property
    def key(self) -> Key:
        return self.entrant, self.prompt, self.seed


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of the denoising loop and of the whole pipeline call, and the largest memory in bytes where known."""

    seconds: float
    image_seconds: float
    peak_bytes: float | None


@dataclass(frozen=True, slots=True)
class OutputChange:
    """Relative l1 change of the output from step to step, per prompt: steps 1 to T-1, measured and predicted."""

    truth: tuple[tuple[float, ...], ...]
    predicted: tuple[tuple[float, ...], ...]


def header_of(line: JsonObject) -> Header:
    """The first line of results.jsonl."""
    prompts, metrics, T = line.texts("prompts"), line.texts("metrics"), line.integer("T", 1)
    if not prompts:
        raise line.wrong("prompts", "at least one text")
    if "psnr" not in metrics:
        raise line.wrong("metrics", "a list with 'psnr' in it, which everything is ranked by")
    missing = line.part("missing_metrics")
    return Header(
        model=line.text("model"),
        prompts=prompts,
        seed=line.integer("seed"),
        seeds=line.integer("seeds", 1),
        T=T,
        call=line.object("call"),
        costs=line.numbers("costs"),
        metrics=metrics,
        missing_metrics={name: missing.text(name) for name in line.object("missing_metrics")},
        video=line.truth("video"),
        versions=line.object("versions"),
        machine=line.text("machine"),
        sigmas=line.numbers("sigmas", T + 1),
    )


def entrant_of(entry: JsonObject) -> Entrant:
    """One entry of entrants.json."""
    return Entrant(
        id=entry.text("id"),
        method=entry.text("method"),
        title=entry.text("title"),
        paper=entry.text("paper"),
        work=entry.text("work"),
        batch=entry.text("batch"),
        target=entry.optional_number("target"),
        tuned_cost=entry.optional_number("tuned_cost"),
        settings=entry.object("settings"),
        refusal=entry.optional_text("refusal"),
    )


def row_of(number: int, line: JsonObject, header: Header, first: Row | None = None) -> Row:
    """One row of results.jsonl.

    Args:
        first: of the same entrant; a row may leave out `step_cost` and `sigmas` where they are those of that one.
    """
    steps = line.integer("steps", 1)
    same = first if first and line.value("step_cost") is None and len(first.step_cost) == steps else None
    sample = line.optional_text("sample")
    if sample is not None and (PurePosixPath(sample).is_absolute() or ".." in PurePosixPath(sample).parts):
        raise line.wrong("sample", "a path inside of the folder")
    entrant, prompt, seed = key_of(line, header)
    return Row(
        line=number,
        entrant=entrant,
        prompt=prompt,
        seed=seed,
        metrics={name: line.number(name) for name in header.metrics},
        cost=line.number("cost"),
        denoiser_calls=line.integer("denoiser_calls", 0),
        block_calls=line.integer("block_calls", 0),
        attention_calls=line.integer("attention_calls", 0),
        step_cost=same.step_cost if same else line.numbers("step_cost", steps),
        sigmas=same.sigmas if same else _grid(line, steps),
        decomposition=decomposition_of(line, header.T),
        sample=sample,
        frame_psnr=None if line.value("frame_psnr") is None else line.numbers("frame_psnr"),
    )


def _grid(line: JsonObject, steps: int) -> tuple[float, ...] | None:
    return None if line.value("sigmas") is None else line.numbers("sigmas", steps + 1)


def key_of(line: JsonObject, header: Header) -> Key:
    """Entrant, prompt and seed of a line."""
    prompt = line.integer("prompt", 0, len(header.prompts) - 1)
    return line.text("entrant"), prompt, line.integer("seed", 0, header.seeds - 1)


def times_of(line: JsonObject) -> Times:
    """The times of one line of timings.jsonl."""
    seconds = line.number("seconds")
    if seconds <= 0:
        raise line.wrong("seconds", "more than 0")
    return Times(seconds, line.number("image_seconds"), line.optional_number("peak_bytes"))


def output_changes_of(document: JsonObject, T: int) -> dict[str, OutputChange]:
    """What l1.json holds, by context."""
    contexts = document.part("contexts")
    changes: dict[str, OutputChange] = {}
    for name in document.object("contexts"):
        context = contexts.part(name)
        truth, predicted = (_table(context, key, T - 1) for key in ("truth", "predicted"))
        if len(truth) != len(predicted):
            raise context.wrong("predicted", f"a list of {len(truth)} lists, one for each prompt, as 'truth'")
        changes[name] = OutputChange(truth, predicted)
    return changes


def _table(context: JsonObject, key: str, count: int) -> tuple[tuple[float, ...], ...]:
    rows = context.items(key)
    if not rows:
        raise context.wrong(key, "a list with at least one list of numbers")
    table = JsonObject({f"{key}[{index}]": row for index, row in enumerate(rows)}, context.where)
    return tuple(table.numbers(f"{key}[{index}]", count) for index in range(len(rows)))
