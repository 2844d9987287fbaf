"""Figure 6 on a small random pipeline, and how every figure keeps, resumes and refuses."""

import dataclasses
import functools
import json
import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import ertacache
from ertacache.calibration.pipeline_run import call_pipeline
from ertacache.calibration.prompts import Prompts
from ertacache.core.schedule import Schedule
from ertacache.errors import CalibrationError, InvalidArgument, UnsupportedPipeline
from ertacache.evaluation.reproduce import figure6
from ertacache.evaluation.reproduce import request as requests
from ertacache.evaluation.reproduce.figures import run_figure
from ertacache.evaluation.reproduce.kept import kept
from ertacache.evaluation.reproduce.request import Request, checked
from ertacache.profile.profile import Profile
from pipelines import flux
from reproduced import SMALL_CALL, small_request


def received(pipe: Any, prompt: Prompts, plan: Profile | None) -> torch.Tensor:
    """What the solver receives [T, N, C], seen below everything else."""
    seen, step = list[torch.Tensor](), pipe.scheduler.step

    @functools.wraps(step)
    def watched(output: torch.Tensor, *rest: Any, **more: Any) -> Any:
        seen.append(output.clone())
        return step(output, *rest, **more)

    pipe.scheduler.step = watched
    with nullcontext() if plan is None else ertacache.apply(pipe, plan):
        call_pipeline(pipe, prompt, SMALL_CALL)
    del pipe.scheduler.step
    return torch.cat(seen).double()


def test_errors_are_those_of_what_the_solver_receives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    request = small_request(monkeypatch, tmp_path, "figure6", seed=70)
    document, prompts = run_figure(request), checked(request).prompts
    maps = json.loads((request.out / "figure6.json").read_text())["maps"]
    assert "maps" not in document and sorted(path.name for path in request.out.iterdir()) == [
        "cached.safetensors", "figure6.json", "figure6.png", "figure6.svg", "setting.json",
    ]  # fmt: skip
    pipe, plan = flux(), Profile.load(str(request.out / "cached.safetensors"))
    seeded = [Prompts((prompt,), 70 + n) for n, prompt in enumerate(prompts)]
    errors = torch.stack([received(pipe, one, plan) - received(pipe, one, None) for one in seeded])
    # Tokens [prompts, T, N, 4C]: the values of a channel are four neighbours in each token.
    shift = errors.unflatten(-1, (-1, 4)).square().mean((0, 2, 4)).sqrt().T
    torch.testing.assert_close(torch.tensor(document["shift"], dtype=torch.float64), shift, rtol=1e-5, atol=1e-7)
    assert document["steps"] == list(plan.schedule.predicted_steps)
    assert document["shown"] == sorted(shift.square().sum(1).argsort(descending=True)[:3].tolist())
    for row, channel in zip(maps, document["shown"], strict=True):
        for found, step in zip(row, document["steps"], strict=True):
            square = errors[0, step].unflatten(-1, (-1, 4))[:, channel].square().mean()
            drawn = torch.tensor(found, dtype=torch.float64).square().mean()
            torch.testing.assert_close(drawn, square, rtol=1e-3, atol=0)
    _draws_again(request, document, monkeypatch)


def _draws_again(request: Request, document: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its model, and nothing else than what was asked for."""
    pictures = {path: Path(path).read_bytes() for path in document["pictures"]}
    for path in pictures:
        Path(path).unlink()
    monkeypatch.setattr(requests, "load", lambda *given, **options: pytest.fail("loaded"))
    assert run_figure(request) == document
    assert {path: Path(path).read_bytes() for path in pictures} == pictures
    with pytest.raises(InvalidArgument, match=r"out holds a figure of other settings; choose another folder with"):
        run_figure(dataclasses.replace(request, seed=71))
    (request.out / "figure6.json").write_text("{")
    with pytest.raises(InvalidArgument, match=r"figure6.json is damaged \(.*\); delete it: it is measured again"):
        run_figure(request)


def test_packed_tokens_are_taken_apart_as_flux_packs_them():
    from diffusers import FluxPipeline

    latents = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    tokens = FluxPipeline._pack_latents(latents, 2, 3, 4, 6)
    assert torch.equal(figure6.unpacked(tokens, 64, 96), latents)
    with pytest.raises(UnsupportedPipeline, match=r"6 tokens of 12 values, which are no picture of 64 x 64 in patches"):
        figure6.unpacked(tokens, 64, 64)


@pytest.mark.parametrize(
    ("denoiser", "shape", "channel"),
    [
        ("WanTransformer3DModel", (5, 4, 3, 2, 6), 1),
        ("CogVideoXTransformer3DModel", (5, 3, 4, 2, 6), 2),
        ("SD3Transformer2DModel", (5, 4, 2, 6), 1),
    ],
)
def test_channels_come_first_and_a_picture_is_one_frame(denoiser: str, shape: tuple[int, ...], channel: int):
    pipe = SimpleNamespace(transformer=type(denoiser, (nn.Module,), {})())
    outputs = torch.randn(shape)
    found = figure6.by_channel(SimpleNamespace(pipe=pipe, call={}), outputs)  # pyright: ignore[reportArgumentType]
    assert found.shape == (5, 4, 3 if len(shape) == 5 else 1, 2, 6)
    for n in range(4):
        assert torch.equal(found[:, n].reshape(-1), outputs.select(channel, n).reshape(-1))


def test_the_shift_of_a_channel_is_its_own():
    true = torch.zeros(2, 3, 1, 2, 2)
    used = true.clone()
    used[1, 2] = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
    used[0, 0, 0, 0, 0] = 2.0
    found = figure6.channel_shift(
        torch.tensor([1.0, 0.5, 0.0]),
        used,
        true,
        Schedule.from_mask("#."),
    )
    assert found.tolist() == [[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]


def test_the_picture_shows_the_maps_as_they_are(tmp_path: Path):
    maps = torch.arange(2 * 3 * 4.0).reshape(2, 1, 3, 4).tolist()
    document = {
        "model": "m", "T": 3, "K": 2, "schedule": "#.#", "prompts": ["a", "b"], "shift": [[0.0, 1.0, 0.5]] * 3,
        "shown": [0, 2], "steps": [1], "maps": maps,
    }  # fmt: skip
    lines, *places = figure6.draw(document, tmp_path).axes
    assert lines.get_title(loc="left") == "m, 2 of 3 steps computed, 2 prompts"
    labels = [text.get_text() for text in lines.get_legend().get_texts()]
    assert labels == ["predicted step", "other channels", "channel 0", "channel 2"]
    assert [axes.get_ylabel() for axes in places[:2]] == ["channel 0", "channel 2"]
    assert [axes.images[0].get_array().tolist() for axes in places[:2]] == [maps[0][0], maps[1][0]]
    assert figure6.tell(document)[1] == "channel  0: 0.6455, 1.0000 at 1"


def test_a_run_that_diverged_is_not_kept(tmp_path: Path):
    with pytest.raises(
        CalibrationError, match=r"part.json would hold NaN or infinity: a run diverged; take more steps"
    ):
        kept(tmp_path / "part.json", lambda: {"values": [1.0, math.nan]})
    assert not (tmp_path / "part.json").exists()


def test_too_little_memory_is_said_before_the_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ertacache.evaluation.reproduce.memory.free_gib", lambda device: 8.0)
    monkeypatch.setattr(requests, "load", lambda *given, **options: pytest.fail("loaded"))
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(name)
    request = Request(
        "figure6", "flux.1-dev", tmp_path / "out", prompts=tmp_path / "a.txt", calibration_prompts=tmp_path / "b.txt",
        device="cpu",
    )  # fmt: skip
    with pytest.raises(InvalidArgument, match=r"flux.1-dev in bfloat16 needs about 35.0 GiB on cpu"):
        run_figure(request)
