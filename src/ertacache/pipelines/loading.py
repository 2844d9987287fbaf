"""Pipelines by id, path or zoo name, with the call arguments that belong to them."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from ertacache.errors import InvalidArgument, MissingExtra, meant
from ertacache.files import json_object
from ertacache.pipelines import bundled
from ertacache.pipelines.pipeline_call import defaults_of

# torch and diffusers are imported where they are used: a slip of the pen is answered at once.
if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "float16", "bfloat16")

#: What waits in the host's memory for its turn: nothing, whole components, groups of layers, or single layers.
Offload = Literal["none", "model", "group", "sequential"]

#: The transformer's repository stands for the three that Open-Sora 1.2 is published in.
_OPEN_SORA = "hpcai-tech/OpenSora-STDiT-v3"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
#: Modules of torch that say whether their device is there.
_ACCELERATORS = ("cuda", "xpu", "mps", "npu", "hpu")


def load_pipeline(model: str, device: str | None = None, dtype: str | None = None, offload: Offload = "none") -> Any:
    """A diffusers pipeline.

    Args:
        model: name of a bundled model (`tiny-flux`), a folder, or a Hub id.
        device: as torch names it; None for CUDA where there is one, else the CPU.
        dtype: float32, float16 or bfloat16; None for bfloat16 on an accelerator, float32 on the CPU.
        offload: diffusers' offloading. `model` and `sequential` need an accelerator; `group` does nothing for the
            memory of a machine without one, but runs there.

    Raises:
        InvalidArgument: nothing can be loaded under that name, an unknown device or dtype, or one that is not there.
        MissingExtra: the model was quantised by a library that is not there.
    """
    place, kind = check_placement(device, dtype, offload)
    source = check_model(model)
    try:
        pipe = _loaded(source, kind)
        return _placed(pipe, place, offload)
    except MissingExtra:
        raise
    except Exception as error:  # foreign files and code: whatever goes wrong there, nothing was loaded
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InvalidArgument(
            f"cannot load {model!r} on {place} ({first}); give a bundled model ({', '.join(bundled.NAMES)}), "
            "a diffusers folder or a Hub id that this machine can reach"
        ) from error


def _loaded(source: str, dtype: "torch.dtype") -> Any:
    """From a folder or Hub id; Open-Sora, which diffusers knows neither as a class nor as its authors publish it."""
    from diffusers import DiffusionPipeline

    published = source == _OPEN_SORA
    config: Any = {} if published else DiffusionPipeline.load_config(source)
    if not published and config.get("_class_name") != "OpenSoraPipeline":
        return DiffusionPipeline.from_pretrained(source, dtype=dtype)
    from ertacache.opensora import OpenSoraPipeline

    if published:
        return OpenSoraPipeline.from_published(source, torch_dtype=dtype)
    return OpenSoraPipeline.from_pretrained(source, dtype=dtype)


def check_model(model: str) -> str:
    """Folder or Hub id of a model, without asking the Hub for what can only be a slip of the pen.

    Raises:
        InvalidArgument: neither bundled, nor a folder, nor the form of a Hub id.
        MissingExtra: a bundled model without the zoo.
    """
    if not isinstance(model, str | os.PathLike) or not str(model):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidArgument(f"model is {model!r}; give a bundled model, a diffusers folder or a Hub id")
    model = os.fspath(model)
    if model in bundled.NAMES:
        return str(bundled.folder(model))
    if Path(model).is_dir():
        if not (Path(model) / "model_index.json").is_file():
            raise InvalidArgument(f"the folder {model} holds no model_index.json; give a diffusers pipeline's folder")
        return model
    if _HUB_ID.fullmatch(model):
        return model
    known = f"; there are {', '.join(bundled.NAMES)}, folders and Hub ids"
    raise InvalidArgument(f"no model {model!r}{meant(model, bundled.NAMES) or known}")


def check_placement(
    device: str | None, dtype: str | None, offload: Offload = "none"
) -> "tuple[torch.device, torch.dtype]":
    """Device and dtype that a model is loaded with, checked before anything is.

    Raises:
        InvalidArgument: a name that torch does not know, or a device that this machine lacks.
    """
    import torch

    if dtype is not None and dtype not in DTYPES:
        raise InvalidArgument(f"dtype is {dtype!r}; choose one of {', '.join(DTYPES)}")
    if offload not in get_args(Offload):
        raise InvalidArgument(f"offload is {offload!r}; choose one of {', '.join(get_args(Offload))}")
    place = _device(device)
    if place.type == "cpu" and offload in ("model", "sequential"):
        raise InvalidArgument(
            f"offload is {offload!r}, which needs an accelerator to move the weights to, and the device is the CPU; "
            "use 'none' or 'group'"
        )
    return place, getattr(torch, dtype or ("float32" if place.type == "cpu" else "bfloat16"))


def _device(name: str | None) -> "torch.device":
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidArgument(f"device is {name!r}, which torch does not know; use cpu, cuda or mps") from error
    backend: Any = getattr(torch, device.type, None)
    if device.type != "cpu" and not (device.type in _ACCELERATORS and backend.is_available()):
        raise InvalidArgument(f"device is {name!r}, and this machine has no {device.type} that torch can use; use cpu")
    count = 1 if device.type == "cpu" else backend.device_count()
    if (device.index or 0) >= count:
        raise InvalidArgument(f"device is {name!r}, and this machine has {count} of them; count from 0")
    return device


def _placed(pipe: Any, device: "torch.device", offload: Offload) -> Any:
    from ertacache.pipelines.quantizers.quantize import restore

    if device.type == "cpu":
        pipe = aligned(pipe)
    restore(pipe)
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    elif offload == "group":
        # By leaves: blocks would leave out what lies outside of them, and are counted differently in every model.
        pipe.enable_group_offload(onload_device=device, offload_type="leaf_level", use_stream=device.type == "cuda")
    else:
        pipe = pipe.to(device)
    return pipe


def aligned(pipe: Any) -> Any:
    """Copy weights that are mapped from their files to memory of their own.

    A map begins wherever the tensor lies in its file, and the CPU's matrix products round otherwise at other
    alignments: without this, two processes that load one model are 1e-7 apart.
    """
    from torch import nn

    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            for tensor in (*part.parameters(), *part.buffers()):
                tensor.data = tensor.data.clone()
    return pipe


def call_arguments(model: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """The call arguments that a model's folder documents in `call.json`, with those given put over them.

    Raises:
        InvalidArgument: the file is no JSON object.
    """
    path = (bundled.folder(model) if model in bundled.NAMES else Path(model)) / "call.json"
    documented: dict[str, Any] = {}
    if path.is_file():
        try:
            documented = json_object(path.read_bytes())
        except (OSError, ValueError) as error:
            raise InvalidArgument(f"{path} is no JSON object of call arguments ({error}); mend or delete it") from error
    return {**documented, **{name: value for name, value in overrides.items() if value is not None}}


def with_steps(pipe: Any, call: dict[str, Any]) -> dict[str, Any]:
    """The call with its number of steps, which is the pipeline's default where nobody said."""
    return {"num_inference_steps": defaults_of(pipe)["num_inference_steps"], **call}


def read_prompts(path: Path) -> list[str]:
    """Prompts from a text file, one a line; empty lines do not count.

    Raises:
        InvalidArgument: no such file, or nothing in it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(
            f"cannot read prompts from {path} ({error}); give a UTF-8 text file, one prompt a line"
        ) from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise InvalidArgument(f"{path} holds no prompts; write one a line")
    return prompts
