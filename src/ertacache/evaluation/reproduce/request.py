"""A request to reproduce: checked first, then made ready with its pipeline and prompts."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ertacache.errors import InvalidArgument
from ertacache.evaluation.reproduce.memory import check_memory
from ertacache.evaluation.reproduce.settings import FIGURE5, PICTURES, Setting, setting_of
from ertacache.evaluation.separate import check_separate
from ertacache.files import write_atomic
from ertacache.pipelines import bundled
from ertacache.pipelines.loading import call_arguments, check_placement, load_pipeline, read_prompts

#: Bundled captions that are measured, and that methods are calibrated on.
_MEASURED, _CALIBRATED = 16, 24
#: Measured where pictures are shown side by side, and calibrated on where it is about their number.
_PICTURED, _MOST_CALIBRATED = 4, 200


@dataclass(frozen=True)
class Request:
    """What to reproduce, and how.

    Attributes:
        table: table1 to table4, or figure2 to figure6.
        out: folder for all results.
        prompts, calibration_prompts: files; only bundled models have prompts of their own.
        count: how many of the prompts are measured; None for all (16 of the bundled ones, 4 where pictures are shown).
        seeds, seed, dtype: instead of the setting's.
        device: None for a GPU where there is one and the weights are the published ones.
        offload: components take turns on the GPU.
        memory_check: whether free memory is looked at before anything is loaded.
        site: where our rows predict: output (Eq. 5-6 as printed) or hidden (TeaCache's place).
        by: what sets our schedules: the printed "threshold" λ, or the number of "steps" that the printed speed-up
            implies; None for λ on published weights and steps on bundled models.
        batch_size: prompts per call of a calibration; None for one on published weights, all on bundled models.
        samples: prompts that keep their picture or clip.
        num_inference_steps: instead of the setting's.
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
    num_inference_steps: int | None = None


@dataclass(frozen=True)
class Ready:
    """A request that can run, with everything that it left open; `pipe` is None until it is loaded."""

    setting: Setting
    pipe: Any
    call: dict[str, Any]
    prompts: tuple[str, ...]
    calibration_prompts: tuple[str, ...]
    batch_size: int | None
    by: Literal["threshold", "steps"]
    seed: int


def prepare(request: Request) -> Ready:
    """Check everything that can be checked beforehand, then load.

    Raises:
        As `reproduce`.
    """
    return loaded(checked(request), request)


def checked(request: Request) -> Ready:
    """Check everything that can be checked without the model.

    Raises:
        As `reproduce`.
    """
    setting = setting_of(request.table, request.model)
    measured, calibrated = _prompts(request, setting)
    check_placement(request.device or _device(setting), request.dtype, "model" if request.offload else "none")
    own = {"negative_prompt": request.negative_prompt, "num_inference_steps": request.num_inference_steps}
    given = {name: value for name, value in own.items() if value is not None}
    return Ready(
        setting=setting,
        pipe=None,
        call={**call_arguments(setting.source, {}), **setting.call, **given},
        prompts=measured,
        calibration_prompts=calibrated,
        batch_size=request.batch_size or (None if setting.bundled else 1),
        by=request.by or ("steps" if setting.bundled else "threshold"),
        seed=setting.seed if request.seed is None else request.seed,
    )


def loaded(ready: Ready, request: Request) -> Ready:
    """The same with its pipeline.

    Raises:
        InvalidArgument: too little memory.
    """
    setting = ready.setting
    device = request.device or _device(setting)
    if request.memory_check:
        check_memory(setting, device, request.dtype, offload=request.offload, batch_size=request.batch_size or 1)
    pipe = load(setting, device, request.dtype or setting.dtype, offload=request.offload)
    return replace(ready, pipe=pipe)


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
    calibrated = _MOST_CALIBRATED if request.table == FIGURE5 else _CALIBRATED
    measured = _PICTURED if request.table in PICTURES else _MEASURED
    texts = (
        read_texts(request.prompts)
        if request.prompts
        else bundled.heldout_prompts(request.count or measured, setting.model)
    )
    beforehand = (
        read_texts(request.calibration_prompts)
        if request.calibration_prompts
        else bundled.calibration_prompts(calibrated, setting.model)
    )
    check_separate(beforehand, texts)
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
