"""What nano-flux is taught, and by which parts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline

from ertacache.runtime.flops import FlopCounter
from ertacache_zoo import components, nano_flux, scenes, trajectories
from ertacache_zoo.flow import Denoiser
from ertacache_zoo.training import Recipe
from pipelines import CALL, PROMPTS, flux, generate

GUIDANCE = 4.0


@pytest.fixture
def pipe() -> Any:
    return flux()


@pytest.fixture
def teacher(pipe: Any) -> Denoiser:
    return Denoiser(pipe.transformer, pipe.text_encoder_2, pipe.text_encoder, False).eval().requires_grad_(False)


def _tokenizers(pipe: Any) -> tuple[Any, Any]:
    return pipe.tokenizer_2, pipe.tokenizer


def test_the_recorded_grid_is_the_pipeline_s(pipe: Any):
    generate(pipe, PROMPTS[:1], {**CALL, "num_inference_steps": trajectories.STEPS})
    assert torch.equal(trajectories.sigmas(), pipe.scheduler.sigmas)


def test_every_step_is_met_and_each_run_begins_at_the_first():
    runs = [trajectories.visited(offset) for offset in range(trajectories.STRIDE)]
    assert runs[1][:4] == [0, 1, 4, 7]
    assert all(run[0] == 0 and len(run) in (10, 11) for run in runs)
    assert {step for run in runs for step in run} == set(range(30))


def test_runs_are_recorded_as_the_solver_makes_them(
    pipe: Any, teacher: Denoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(trajectories, "STRIDE", 10)
    runs = trajectories.record(teacher, GUIDANCE, _tokenizers(pipe), 2, tmp_path)
    grid = trajectories.sigmas()
    assert runs.steps.tolist() == [0, 0, 10, 10, 20, 20]
    assert runs.captions.tolist() == [0, 1] * 3
    states, velocities = runs.states.float().unflatten(0, (3, 2)), runs.velocities.float().unflatten(0, (3, 2))
    noise = torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(1_000_003))
    assert torch.equal(runs.states[:2], noise.half())
    captions = [scene.caption for scene in scenes.sample(2, 3, "train")]
    text = teacher.encode(*components.tokenize(captions, *_tokenizers(pipe)))
    with torch.no_grad():
        first = teacher(noise, torch.ones(2), text, torch.full((2,), GUIDANCE))
    assert torch.equal(runs.velocities[:2], first.half())
    following = torch.stack([*states[1:], runs.finals.float()])
    moves = torch.tensor([float(grid[b] - grid[a]) for a, b in ((0, 10), (10, 20), (20, 30))])
    assert torch.allclose(following, states + moves[:, None, None, None] * velocities, atol=2e-2)

    def fail(*_: Any) -> Any:
        pytest.fail("what a file holds is recorded again")

    monkeypatch.setattr(trajectories, "_runs", fail)
    again = trajectories.record(teacher, GUIDANCE, _tokenizers(pipe), 2, tmp_path)
    assert torch.equal(again.states, runs.states) and torch.equal(again.finals, runs.finals)


def test_the_teacher_itself_has_nothing_to_learn(
    pipe: Any, teacher: Denoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(trajectories, "STRIDE", 15)
    runs = trajectories.record(teacher, GUIDANCE, _tokenizers(pipe), 2, tmp_path)
    teacher.requires_grad_(True)
    nano_flux.distil(teacher, runs, GUIDANCE, tmp_path, Recipe(50, 1, 0.0))
    (line,) = (tmp_path / "distilled.jsonl").read_text().splitlines()
    assert json.loads(line)["loss"] < 1e-4  # the recorded velocities are rounded to halves
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_the_pruned_model_is_a_quarter_of_the_whole_and_goes_in_its_place(pipe: Any):
    call = {**CALL, "num_inference_steps": 6}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nano_flux, "PROBED", 2)
        small = nano_flux.pruned(pipe, call)
    assert (len(small.transformer_blocks), len(small.single_transformer_blocks)) == nano_flux.BLOCKS
    assert small.config.num_attention_heads == 2
    counts = [_operations(pipe, call)]
    pipe.transformer = small
    counts.append(_operations(pipe, call))
    assert counts[1] <= counts[0] / 4


def _operations(pipe: Any, call: dict[str, Any]) -> int:
    """Of the denoiser alone, in one run."""
    with FlopCounter() as counter:
        pipe(PROMPTS[0], **call, output_type="latent")
    with FlopCounter() as texts:
        pipe.encode_prompt(PROMPTS[0], None, max_sequence_length=CALL["max_sequence_length"])
    return counter.total - texts.total


def test_the_light_autoencoder_learns_the_other_one_s_pictures_in_the_denoiser_s_scale(pipe: Any, tmp_path: Path):
    vae = pipe.vae
    vae.register_to_config(scaling_factor=0.5, shift_factor=0.25)
    latents = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    light: Any = nano_flux.autoencoder_of(vae, latents, tmp_path, Recipe(50, 2, 3e-3, warmup=5))
    assert type(light).__name__ == "AutoencoderTiny"
    with torch.no_grad():
        wanted = vae.decode(latents / 0.5 + 0.25).sample
        flat = wanted.mean((0, 2, 3), keepdim=True)
        assert (light.decode(latents).sample - wanted).square().mean() < (flat - wanted).square().mean()
        with FlopCounter() as whole:
            vae.decode(latents)
        with FlopCounter() as small:
            light.decode(latents)
    assert small.total <= whole.total / 5
    # FluxPipeline takes the size of a latent from the autoencoder, and its factors before decoding.
    parts: dict[str, Any] = {**pipe.components, "vae": light}
    drawn: Any = FluxPipeline(**parts)
    drawn.set_progress_bar_config(disable=True)
    assert drawn.vae_scale_factor == 4
    call, generator = {**CALL, "num_inference_steps": 2}, torch.Generator().manual_seed(1)
    packed = drawn(PROMPTS[0], **call, output_type="latent", generator=generator).images
    picture = drawn(PROMPTS[0], **call, output_type="pt", generator=generator.manual_seed(1)).images
    assert picture.shape == (1, 3, 64, 64)
    with torch.no_grad():
        decoded = light.decode(nano_flux.unpacked(packed)).sample
    assert torch.allclose(picture, (decoded / 2 + 0.5).clamp(0, 1), atol=1e-5)
