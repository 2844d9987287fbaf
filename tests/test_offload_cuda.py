"""Histories in the host's memory: the order of a GPU's copies, on streams that only take notes."""

import contextlib
import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ertacache.core.offload import HostHistory


class Cuda:
    """What `offload` uses of torch.cuda, on streams that note the order in which they are given work.

    A "device" tensor is one on the CPU whose `device` says otherwise.
    """

    def __init__(self) -> None:
        self.log: list[str] = []
        self.running = Stream(self, "main")
        self.made = 0

    def Stream(self, device: torch.device) -> "Stream":
        self.made += 1
        return Stream(self, "side")

    def current_stream(self, device: torch.device) -> "Stream":
        return self.running

    @contextlib.contextmanager
    def stream(self, stream: "Stream") -> Iterator[None]:
        before, self.running = self.running, stream
        yield
        self.running = before


class Stream:
    def __init__(self, cuda: Cuda, name: str) -> None:
        self.cuda, self.name = cuda, name

    def wait_stream(self, other: "Stream") -> None:
        self.cuda.log.append(f"{self.name} waits for {other.name}")


class OnDevice(torch.Tensor):
    """Pretends to be on a GPU."""

    cuda: Cuda

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", 0)

    def record_stream(self, stream: Stream) -> None:
        self.cuda.log.append(f"memory is kept for {stream.name}")

    def clone(self) -> "OnDevice":
        self.cuda.log.append(f"clone on {self.cuda.running.name}")
        return on_device(torch.Tensor.clone(self), self.cuda)

    def detach(self) -> "OnDevice":
        return self


class Pinned(torch.Tensor):
    """A buffer in the host's memory."""

    cuda: Cuda

    def copy_(self, value: torch.Tensor, non_blocking: bool = False) -> "Pinned":
        self.cuda.log.append(f"copy to the host on {self.cuda.running.name}{', not waiting' * non_blocking}")
        return super().copy_(value.as_subclass(torch.Tensor))

    def to(self, device: Any, non_blocking: bool = False) -> Any:
        assert torch.device(device).type == "cuda"
        self.cuda.log.append(f"copy to the device on {self.cuda.running.name}{', not waiting' * non_blocking}")
        return on_device(self.as_subclass(torch.Tensor).clone(), self.cuda)


def on_device(value: torch.Tensor, cuda: Cuda) -> OnDevice:
    moved = value.as_subclass(OnDevice)
    moved.cuda = cuda
    return moved


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    fake, empty, pinned = Cuda(), torch.empty, []

    def allocate(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        pinned.append(pin_memory)
        buffer = empty(*args, **kwargs).as_subclass(Pinned)
        buffer.cuda = fake
        return buffer

    for name in ("Stream", "current_stream", "stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    monkeypatch.setattr(torch, "empty", allocate)
    fake.pinned = pinned  # type: ignore[attr-defined]
    return fake


def test_the_order_of_copies_on_a_gpu(cuda: Any) -> None:
    """Out: once the output is there, beside the stream that computes, from a copy the pipeline cannot touch.
    Back: once everything sent has arrived, on the stream that uses it."""
    history, values = HostHistory(1), torch.arange(4.0)[None]
    output, x = on_device(values.clone(), cuda), on_device(values + 10, cuda)
    history.push("cond", output, x, copy=True)
    sent = ["side waits for main", "copy to the host on side, not waiting", "memory is kept for side"]
    assert cuda.log == ["clone on main", *sent, *sent]  # the input is not copied first: nobody changes it
    assert cuda.pinned == [True, True] and cuda.made == 1
    cuda.log.clear()
    fetched = history.output("cond", 0)
    assert isinstance(fetched, OnDevice) and torch.equal(fetched.as_subclass(torch.Tensor), values)
    assert cuda.log == ["main waits for side", "copy to the device on main, not waiting"]
    assert torch.equal(history.input("cond").as_subclass(torch.Tensor), values + 10)
    history.push("cond", output, x, copy=True)
    assert cuda.pinned == [True, True] and cuda.made == 1  # buffers and stream are there already
    assert (history.nbytes, history.host_nbytes) == (0, 2 * 16)


def test_nothing_of_a_gpu_history_stays_there(cuda: Any) -> None:
    def alive() -> int:
        gc.collect()
        return sum(not found.is_meta for found in gc.get_objects() if type(found) is OnDevice)

    history, before = HostHistory(2), alive()
    for n in range(3):
        history.push("cond", on_device(torch.full((1, 4), float(n)), cuda), copy=True)
    assert alive() == before
    assert [float(history.output("cond", level)[0, 0]) for level in range(2)] == [2.0, 1.0]
