"""A history that waits in the host's memory, so that the device holds none of it between steps."""

import weakref
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from ertacache.core.history import History, storage_bytes
from ertacache.errors import InvalidArgument

#: Where a history waits between steps: on the device (None) or in the host's memory.
Offload = Literal["cpu"] | None


def check_offload(value: str | None) -> Offload:
    """`value`, if a history can wait there.

    Raises:
        InvalidArgument: it cannot.
    """
    if value is not None and value != "cpu":
        raise InvalidArgument(f"offload_history is {value!r}; choose 'cpu', or None to keep histories on the device")
    return value


def history_for(levels: int | Mapping[str, int], offload: Offload) -> History:
    """An empty history of that depth, which waits there."""
    return HostHistory(levels) if offload == "cpu" else History(levels)


class HostHistory(History):
    """A history kept in the host's memory; outputs and inputs come back to the device when they are asked for.

    Buffers are allocated once and reused, also in later runs of the same size. For a CUDA device they are pinned and
    both ways are asynchronous: the host never waits. On the CPU the buffers are what is computed with.

    Args:
        levels: see `History`.
    """

    def __init__(self, levels: int | Mapping[str, int]) -> None:
        super().__init__(levels)
        self._buffers: list[Tensor] = []
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._input_kept: tuple[weakref.ref[Tensor], Tensor] | None = None

    def clear(self) -> None:
        super().clear()
        self._input_kept = None

    @property
    def nbytes(self) -> int:
        return 0

    @property
    def host_nbytes(self) -> int:
        """Bytes of the buffers, those waiting for the next step or run included."""
        return storage_bytes(self._buffers)

    def _keep(self, output: Tensor, copy: bool) -> Tensor:
        buffer = self._free_buffer(output)
        if output.device.type == "cuda":
            # The copy is made while the pipeline goes on, which may change the output.
            self._send(output.clone() if copy else output, buffer)
        else:
            buffer.copy_(output.detach())
        return buffer

    def _keep_input(self, x: Tensor) -> Tensor:
        """One buffer for an input that the calls of a step share."""
        if self._input_kept is not None:
            known, buffer = self._input_kept
            if known() is x and any(kept is buffer for kept in self._inputs.values()):
                return buffer
        buffer = self._keep(x, copy=False)
        self._input_kept = weakref.ref(x), buffer
        return buffer

    def _fetch(self, kept: Tensor) -> Tensor:
        if self.device.type == "cpu":
            return kept
        if self.device.type != "cuda":
            return kept.to(self.device)
        # On the stream that uses it, once what was sent has arrived.
        torch.cuda.current_stream(self.device).wait_stream(self._stream(self.device))
        return kept.to(self.device, non_blocking=True)

    def _send(self, value: Tensor, buffer: Tensor) -> None:
        """Copy from a CUDA device into a pinned buffer, beside the stream that computes."""
        stream = self._stream(value.device)
        # Until `value` is computed, and until everything that was fetched from this buffer has left it.
        stream.wait_stream(torch.cuda.current_stream(value.device))
        with torch.cuda.stream(stream):
            buffer.copy_(value.detach(), non_blocking=True)
        value.record_stream(stream)  # its memory is not given to another tensor before the copy is made

    def _stream(self, device: torch.device) -> torch.cuda.Stream:
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        return self._streams[device]

    def _free_buffer(self, value: Tensor) -> Tensor:
        """A buffer like `value` that holds nothing; where there is none, those of another size give way to it."""
        held = {id(kept) for kept in self._held()}
        for buffer in self._buffers:
            if id(buffer) not in held and (buffer.shape, buffer.dtype) == (value.shape, value.dtype):
                return buffer
        self._buffers = [buffer for buffer in self._buffers if id(buffer) in held]
        with torch.inference_mode(False):  # so that it can be written inside and outside of that mode
            buffer = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.device.type == "cuda")
        self._buffers.append(buffer)
        return buffer
