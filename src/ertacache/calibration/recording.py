"""What one uncached pipeline call left, in a memory-mapped file: latents, what the solver received, and guidance."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ertacache.errors import CalibrationError
from ertacache.files import reason, remove_abandoned, temporary_beside

#: Every part begins at a multiple of this many bytes, where a tensor of any dtype may begin.
_ALIGNED = 64


@dataclass(frozen=True, eq=False)
class Recording:
    """The tensors of a run of T steps over B prompts, each in the dtype it had.

    Attributes:
        latents: [T+1, B, *] before every step, and the final one.
        outputs: [T, B, *] what the solver received.
        directions: [T, B, *] the guidance direction c − u of every step; None where a step lacks it.
    """

    latents: Tensor
    outputs: Tensor
    directions: Tensor | None

    @property
    def T(self) -> int:
        """Number of steps."""
        return len(self.outputs)

    @property
    def layout(self) -> dict[str, Any]:
        """Shapes and dtypes, plain data, without which its file cannot be read."""
        return _layout(self.T, *self._examples())

    def like(self, path: Path) -> "Writing":
        """Begin a file for another run like this one."""
        return self.create(path, self.T, *self._examples())

    def _examples(self) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.latents[0], self.outputs[0], None if self.directions is None else self.directions[0]

    @classmethod
    def create(cls, path: Path, T: int, x: Tensor, output: Tensor, direction: Tensor | None) -> "Writing":
        """Begin a file for a run of T steps with tensors like these, [B, *] each."""
        layout = _layout(T, x, output, direction)
        remove_abandoned(path)
        temporary = temporary_beside(path)
        return Writing(cls._map(temporary, layout), layout, temporary, path)

    @classmethod
    def open(cls, path: Path, layout: dict[str, Any]) -> Self:
        """The recording of a file and its layout, see `Writing.finish`.

        Raises:
            OSError: there is no such file, or one of another size.
        """
        if path.stat().st_size != _size(layout):
            raise OSError(f"{path} has {path.stat().st_size} bytes, not {_size(layout)}")
        return cls._map(path, layout)

    @classmethod
    def _map(cls, path: Path, layout: dict[str, Any]) -> Self:
        size = _size(layout)
        if not path.exists():
            _reserve(path, size)
        memory = torch.from_file(str(path), shared=True, size=size, dtype=torch.uint8)
        found: dict[str, Tensor | None] = {"directions": None}
        start = 0
        for name, shape, dtype in _parts(layout):
            count = torch.Size(shape).numel() * dtype.itemsize
            found[name] = memory[start : start + count].view(dtype).view(shape)
            start += _aligned(count)
        return cls(**found)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, eq=False)
class Writing:
    """A recording under way; only `finish` gives it its name.

    Attributes:
        layout: shapes and dtypes, plain data, without which the file cannot be read.
    """

    recording: Recording
    layout: dict[str, Any]
    temporary: Path
    path: Path

    def finish(self) -> Recording:
        """Name the file."""
        os.replace(self.temporary, self.path)
        return self.recording

    def discard(self) -> None:
        """Remove the file."""
        self.temporary.unlink(missing_ok=True)


def bytes_of(T: int, x: int, output: int, direction: int) -> int:
    """Bytes of a recording of T steps with tensors of these bytes; 0 for none."""
    return (T + 1) * x + T * (output + direction)


def _reserve(path: Path, size: int) -> None:
    """Make a file of this many bytes, which are there: a disk that fills up later would end the process."""
    try:
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise CalibrationError(
            f"the recording of a run, {size} bytes, cannot be written to {path.parent} ({reason(error)}); make room, "
            "or name a folder elsewhere: checkpoint="
        ) from error


def _layout(T: int, x: Tensor, output: Tensor, direction: Tensor | None) -> dict[str, Any]:
    layout = {"T": T, "latents": _kind(x), "outputs": _kind(output)}
    return layout if direction is None else {**layout, "directions": _kind(direction)}


def _kind(x: Tensor) -> list[Any]:
    return [list(x.shape), str(x.dtype).removeprefix("torch.")]


def _parts(layout: dict[str, Any]) -> list[tuple[str, list[int], torch.dtype]]:
    rows = {"latents": layout["T"] + 1, "outputs": layout["T"], "directions": layout["T"]}
    return [
        (name, [count, *layout[name][0]], getattr(torch, layout[name][1]))
        for name, count in rows.items()
        if name in layout
    ]


def _aligned(count: int) -> int:
    return -(-count // _ALIGNED) * _ALIGNED


def _size(layout: dict[str, Any]) -> int:
    return sum(_aligned(torch.Size(shape).numel() * dtype.itemsize) for _, shape, dtype in _parts(layout))
