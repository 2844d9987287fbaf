"""Where a checkpoint is written, and that a calibration goes on where it cannot be."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from dummy_pipeline import PROMPTS, DummyPipeline, mixture_pipeline
from ertacache.calibration import checkpoint
from ertacache.calibration.calibrate import calibrate
from ertacache.errors import CalibrationError, InvalidArgument
from ertacache.profile.profile import Profile

#: Few judged prompts, which is said.
pytestmark = pytest.mark.filterwarnings("ignore:.*judged prompts cannot tell")


def calibrated(pipe: DummyPipeline, path: Path | None) -> Profile:
    call = {"num_inference_steps": 9, "guidance_scale": 5.0}
    return calibrate(pipe, PROMPTS, compute_steps=7, effort="fast", checkpoint=path, show_progress=False, **call)


def test_a_folder_that_is_missing_is_made(tmp_path: Path):
    path = tmp_path / "missing" / "too" / "runs"
    calibrated(mixture_pipeline(), path)
    assert (path / "calibration.json").is_file()


def test_a_place_that_is_no_folder_of_ours_is_refused_at_once(tmp_path: Path):
    pipe = mixture_pipeline()
    (tmp_path / "file").touch()
    with pytest.raises(InvalidArgument, match=r"file is a file; name a folder, which is made if it is missing"):
        calibrated(pipe, tmp_path / "file")
    with pytest.raises(InvalidArgument, match=r"runs: a file is where one of its folders should be"):
        calibrated(pipe, tmp_path / "file" / "runs")
    with pytest.raises(InvalidArgument, match=r"is a folder with other files \(file\); name an empty or a new one"):
        calibrated(pipe, tmp_path)
    assert pipe.calls == 0 and [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("path", ["", 5, b"runs", True])
def test_what_names_no_folder_is_refused_at_once(path: Any):
    pipe = mixture_pipeline()
    with pytest.raises(InvalidArgument, match=f"checkpoint is {path!r}; name a folder, which is made if it is missing"):
        calibrated(pipe, path)
    with pytest.raises(InvalidArgument, match=f"checkpoint is {path!r}; name a folder"), checkpoint.owned(path):
        pass
    assert pipe.calls == 0


def test_a_disk_without_room_for_a_recording_is_said_before_the_run_goes_on(tmp_path: Path, monkeypatch):
    def full(descriptor: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    pipe = mixture_pipeline()
    message = (
        rf"the recording of a run, {28 * 16 * 8 * 6} bytes, cannot be written to .*runs \(No space left on "
        r"device\); make room, or name a folder elsewhere: checkpoint="
    )
    with pytest.raises(CalibrationError, match=message):
        calibrated(pipe, tmp_path / "runs")
    assert list((tmp_path / "runs").glob("*.bin")) == list((tmp_path / "runs").glob(".*")) == []


def test_a_checkpoint_that_cannot_be_written_is_said_once_and_stops_nothing(tmp_path: Path, monkeypatch, caplog):
    expected = calibrated(mixture_pipeline(), None)

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(checkpoint, "write_atomic", full)
    path = tmp_path / "runs"
    found = calibrated(mixture_pipeline(), path)
    assert torch.equal(found.predictor.a, expected.predictor.a) and found.schedule == expected.schedule
    told = [record.getMessage() for record in caplog.records if record.name == checkpoint.__name__]
    assert told == [f"checkpoint {path} cannot be written (No space left on device); the calibration goes on without"]
