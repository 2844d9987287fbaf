"""The uncached run of every prompt and seed: made once, kept in a file, compared with by everybody."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ertacache.errors import InvalidArgument
from ertacache.files import json_object, write_atomic
from ertacache.runtime.watch import Executed


@dataclass(frozen=True, eq=False)
class Measurement:
    """One pipeline call.

    Attributes:
        images: [1, 3, H, W] or [1, F, 3, H, W], float32 in [0, 1].
        executed: counts, and what the solver received where it was kept.
        image_seconds: the whole call, decoding included.
        peak_bytes: most memory that was allocated on the accelerator; None without one.
    """

    images: Tensor
    executed: Executed
    image_seconds: float
    peak_bytes: int | None


_COUNTS = ("denoiser_calls", "block_calls", "attention_calls", "elements", "flops", "seconds")


def kept_reference(path: Path, make: Callable[[], Measurement]) -> Measurement:
    """The measurement in the file, which is made first where there is none.

    Raises:
        InvalidArgument: the file is damaged or something else.
    """
    if not path.is_file():
        made = make()
        run = made.executed
        tensors = {"images": made.images, "latents": run.latents, "sigmas": run.sigmas}
        if run.outputs:
            tensors["outputs"] = torch.stack(run.outputs)
        facts: dict[str, Any] = {name: getattr(run, name) for name in _COUNTS}
        facts |= {"image_seconds": made.image_seconds, "peak_bytes": made.peak_bytes}
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        write_atomic(path, save(contiguous, {"facts": json.dumps(facts)}))
    try:
        return _read(path)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise InvalidArgument(
            f"{path} is no uncached run of this comparison ({str(error)[:200]}); delete it: it is made again"
        ) from error


def _read(path: Path) -> Measurement:
    with safe_open(path, framework="pt") as file:
        facts = json_object((file.metadata() or {})["facts"])
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
    run = Executed(
        sigmas=tensors["sigmas"],
        latents=tensors["latents"],
        outputs=list(tensors["outputs"]) if "outputs" in tensors else [],
        **{name: facts[name] for name in _COUNTS},
    )
    if tensors["images"].ndim not in (4, 5) or len(run.denoiser_calls) != len(run.sigmas) - 1:
        raise ValueError("pictures, calls and time grid do not belong together")
    return Measurement(tensors["images"], run, facts["image_seconds"], facts["peak_bytes"])
