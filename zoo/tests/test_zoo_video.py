"""The parts of the small video models, their training and their folders."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import CogVideoXPipeline, WanPipeline
from safetensors.torch import load_file

from ertacache.opensora import OpenSoraPipeline
from ertacache.pipelines.loading import call_arguments, load_pipeline
from ertacache_zoo import catalogue, clip_text, clips, cogvideox, components, motion, open_sora, video, wan
from ertacache_zoo.train import train_model
from ertacache_zoo.training import Recipe

MODULES: dict[str, Any] = {"tiny-wan": wan, "tiny-cogvideox": cogvideox, "tiny-open-sora": open_sora}
PIPELINES: dict[str, Any] = {
    "tiny-wan": WanPipeline, "tiny-cogvideox": CogVideoXPipeline, "tiny-open-sora": OpenSoraPipeline,
}  # fmt: skip
BLOCKS = {
    "tiny-wan": ["blocks"],
    "tiny-cogvideox": ["transformer_blocks"],
    "tiny-open-sora": ["spatial_blocks", "temporal_blocks"],
}


@pytest.mark.parametrize("name", MODULES)
def test_the_transformer_has_the_promised_size(name: str):
    model = MODULES[name].transformer()
    assert 1_700_000 <= sum(p.numel() for p in model.parameters()) <= 3_000_000
    assert sum(len(getattr(model, part)) for part in BLOCKS[name]) >= 6


@pytest.mark.parametrize("name", ["tiny-wan", "tiny-cogvideox"])
def test_the_autoencoder_shrinks_time_and_space_by_four(name: str):
    vae = components.seeded(MODULES[name].autoencoder, seed=0)
    latents = vae.encode(torch.zeros(1, 3, 9, 48, 48)).latent_dist.mean
    assert latents.shape == (1, 8, 3, 12, 12)
    assert vae.decode(latents).sample.shape == (1, 3, 9, 48, 48)


@torch.no_grad()
def test_wans_untrained_autoencoder_takes_every_frame_for_a_still():
    vae: Any = components.seeded(wan.autoencoder, seed=0)
    still = torch.rand(1, 3, 1, 24, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    other = -still
    frames = vae.decode(vae.encode(torch.cat([still] * 5 + [other] * 4, 2)).latent_dist.mean).sample
    alone = vae.decode(vae.encode(torch.cat([other] * 9, 2)).latent_dist.mean).sample
    # What came before leaves no trace, and every four frames of one picture come out alike.
    assert torch.allclose(frames[:, :, 5:], alone[:, :, 5:], atol=1e-5)
    assert torch.allclose(alone[:, :, 1:5], alone[:, :, 5:], atol=1e-5)
    assert not torch.allclose(frames[:, :, 4], frames[:, :, 5], atol=1e-2)


class _Halves:
    """Stands in for an autoencoder: latents are every fourth pixel of every fourth frame."""

    def __init__(self) -> None:
        self.encoded = 0

    def encode(self, batch: torch.Tensor) -> Any:
        self.encoded += len(batch)
        latents = batch[:, :, ::4, ::4, ::4]
        return type("Encoded", (), {"latent_dist": type("Posterior", (), {"mean": latents})})


def test_latents_that_lie_in_the_work_folder_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(video, "_CHUNK", 2)
    vae, drawn = _Halves(), clips.sample(5, 1, "train")
    latents = video.pool_latents(vae, drawn, tmp_path)
    assert latents.shape == (5, 3, 3, 12, 12)
    assert vae.encoded == 5
    # Signed pixels of eight bits: the first clip of the second chunk, drawn with that chunk's seed.
    frames = (clips.render(drawn[2:4], 4)[0] * 255).round() / 127.5 - 1
    assert torch.allclose(latents[2], frames.transpose(0, 1)[:, ::4, ::4, ::4], atol=1e-6)
    (tmp_path / "latents" / "000002.pt").unlink()
    assert torch.equal(video.pool_latents(vae, drawn, tmp_path), latents)
    assert vae.encoded == 7


def test_latents_are_normalised_by_channel():
    latents = torch.randn(20, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    latents = latents * torch.tensor([3.0, 0.5]).view(1, 2, 1, 1, 1) + torch.tensor([1.0, -2.0]).view(1, 2, 1, 1, 1)
    scaled, mean, std = video.normalised(latents)
    assert mean == pytest.approx(latents.mean((0, 2, 3, 4)).tolist())
    assert std == pytest.approx(latents.std((0, 2, 3, 4)).tolist())
    assert torch.allclose(scaled.mean((0, 2, 3, 4)), torch.zeros(2), atol=1e-5)
    assert torch.allclose(scaled.std((0, 2, 3, 4)), torch.ones(2), atol=1e-5)


def _toy(name: str, work: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The whole training, one step each."""
    monkeypatch.setattr(video, "POOL", 6)
    monkeypatch.setattr(video, "AUTOENCODER_CLIPS", 2)
    monkeypatch.setattr(video, "_RECONSTRUCTED", 2)
    monkeypatch.setattr(clip_text, "RECIPE", Recipe(1, 2, 1e-3, seed=3))
    recipes = [stage for stage, value in vars(MODULES[name]).items() if isinstance(value, Recipe)]
    for stage in recipes:
        monkeypatch.setattr(MODULES[name], stage, Recipe(1, 2, 1e-3, seed=3))
    (work / "run").mkdir(parents=True, exist_ok=True)
    for stage in ("text", *recipes):
        (work / "run" / f"{stage.lower()}.jsonl").touch()
    return train_model(name, work, out, compiled=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_training_ends_in_a_folder_that_loads_and_draws(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = _toy(name, tmp_path / "work", tmp_path / name, monkeypatch)
    files = {path.name for path in out.iterdir()}
    assert {"call.json", "training.json", "README.md", "model_index.json", "training-transformer.jsonl"} <= files
    facts = json.loads((out / "training.json").read_text())
    assert facts["pool"] == 6
    assert {(recipe["iterations"], recipe["batch_size"]) for recipe in facts["recipes"].values()} == {(1, 2)}
    assert 0 < facts["autoencoder_psnr"] < 40
    pipe = load_pipeline(str(out))
    assert type(pipe) is PIPELINES[name]
    pipe.set_progress_bar_config(disable=True)
    call = {**call_arguments(str(out), {}), "num_inference_steps": 3}
    caption = clips.sample(1, 0, "heldout")[0].caption
    frames = pipe(caption, **call, output_type="pt", generator=torch.Generator().manual_seed(0)).frames
    assert frames.shape == (1, 9, 3, 48, 48)
    stored = load_file(out / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    # Training once more from the same folder finds everything done and gives the same weights.
    again = _toy(name, tmp_path / "work", tmp_path / "again", monkeypatch)
    for part in ("transformer", "vae"):
        weights = "diffusion_pytorch_model.safetensors"
        assert (again / part / weights).read_bytes() == (out / part / weights).read_bytes()


@pytest.mark.parametrize("name", ["tiny-wan", "tiny-cogvideox"])
def test_training_sees_the_text_as_the_pipeline_makes_it(name: str):
    module, tokenizer = MODULES[name], clip_text.tokenizer()
    encoder = components.seeded(module.text_encoder, tokenizer, seed=0)
    parts: dict[str, Any] = {"vae": module.autoencoder(), "transformer": module.transformer()}
    pipe = PIPELINES[name](tokenizer=tokenizer, text_encoder=encoder, scheduler=module.scheduler(), **parts)
    captions = [clip.caption for clip in clips.sample(3, 0, "train")]
    text = video.text_embeddings(pipe, captions, clip_text.MAX_SEQUENCE_LENGTH)
    assert text.shape == (4, clip_text.MAX_SEQUENCE_LENGTH, module.TEXT_WIDTH)
    options: dict[str, Any] = {"max_sequence_length": clip_text.MAX_SEQUENCE_LENGTH}
    cond, uncond = pipe.encode_prompt(captions[1], "", True, **options)
    assert torch.allclose(text[1], cond[0], atol=1e-5)
    assert torch.allclose(text[-1], uncond[0], atol=1e-5)
    # Wan keeps what it has read and fills up with zeros: the empty caption is its end mark alone.
    assert bool((text[-1, 1:] == 0).all()) == (name == "tiny-wan")


def test_wans_decoder_learns_motion_and_its_latents_stay(tmp_path: Path):
    vae: Any = components.seeded(wan.autoencoder, seed=0)
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    pixels = (clips.render(clips.sample(2, 1, "train"), 0) * 255).byte()
    motion.train_on_motion(vae, pixels, tmp_path, Recipe(1, 1, 1e-3, warmup=1), decoder_only=True)
    changed = {name for name, tensor in vae.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.startswith(("decoder.", "post_quant_conv.")) for name in changed)
    assert not any(parameter.requires_grad for parameter in vae.parameters())


def test_wan_learns_the_velocity_at_the_timesteps_of_its_solver(tmp_path: Path):
    seen: list[dict[str, torch.Tensor]] = []

    class Spy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, **given: Any) -> tuple[torch.Tensor]:
            seen.append(given)
            return (given["hidden_states"] * self.weight,)

    latents = torch.randn(4, 8, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    text = torch.arange(5.0)[:, None, None].expand(5, 24, 96)
    model: Any = Spy()
    wan.train_transformer(model, latents, text, tmp_path, Recipe(50, 16, 0.0), compiled=False)
    timesteps = torch.cat([given["timestep"] for given in seen])
    assert torch.equal(timesteps, timesteps.floor())
    assert 0 <= timesteps.min() and timesteps.max() <= 999
    # A model that says zero has the loss of the velocity itself: noise - latents, of variance 2.
    (line,) = (tmp_path / "transformer.jsonl").read_text().splitlines()
    assert json.loads(line)["loss"] == pytest.approx(2.0, abs=0.03)
    rows = torch.cat([given["encoder_hidden_states"][:, 0, 0] for given in seen])
    assert (rows == 4).float().mean().item() == pytest.approx(wan.CAPTION_DROPOUT, abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("name", catalogue.VIDEO_NAMES)
def test_a_bundled_model_is_small_documented_and_loads(name: str):
    folder = catalogue.folder(name)
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 8 * 2**20
    assert {"call.json", "training.json", "README.md", "model_index.json"} <= {path.name for path in folder.iterdir()}
    assert json.loads((folder / "call.json").read_text()) == MODULES[name].CALL
    assert not any("_name_or_path" in path.read_text() for path in folder.rglob("*.json"))
    pipe = load_pipeline(name)
    assert type(pipe) is PIPELINES[name]
    # The latents that the bundled autoencoder makes are those that its transformer was trained on.
    assert json.loads((folder / "training.json").read_text())["autoencoder_psnr"] == pytest.approx(
        video.reconstruction(pipe.vae), abs=0.02
    )
