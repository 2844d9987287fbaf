"""A Ray of two CPUs on this machine for a whole test module, with its token in a file of its own."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

#: Where the deployment of Ray Serve lies.
EXAMPLES = str(Path(__file__).parents[1] / "examples")
#: Ray gives a machine 30 s to start, and a busy one needs more: it is tried again.
TRIES = 4
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_register_timeout_seconds": "300",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "120",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
}


@contextmanager
def started(folder: Path) -> Iterator[Any]:
    """Ray itself, shut down at the end; nothing of it is left in the home folder.

    Args:
        folder: a short one: sockets lie in it.
    """
    with pytest.MonkeyPatch.context() as patch:
        # Ray asks for a token unless it is told not to; the home folder is only where it keeps one by default.
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(folder / "token"))
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (EXAMPLES, *sys.path))))
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        (folder / "token").write_text("0123456789abcdef" * 4)
        patch.setitem(os.environ, "RAY_AUTH_MODE", "")  # so that it is put back as it was
        del os.environ["RAY_AUTH_MODE"]
        import ray

        _start(ray, folder)
        try:
            yield ray
        finally:
            ray.shutdown()


def _start(ray: Any, folder: Path) -> None:
    for left in reversed(range(TRIES)):
        try:
            ray.init(
                num_cpus=2, num_gpus=0, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False,
                _temp_dir=str(folder / f"{left}"), configure_logging=False,
            )  # fmt: skip
            return
        except Exception as error:
            ray.shutdown()
            if not left or "timed out during startup" not in str(error):
                raise
