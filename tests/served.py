"""A server on loopback, in a thread of this process, and pipelines to hold still."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import uvicorn

from ertacache.serving.app import make_app
from ertacache.serving.service import Service


def until(done: Any, seconds: float = 60.0) -> None:
    """Wait for something that happens in another thread."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


@contextmanager
def running(service: Service, *, warm: bool = True, app: Any = None) -> Iterator[str]:
    """The address of a server that is warm, unless that is not waited for; of pictures, unless an app is given."""
    server = uvicorn.Server(
        uvicorn.Config(app or make_app(service), port=0, log_level="error", ws="none", timeout_graceful_shutdown=5)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        if warm:
            until(lambda: service.ready or service.broken)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


class Held:
    """Counts a denoiser's calls, and stops in one of them until it is released."""

    def __init__(self, denoiser: Any) -> None:
        self.calls, self.at = 0, -1
        self.reached, self.released = threading.Event(), threading.Event()
        self._handle = denoiser.register_forward_pre_hook(self._called)

    def _called(self, *_: Any) -> None:
        self.calls += 1
        if self.calls == self.at:
            self.reached.set()
            assert self.released.wait(60), "nobody released it"

    def hold(self, at: int) -> None:
        """In the call of that number from now on."""
        self.calls, self.at = 0, at
        self.reached.clear()
        self.released.clear()

    def queue(self, requests: Sequence[threading.Thread], service: Service) -> None:
        """The first request is held, the others wait behind it in their order; then all are let go to their end."""
        self.hold(1)
        for n, request in enumerate(requests):
            request.start()
            assert self.reached.wait(60)
            until(lambda n=n: len(service.queue.waiting) == n)
        self.released.set()
        for request in requests:
            request.join()

    def remove(self) -> None:
        self._handle.remove()
