"""Reading results.jsonl: one header line, then one row per measured method. Every defect names its line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ertacache.evaluation.report.figures import Decomposition, Stat, decomposition_of, stat_of
from ertacache.evaluation.report.json_object import JsonObject, read_result_lines

NO_CACHE = "no cache"
FEWER_STEPS = "fewer steps"


@dataclass(frozen=True, slots=True)
class Header:
    """Where the figures come from; `prompts[i]` belongs to the i-th value and i-th sample of every row."""

    model: str
    prompts: tuple[str, ...]
    seed: int
    steps: int
    versions: dict[str, Any]
    call: dict[str, Any]
    machine: str


@dataclass(frozen=True, slots=True)
class Row:
    """One method at one budget in one group, as measured. `computed[i]` says whether step i ran the model.

    Clips have the PSNR of each frame, a mean over the prompts; pictures have None.
    """

    line: int
    id: str
    group: str
    label: str
    site: str | None
    basis: str | None
    stage: str
    K: int
    T: int
    budget: int
    computed: tuple[bool, ...]
    threshold: float | None
    strength: float | None
    calls: dict[str, int]
    psnr: Stat
    ssim: Stat
    latent_error: float
    denoise_seconds: float
    image_seconds: float
    extra_bytes: float
    sigmas: tuple[float, ...]
    decomposition: Decomposition | None
    samples: tuple[str, ...]
    flicker: Stat | None
    frame_psnr: tuple[float, ...] | None


def read_results(path: Path) -> tuple[Header, tuple[Row, ...]]:
    """Header and rows of a results file. Raises `InvalidArgument` naming the file and the line at fault."""
    lines = read_result_lines(path, growing=False)
    header = _header(lines[0][1])
    return header, tuple(_row(number, line, len(header.prompts)) for number, line in lines[1:])


def _header(line: JsonObject) -> Header:
    return Header(
        model=line.text("model"),
        prompts=line.texts("prompts"),
        seed=line.integer("seed"),
        steps=line.integer("T"),
        versions=line.object("versions"),
        call=line.object("call"),
        machine=line.text("machine"),
    )


def _row(number: int, line: JsonObject, prompts: int) -> Row:
    mask = line.text("schedule")
    K = line.integer("K")
    if not mask or set(mask) - {"#", "."}:
        raise line.wrong("schedule", "a text of '#' (computed) and '.' (predicted)")
    if mask.count("#") != K:
        raise line.wrong("K", f"the {mask.count('#')} computed steps of its schedule")
    samples = line.texts("samples")
    if len(samples) > prompts:
        raise line.wrong("samples", f"at most one file for each of the {prompts} prompts")
    budget = line.value("budget")
    return Row(
        line=number,
        id=line.text("id"),
        group=line.text("group"),
        label=line.text("label"),
        site=line.optional_text("site"),
        basis=line.optional_text("basis"),
        stage=line.text("stage"),
        K=K,
        T=line.integer("T"),
        budget=K if budget is None else line.integer("budget"),
        computed=tuple(mark == "#" for mark in mask),
        threshold=line.optional_number("threshold"),
        strength=line.optional_number("strength"),
        calls={name: line.part("calls").integer(name) for name in line.object("calls")},
        psnr=stat_of(line.part("psnr")),
        ssim=stat_of(line.part("ssim")),
        latent_error=line.number("latent_error"),
        denoise_seconds=line.number("denoise_seconds"),
        image_seconds=line.number("image_seconds"),
        extra_bytes=line.number("extra_bytes"),
        sigmas=line.numbers("sigmas", len(mask) + 1),
        decomposition=decomposition_of(line, len(mask)),
        samples=samples,
        flicker=None if line.value("flicker") is None else stat_of(line.part("flicker")),
        frame_psnr=None if line.value("frame_psnr") is None else line.numbers("frame_psnr"),
    )
