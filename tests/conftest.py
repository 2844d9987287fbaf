"""Shared fixtures. Being here, this file puts the folder on the import path: `from dummies import …`."""

from typing import Any

import pytest


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
