"""Shared fixtures. Being here, this file puts the folder on the import path: `from dummies import …`."""

import logging
import os
from pathlib import Path
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


@pytest.fixture(scope="module")
def small() -> Any:
    """A device's pipeline, with the weights of the server's, so that a split run must be the whole one."""
    import small_images

    return small_images.stable_diffusion().pipe


@pytest.fixture(scope="module")
def whole(small: Any) -> Any:
    """What that pipeline draws by itself of `split_http.call()`."""
    import split_http

    return small(**split_http.call())[0]


@pytest.fixture(scope="module")
def assisted_plan() -> Any:
    """The mixture pipeline, a small model beside it, and a profile that predicts from both: `assisted.Plan`."""
    import assisted
    from dummy_pipeline import mixture_pipeline

    pipe, predictor = mixture_pipeline(), assisted.other()
    return pipe, predictor, assisted.calibrated(pipe, predictor)


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A folder of three files of one prompt, named as VBench wants them."""
    from ertacache.evaluation.vbench.scores import video_name

    folder = tmp_path / "videos"
    folder.mkdir()
    for index in range(3):
        (folder / video_name("a dog, running", index)).write_bytes(b"mp4" * (index + 1))
    return folder
