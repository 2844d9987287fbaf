"""Recordings of uncached runs: the run's own tensors, bit for bit, in their dtype; a whole file has its name."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pipelines
from dummy_pipeline import PROMPTS, mixture_pipeline
from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.pipeline_run import run_pipeline
from ertacache.calibration.recording import Recording, bytes_of
from ertacache.runtime.run import Controller, Run

CALL: dict[str, Any] = {"num_inference_steps": 5, "guidance_scale": 5.0}


class Kept(Controller):
    """The tensors of a run."""

    replays = True

    def __init__(self) -> None:
        self.latents, self.outputs = list[Tensor](), list[Tensor]()

    def for_run(self, run: Run) -> Controller:
        return self

    def solve(self, run: Run, output: Tensor, x: Tensor) -> Tensor:
        self.latents.append(x.clone())
        self.outputs.append(output.clone())
        return output

    def end_step(self, run: Run, x_next: Tensor) -> None:
        if run.step == run.T - 1:
            self.latents.append(x_next.clone())


def flux(dtype: torch.dtype) -> Any:
    return pipelines.flux(guidance_embeds=False, seed=5).to(dtype)


@pytest.mark.parametrize("batch_size", [None, 1])
@pytest.mark.parametrize(
    ("pipe", "call", "dtype"),
    [
        (mixture_pipeline, CALL, torch.float64),
        (lambda: flux(torch.float32), {**pipelines.CFG_CALL, "num_inference_steps": 4}, torch.float32),
        (lambda: flux(torch.bfloat16), {**pipelines.CFG_CALL, "num_inference_steps": 4}, torch.bfloat16),
    ],
    ids=["float64", "float32", "bfloat16"],
)
def test_a_recording_is_the_run_bit_for_bit(pipe: Any, call: Any, dtype: torch.dtype, batch_size: int | None):
    prompts = PROMPTS if dtype == torch.float64 else pipelines.PROMPTS[:3]
    made = pipe()
    run = Calibrator(made, prompts, choose=0.34, seed=3, call=call, batch_size=batch_size)
    for recording, batch in zip(run.reference.recordings, run.batches, strict=True):
        kept = Kept()
        run_pipeline(made, batch, kept, call, decode=False)
        # A solver may keep its sample in float32 between two steps of half precision.
        assert recording.outputs.dtype == dtype and recording.latents.dtype == kept.latents[0].dtype
        assert torch.equal(recording.outputs, torch.stack(kept.outputs))
        assert torch.equal(recording.latents, torch.stack([x.to(recording.latents.dtype) for x in kept.latents]))
        assert recording.directions is not None and recording.directions.shape == recording.outputs.shape


def test_a_file_is_whole_before_it_has_its_name(tmp_path: Path):
    path, x = tmp_path / "run.bin", torch.arange(6.0, dtype=torch.bfloat16).reshape(2, 3)
    writing = Recording.create(path, 2, x.float(), x, None)
    assert not path.exists() and [one.suffix for one in tmp_path.iterdir()] == [".tmp"]
    writing.recording.latents.copy_(torch.arange(18.0).reshape(3, 2, 3))
    writing.recording.outputs.copy_(torch.stack([x, -x]))
    writing.finish()
    assert [one.name for one in tmp_path.iterdir()] == ["run.bin"]
    again = Recording.open(path, writing.layout)
    assert again.T == 2 and again.directions is None and again.outputs.dtype == torch.bfloat16
    assert torch.equal(again.latents, torch.arange(18.0).reshape(3, 2, 3))
    assert torch.equal(again.outputs, torch.stack([x, -x]))
    with pytest.raises(OSError, match=r"run\.bin has 192 bytes, not \d+"):
        Recording.open(path, {**writing.layout, "T": 20})


def test_a_run_that_fails_leaves_no_file(tmp_path: Path):
    pipe = mixture_pipeline()
    pipe.fail_at = 1
    run = Calibrator(pipe, PROMPTS, choose=0.25, seed=3, call=CALL, checkpoint=tmp_path / "runs")
    with pytest.raises(ConnectionError):
        _ = run.reference
    assert [one.name for one in (tmp_path / "runs").iterdir()] == ["calibration.json"]


def test_the_bytes_are_those_of_the_tensors(tmp_path: Path):
    x = torch.zeros(1, 64, 64, dtype=torch.bfloat16)
    writing = Recording.create(tmp_path / "run.bin", 7, x, x.float(), x)
    assert writing.temporary.stat().st_size == bytes_of(7, x.nbytes, 2 * x.nbytes, x.nbytes) == 8192 * (8 + 7 * 3)
