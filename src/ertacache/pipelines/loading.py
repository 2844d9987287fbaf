"""Pipelines by id, path or zoo name, with the call arguments that belong to them."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ertacache.errors import InvalidArgument
from ertacache.pipelines import bundled

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load_pipeline(model: str, device: str = "cpu", dtype: str = "float32") -> Any:
    """A diffusers pipeline.

    Args:
        model: name of a bundled model (`tiny-flux`), a folder, or a Hub id.
        device: as torch names it.
        dtype: float32, float16 or bfloat16.

    Raises:
        InvalidArgument: nothing can be loaded under that name, or an unknown device or dtype.
    """
    from diffusers import DiffusionPipeline

    if dtype not in DTYPES:
        raise InvalidArgument(f"dtype is {dtype!r}; choose one of {', '.join(DTYPES)}")
    source = str(bundled.folder(model)) if model in bundled.NAMES else model
    try:
        target = torch.device(device)
        pipe = DiffusionPipeline.from_pretrained(source, dtype=DTYPES[dtype])
        pipe = aligned(pipe) if target.type == "cpu" else pipe.to(target)
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise InvalidArgument(
            f"cannot load {model!r} on {device} ({first}); give a bundled model ({', '.join(bundled.NAMES)}), "
            "a diffusers folder or a Hub id that this machine can reach"
        ) from error
    return pipe


def aligned(pipe: Any) -> Any:
    """Copy weights that are mapped from their files to memory of their own.

    A map begins wherever the tensor lies in its file, and the CPU's matrix products round otherwise at other
    alignments: without this, two processes that load one model are 1e-7 apart.
    """
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
            documented = dict(json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise InvalidArgument(f"{path} is no JSON object of call arguments ({error}); mend or delete it") from error
    return {**documented, **{name: value for name, value in overrides.items() if value is not None}}


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
