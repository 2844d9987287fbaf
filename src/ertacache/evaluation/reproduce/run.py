"""One reproduction: checks first, then the pipeline, the comparison of a table's rows, and the table."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ertacache.errors import InvalidArgument, UnsupportedPipeline
from ertacache.evaluation.reproduce.memory import check_memory
from ertacache.evaluation.reproduce.paper_figures import PrintedRow, printed_rows
from ertacache.evaluation.reproduce.settings import FIGURE5, Setting, setting_of
from ertacache.pipelines.loading import call_arguments, load_pipeline, read_prompts
from ertacache.zoo import catalogue

if TYPE_CHECKING:
    from ertacache.evaluation.comparison.entrant import Entrant

#: Bundled captions that are measured, and that methods are calibrated on.
_MEASURED, _CALIBRATED = 16, 24


@dataclass(frozen=True)
class Request:
    """What to reproduce, and how.

    Attributes:
        table: table1 to table4, or figure5.
        out: folder for all results.
        prompts, calibration_prompts: files; only bundled models have prompts of their own.
        count: how many of the prompts are measured; None for all (16 of the bundled ones).
        seeds, seed, dtype: instead of the setting's.
        device: None for a GPU where there is one and the weights are the published ones.
        offload: components take turns on the GPU.
        memory_check: whether free memory is looked at before anything is loaded.
        site: where our rows predict: output (Eq. 5-6 as printed) or hidden (TeaCache's place).
        by: what sets our schedules: the printed "threshold" λ, or the number of "steps" that the printed speed-up
            implies; None for λ on published weights and steps on bundled models.
        batch_size: prompts per call of a calibration; None for one on published weights, all on bundled models.
        samples: prompts that keep their picture or clip.
    """

    table: str
    model: str
    out: Path
    prompts: Path | None = None
    calibration_prompts: Path | None = None
    count: int | None = None
    seeds: int | None = None
    seed: int | None = None
    device: str | None = None
    dtype: str | None = None
    offload: bool = False
    memory_check: bool = True
    site: Literal["output", "hidden"] = "output"
    by: Literal["threshold", "steps"] | None = None
    batch_size: int | None = None
    negative_prompt: str | None = None
    samples: int = 6


@dataclass(frozen=True)
class Ready:
    """A request that can run, with everything that it left open."""

    setting: Setting
    pipe: Any
    call: dict[str, Any]
    prompts: tuple[str, ...]
    calibration_prompts: tuple[str, ...]
    batch_size: int | None
    by: Literal["threshold", "steps"]
    seed: int


def reproduce(request: Request) -> dict[str, Any]:
    """Run a table or the figure; an interrupted one goes on where it stopped.

    Returns:
        The document of `table.build` or `figure5.run_figure`, with `text`.

    Raises:
        InvalidArgument: a table that the paper lacks for the model, no prompts, or too little memory; nothing has
            been loaded then.
        UnsupportedPipeline: a model that cannot be run.
    """
    if request.table == FIGURE5:
        from ertacache.evaluation.reproduce.figure5 import run_figure

        return run_figure(request)
    from ertacache.evaluation.comparison.job import Job
    from ertacache.evaluation.comparison.run import run_comparison
    from ertacache.evaluation.reproduce.measured import read_folder
    from ertacache.evaluation.reproduce.table import build, markdown, text

    ready = prepare(request)
    setting = ready.setting
    rows = printed_rows(request.table, setting.tables[request.table])
    job = Job(
        prompts=ready.prompts,
        calibration_prompts=ready.calibration_prompts,
        call=ready.call,
        model=setting.model,
        seeds=request.seeds if request.seeds is not None else setting.seeds.get(request.table, 1),
        seed=ready.seed,
        samples=request.samples,
        batch_size=ready.batch_size,
    )
    run_comparison(ready.pipe, entrants(rows, ready, request.site), job, request.out)
    document = build(request.table, setting, read_folder(request.out))
    write(request.out / "table.json", json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    write(request.out / "table.md", markdown(document))
    return {**document, "text": f"{text(document)}\n\n{request.out / 'table.md'}"}


def show(table: str, model: str) -> dict[str, Any]:
    """What the paper prints; nothing is run."""
    from ertacache.evaluation.reproduce.table import build, text

    setting = setting_of(table, model)
    if table == FIGURE5:
        from ertacache.evaluation.reproduce.figure5 import PRINTED

        return {"table": table, "printed": PRINTED, "text": PRINTED}
    document = build(table, setting)
    return {**document, "text": text(document)}


def prepare(request: Request) -> Ready:
    """Check everything that can be checked beforehand, then load.

    Raises:
        As `reproduce`.
    """
    setting = setting_of(request.table, request.model)
    if setting.refusal:
        raise UnsupportedPipeline(
            f"{setting.refusal}; see its printed figures with --show, or choose another model for {request.table}"
        )
    measured, calibrated = _prompts(request, setting)
    device = request.device or _device(setting)
    if request.memory_check:
        check_memory(setting, device, request.dtype, offload=request.offload, batch_size=request.batch_size or 1)
    pipe = load(setting, device, request.dtype or setting.dtype, offload=request.offload)
    call = {**call_arguments(setting.source, {}), **setting.call}
    if request.negative_prompt is not None:
        call["negative_prompt"] = request.negative_prompt
    return Ready(
        setting=setting,
        pipe=pipe,
        call=call,
        prompts=measured,
        calibration_prompts=calibrated,
        batch_size=request.batch_size or (None if setting.bundled else 1),
        by=request.by or ("steps" if setting.bundled else "threshold"),
        seed=setting.seed if request.seed is None else request.seed,
    )


def entrants(rows: tuple[PrintedRow, ...], ready: Ready, site: Literal["output", "hidden"]) -> "list[Entrant]":
    """Who measures which row. Ours take λ or a number of steps; the others the printed settings or a cost."""
    from ertacache.baselines import catalogue as methods
    from ertacache.baselines.baseline import denoiser_class
    from ertacache.baselines.profile_method import ProfileMethod
    from ertacache.evaluation.comparison.entrant import Entrant

    T, found = int(ready.call["num_inference_steps"]), list[Entrant]()
    for row in rows:
        if row.method == "no-cache":
            continue
        method, bundled = methods.method(row.method), ready.setting.bundled
        if isinstance(method, ProfileMethod):
            threshold = row.threshold if ready.by == "threshold" else None
            share = max(2, round(T / row.speedup)) / T
            changed = replace(method, threshold=threshold, share=share, site=site)
            found.append(Entrant(row.id, changed))
            continue
        if row.published and not bundled:
            method = type(method).published()[denoiser_class(ready.pipe)][row.published]
        found.append(Entrant(row.id, method, round(1 / row.speedup, 4) if bundled or row.tuned else None))
    return found


def load(setting: Setting, device: str, dtype: str, *, offload: bool) -> Any:
    """The pipeline, with the solver and the widths of its setting."""
    import torch

    pipe = load_pipeline(setting.source, "cpu", dtype)
    if setting.float32_vae and dtype != "float32":
        pipe.vae = type(pipe.vae).from_pretrained(setting.source, subfolder="vae", torch_dtype=torch.float32)
    if setting.flow_shift is not None:
        from diffusers import FlowMatchEulerDiscreteScheduler

        pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=setting.flow_shift)
    if offload:
        pipe.enable_model_cpu_offload(device=device)
        return pipe
    return pipe.to(device)


def write(path: Path, content: str) -> None:
    """A text file, all or nothing."""
    from ertacache.profile.profile_file import write_atomic

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content.encode())


def _device(setting: Setting) -> str:
    import torch

    return "cuda" if torch.cuda.is_available() and not setting.bundled else "cpu"


def _prompts(request: Request, setting: Setting) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Prompts to measure and to calibrate on, which may not overlap."""
    if request.count is not None and request.count < 1:
        raise InvalidArgument(f"count is {request.count}; measure 1 or more prompts")
    if not setting.bundled and (request.prompts is None or request.calibration_prompts is None):
        raise InvalidArgument(
            f"{setting.model} needs --prompts FILE to measure and --calibration-prompts FILE for what methods measure "
            f"beforehand: no list comes with this package, and {setting.prompts}; prompts of your own are fine too"
        )
    calibrated = 200 if request.table == FIGURE5 else _CALIBRATED
    texts = (
        read_texts(request.prompts)
        if request.prompts
        else catalogue.heldout_prompts(request.count or _MEASURED, setting.model)
    )
    beforehand = (
        read_texts(request.calibration_prompts)
        if request.calibration_prompts
        else catalogue.calibration_prompts(calibrated, setting.model)
    )
    if shared := sorted(set(texts) & set(beforehand)):
        raise InvalidArgument(
            f"{len(shared)} prompt(s) are calibrated and measured on, such as {shared[0]!r}; separate them"
        )
    return tuple(texts[: request.count]), tuple(beforehand)


def read_texts(path: Path) -> list[str]:
    """Prompts from a text file, one a line, or from VBench_full_info.json, each once.

    Raises:
        InvalidArgument: as `read_prompts`, or a JSON file of another kind.
    """
    if path.suffix != ".json":
        return read_prompts(path)
    try:
        return list(dict.fromkeys(str(entry["prompt_en"]) for entry in json.loads(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidArgument(
            f"{path} is no list of objects with a prompt_en, as VBench_full_info.json is ({error!r}); give that, or a "
            "text file with one prompt a line"
        ) from error
