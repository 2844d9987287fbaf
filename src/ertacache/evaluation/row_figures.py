"""What the result files of a comparison and of an ablation say alike: the machine, and figures of a row."""

import json
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ertacache.calibration.deviation import deviation
from ertacache.calibration.prompts import Prompts
from ertacache.files import write_atomic
from ertacache.metrics import frame_psnr

#: log10 of a deviation that is zero, and of a run that ended in NaN or infinity.
_EQUAL, _DIVERGED = -99.0, 99.0


def made_with() -> dict[str, Any]:
    """Versions and machine, for the first line of a result file."""
    import diffusers

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {
        "versions": {
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "python": platform.python_version(),
        },
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {device}",
    }


def header(model: str, prompts: Prompts, call: dict[str, Any], steps: int) -> dict[str, Any]:
    """First line of a result file of one set of prompts."""
    given = {"prompts": list(prompts.texts), "seed": prompts.seed}
    return {"kind": "header", "model": model, **given, **made_with(), "call": call, "T": steps}


def write_rows(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write a whole result file of JSON lines, all or nothing."""
    write_atomic(path, "".join(json.dumps(line) + "\n" for line in lines).encode())


def latent_error(latents: Tensor, reference: Tensor) -> float:
    """`deviation` of final latents [B, *] as a number that JSON holds: -99 where they are equal, 99 for NaN."""
    return min(max(deviation(latents, reference), _EQUAL), _DIVERGED)


def rounded(**tables: Tensor) -> dict[str, list[float]]:
    """A decomposition's tables [T] or [T + 1] as lists."""
    return {name: [round(float(value), 6) for value in table] for name, table in tables.items()}


def mean_frame_psnr(images: Tensor, references: Tensor) -> dict[str, list[float]]:
    """PSNR in dB of every frame of clips [N, F, 3, H, W], a mean over the clips; nothing for pictures."""
    if images.ndim != 5:
        return {}
    return {"frame_psnr": [round(float(value), 4) for value in frame_psnr(images, references).mean(0)]}
