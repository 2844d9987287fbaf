"""What the training of tiny-cogvideox has to itself."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ertacache_zoo import clip_text, clips, cogvideox, components, motion
from ertacache_zoo.training import Recipe


def _noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_what_is_learned_from_stills_holds_for_each_frame_of_a_clip():
    vae: Any = components.seeded(cogvideox.autoencoder, seed=0)
    convolution, still, clip = vae.encoder.conv_in, _noise(1, 3, 1, 8, 8), _noise(1, 3, 9, 8, 8, seed=1)
    before, latents = convolution(still)[0], vae.encode(still).latent_dist.mean
    cogvideox.frame_by_frame(vae)
    assert torch.allclose(convolution(still)[0], before, atol=1e-5)
    assert torch.allclose(vae.encode(still).latent_dist.mean, latents, atol=1e-4)
    whole = convolution(clip)[0]
    for n in range(9):
        assert torch.allclose(whole[:, :, n : n + 1], convolution(clip[:, :, n : n + 1])[0], atol=1e-5)


@torch.no_grad()
def test_every_block_starts_as_the_identity():
    model = components.seeded(cogvideox.transformer, seed=0)
    video, text, time = _noise(2, 108, 128), _noise(2, 24, 128, seed=1), _noise(2, 64, seed=2)
    for block in model.transformer_blocks:
        after, words = block(hidden_states=video, encoder_hidden_states=text, temb=time)
        assert torch.equal(after, video)
        assert torch.equal(words, text)


def test_latents_are_scaled_by_one_factor_and_come_as_the_pipeline_makes_them():
    means = torch.arange(8.0).view(1, 8, 1, 1, 1)
    latents = 0.25 * _noise(40, 8, 3, 12, 12) + means
    scaled, factor = cogvideox.scaled(latents)
    assert factor == pytest.approx(4, rel=0.01)
    assert scaled.shape == (40, 3, 8, 12, 12)
    assert torch.equal(scaled.transpose(1, 2), latents * factor)


class _Spy(nn.Module):
    """Answers with the velocity of pure noise, which it knows as the latents are zero; keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.given: list[dict[str, Any]] = []
        self.levels = cogvideox.scheduler().alphas_cumprod

    def forward(self, **given: Any) -> tuple[torch.Tensor]:
        self.given.append(given)
        level = self.levels[given["timestep"]].view(-1, 1, 1, 1, 1)
        return (self.weight * given["hidden_states"] * (level / (1 - level)).sqrt(),)


def test_the_target_is_the_velocity_at_the_solvers_own_noise_levels(tmp_path: Path):
    spy: Any = _Spy()
    text = torch.arange(5.0).view(5, 1, 1).expand(5, 24, 96)
    rotary, latents = (torch.ones(108, 32), torch.zeros(108, 32)), torch.zeros(4, 3, 8, 12, 12)
    cogvideox.train_transformer(spy, latents, text, rotary, tmp_path, Recipe(50, 16, 0.0), compiled=False)
    (line,) = (tmp_path / "transformer.jsonl").read_text().splitlines()
    assert json.loads(line)["loss"] == pytest.approx(0, abs=1e-5)
    timesteps = torch.cat([given["timestep"] for given in spy.given])
    assert 0 <= timesteps.min() < 50
    assert 950 <= timesteps.max() <= 999
    assert all(given["image_rotary_emb"] is rotary for given in spy.given)
    rows = torch.cat([given["encoder_hidden_states"][:, 0, 0] for given in spy.given])
    assert (rows == 4).float().mean().item() == pytest.approx(cogvideox.CAPTION_DROPOUT, abs=0.03)


def test_the_call_is_what_the_parts_were_made_for():
    call, model, vae = cogvideox.CALL, cogvideox.transformer().config, cogvideox.autoencoder().config
    assert call["max_sequence_length"] == model["max_text_seq_length"] == clip_text.MAX_SEQUENCE_LENGTH
    assert call["num_frames"] == model["sample_frames"] == clips.FRAMES
    assert call["height"] == 4 * model["sample_height"] == vae["sample_height"] == clips.CLIP_SIZE
    assert cogvideox.scheduler().alphas_cumprod[-1] == 0


def test_a_pixel_counts_as_much_as_it_changes():
    batch = torch.zeros(1, 3, 4, 2, 2)
    batch[:, :, ::2, 0, 1] = 1
    batch[:, 0, ::2, 1, 0] = 2
    weight = motion.motion_weight(batch)
    assert weight.shape == (1, 1, 1, 2, 2)
    one, third = 1 + motion.EMPHASIS / 2, 1 + motion.EMPHASIS / 3
    assert weight.flatten().tolist() == pytest.approx([1, one, third, 1])


def test_crops_are_taken_where_most_moves(tmp_path: Path):
    seen: list[torch.Tensor] = []

    class Posterior:
        def __init__(self, mean: torch.Tensor) -> None:
            self.mean, self.var, self.logvar = mean, torch.ones_like(mean), torch.zeros_like(mean)

        def sample(self, generator: torch.Generator) -> torch.Tensor:
            return self.mean

    class Copy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def encode(self, batch: torch.Tensor) -> Any:
            seen.append(batch)
            return type("Encoded", (), {"latent_dist": Posterior(batch * self.weight)})

        def decode(self, latents: torch.Tensor) -> Any:
            return type("Decoded", (), {"sample": latents})

    pixels = torch.zeros(2, 9, 3, 48, 48, dtype=torch.uint8)
    pixels[:, ::2, :, :24, :24] = 255
    vae: Any = Copy()
    motion.train_on_motion(vae, pixels, tmp_path, Recipe(40, 8, 0.0))
    assert not vae.weight.requires_grad
    whole = [batch for batch in seen if batch.shape[-1] == 48]
    crops = torch.cat([batch for batch in seen if batch.shape[-1] == 24])
    assert {batch.shape[0] for batch in whole} == {2}
    assert len(whole) / len(seen) == pytest.approx(motion.WHOLE, abs=0.15)
    # A crop anywhere shows on average a quarter of what moves, the best of three of them close to a half.
    assert crops.std(2).gt(0).float().mean() > 0.38
