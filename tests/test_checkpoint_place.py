"""Where a checkpoint is written, and that a calibration goes on where it cannot be."""

import errno
import os
from pathlib import Path

import pytest
import torch

from dummy_pipeline import PROMPTS, DummyPipeline, mixture_pipeline
from ertacache.calibration import checkpoint
from ertacache.calibration.calibrate import calibrate
from ertacache.errors import InvalidArgument
from ertacache.profile.profile import Profile


def calibrated(pipe: DummyPipeline, path: Path | None) -> Profile:
    call = {"num_inference_steps": 9, "guidance_scale": 5.0}
    return calibrate(pipe, PROMPTS, compute_steps=7, checkpoint=path, show_progress=False, **call)


def test_a_folder_that_is_missing_is_made(tmp_path: Path):
    path = tmp_path / "missing" / "too" / "runs.pt"
    calibrated(mixture_pipeline(), path)
    assert path.is_file()


def test_a_place_that_holds_no_file_is_refused_at_once(tmp_path: Path):
    pipe = mixture_pipeline()
    with pytest.raises(InvalidArgument, match=rf"{tmp_path} is a folder; name a file for the checkpoint"):
        calibrated(pipe, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InvalidArgument, match=r"runs\.pt: a file is where one of its folders should be"):
        calibrated(pipe, tmp_path / "file" / "runs.pt")
    assert pipe.calls == 0


def test_a_checkpoint_that_cannot_be_written_is_said_once_and_stops_nothing(tmp_path: Path, monkeypatch, caplog):
    expected = calibrated(mixture_pipeline(), None)

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(checkpoint, "write_atomic", full)
    path = tmp_path / "runs.pt"
    found = calibrated(mixture_pipeline(), path)
    assert torch.equal(found.predictor.a, expected.predictor.a) and found.schedule == expected.schedule
    told = [record.getMessage() for record in caplog.records if record.name == checkpoint.__name__]
    assert told == [f"checkpoint {path} cannot be written (No space left on device); the calibration goes on without"]
