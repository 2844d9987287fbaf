"""A Ray of two CPUs on loopback for a whole test module, with its token in a file of its own."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

#: Where the deployment of Ray Serve lies.
EXAMPLES = str(Path(__file__).parents[1] / "examples")


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
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        (folder / "token").write_text("0123456789abcdef" * 4)
        patch.setitem(os.environ, "RAY_AUTH_MODE", "")  # so that it is put back as it was
        del os.environ["RAY_AUTH_MODE"]
        import ray

        ray.init(
            num_cpus=2, num_gpus=0, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False,
            _temp_dir=str(folder), configure_logging=False,
        )  # fmt: skip
        try:
            yield ray
        finally:
            ray.shutdown()
