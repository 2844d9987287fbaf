"""Shared fixtures. Being here, this file puts the folder on the import path: `from dummies import …`."""

import logging
import os
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # As many threads as workers; read by torch when it is imported, and by the processes that tests start.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(autouse=True)
def unset_log_level() -> None:
    """A command sets the level of the package's logger for its process; the next test starts without."""
    logging.getLogger("ertacache").setLevel(logging.NOTSET)


@pytest.fixture
def flux() -> Any:
    """One call per step, guidance embedded. Built anew for each test: 40 ms, and nothing leaks."""
    import pipelines

    return pipelines.flux(seed=0)


@pytest.fixture
def flux_cfg() -> Any:
    """Two calls per step, to be called with `CFG_CALL`."""
    import pipelines

    return pipelines.flux(guidance_embeds=False, seed=5)
