"""Whether a model fits, asked before anything is loaded or downloaded."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from ertacache.errors import InvalidArgument
from ertacache.evaluation.reproduce.settings import Setting

_WIDTHS = {"float32": 4, "float16": 2, "bfloat16": 2}
_MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class Need:
    """GiB that a run needs, and what they are made of.

    Attributes:
        device: on the device that computes.
        host: in the host's memory, where that is another one; 0 on a CPU.
        parts: (name, GiB) of `device`.
    """

    device: float
    host: float
    parts: tuple[tuple[str, float], ...]


def needed(setting: Setting, device: str, dtype: str, *, offload: bool = False, batch_size: int = 1) -> Need:
    """What a setting needs.

    Args:
        dtype: float32, float16 or bfloat16.
        offload: whether components take turns on the device (`enable_model_cpu_offload`).
        batch_size: prompts per pipeline call.

    Raises:
        InvalidArgument: an unknown dtype.
    """
    if dtype not in _WIDTHS:
        raise InvalidArgument(f"dtype is {dtype!r}; choose one of {', '.join(_WIDTHS)}")
    width = _WIDTHS[dtype]
    grown = batch_size * width / 2
    weights = [(part.name, part.weights(width)) for part in setting.parts]
    caches = ("caches of the methods", setting.caches * grown)
    if offload:
        largest = max(setting.parts, key=lambda part: part.weights(width) + part.activations * grown)
        parts = ((largest.name, largest.weights(width)), ("activations", largest.activations * grown), caches)
    else:
        peak = max(part.activations for part in setting.parts)
        parts = (*weights, ("activations", peak * grown), caches)
    on_cpu = torch.device(device).type == "cpu"
    return Need(sum(gib for _, gib in parts), 0.0 if on_cpu else sum(gib for _, gib in weights), parts)


def free_gib(device: str) -> float | None:
    """Free memory in GiB: of a CUDA device, or of the host for "cpu"; None where it cannot be told.

    Raises:
        InvalidArgument: a CUDA device that is not there.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise InvalidArgument(f"device is {device!r}, but torch sees no CUDA GPU; choose --device cpu")
        return torch.cuda.mem_get_info(device)[0] / 2**30
    return _host_gib() if kind == "cpu" else None


def check_memory(
    setting: Setting, device: str, dtype: str | None = None, *, offload: bool = False, batch_size: int = 1
) -> None:
    """Refuse a run that would not fit.

    Raises:
        InvalidArgument: it does not fit, or free memory cannot be told; with what is needed, what there is and what
            to do.
    """
    if not setting.parts:
        return
    dtype = dtype or setting.dtype
    if offload and torch.device(device).type == "cpu":
        raise InvalidArgument("--offload moves components between a GPU and the host; leave it out on a CPU")
    need = needed(setting, device, dtype, offload=offload, batch_size=batch_size)
    free = free_gib(device)
    if free is None:
        raise InvalidArgument(
            f"cannot tell how much memory is free on {device}, and {setting.model} needs about {need.device:.1f} GiB; "
            "use --no-memory-check if that is there"
        )
    parts = ", ".join(f"{name} {gib:.1f}" for name, gib in need.parts)
    if free < need.device:
        remedies = ["free memory", "take a bundled model (--model tiny-flux)", "see the printed figures with --show"]
        if not offload and torch.device(device).type == "cuda":
            turns = needed(setting, device, dtype, offload=True, batch_size=batch_size)
            remedies.insert(0, f"add --offload ({turns.device:.1f} GiB there, {turns.host:.1f} GiB in the host)")
        raise InvalidArgument(
            f"{setting.model} in {dtype} needs about {need.device:.1f} GiB on {device} ({parts}), and "
            f"{free:.1f} GiB are free; {', or '.join(remedies)}"
        )
    host = free_gib("cpu") if need.host else None
    if host is not None and host < need.host:
        raise InvalidArgument(
            f"{setting.model} in {dtype} needs about {need.host:.1f} GiB in the host's memory to load its weights, and "
            f"{host:.1f} GiB are free; free memory, or take a bundled model (--model tiny-flux)"
        )


def _host_gib() -> float | None:
    """What the kernel says can be had without swapping."""
    if _MEMINFO.is_file():
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) / 2**20
    names = getattr(os, "sysconf_names", {})
    if {"SC_AVPHYS_PAGES", "SC_PAGE_SIZE"} <= set(names):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return None
