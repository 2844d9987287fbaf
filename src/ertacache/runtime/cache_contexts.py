"""Under which name a pipeline calls its denoiser, where it sets diffusers' cache contexts."""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any


class CacheContexts:
    """The cache context that each thread is in."""

    def __init__(self) -> None:
        self._local = threading.local()

    @property
    def name(self) -> str | None:
        """That of the calling thread, or None."""
        return getattr(self._local, "context", None)

    @contextmanager
    def enter(self, original: Callable[..., Any], _: Any, name: str, *args: Any, **kwargs: Any) -> Generator[None]:
        """In place of a denoiser's `cache_context`."""
        before, self._local.context = self.name, name
        try:
            with original(name, *args, **kwargs):
                yield
        finally:
            self._local.context = before
