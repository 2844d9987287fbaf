"""What the training of tiny-open-sora's autoencoder has to itself."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ertacache.opensora.causal_convolution import CausalConv3d
from ertacache_zoo import components, motion, open_sora, video
from ertacache_zoo.training import Recipe


def _noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def vae() -> Any:
    return components.seeded(open_sora.autoencoder, seed=0)


@torch.no_grad()
def test_the_autoencoder_shrinks_time_and_space_by_four(vae: Any):
    latents = vae.encode(torch.zeros(1, 3, 9, 48, 48)).latent_dist.mean
    assert latents.shape == (1, 8, 3, 12, 12)
    assert video.decoded(vae, latents, torch.zeros(1, 3, 9, 48, 48)).shape == (1, 3, 9, 48, 48)
    assert 1_800_000 < sum(p.numel() for p in vae.parameters()) < 1_950_000


@torch.no_grad()
def test_untrained_every_frame_is_a_still_and_doubled_frames_are_alike(vae: Any):
    decoder = vae.temporal_vae.decoder
    for module in vae.temporal_vae.modules():
        if isinstance(module, CausalConv3d):
            inner = module.conv.in_channels
            clip, frames = _noise(1, inner, 4, 3, 3), 4 // module.conv.stride[0]
            present = clip[:, :, 4 // frames - 1 :: 4 // frames]
            alone = torch.cat(
                [module(part) for part in present.repeat_interleave(4 // frames, 2).split(4 // frames, 2)], 2
            )
            assert torch.allclose(module(clip), alone, atol=1e-6)
    doubling = [module for module in decoder.conv_blocks.children() if isinstance(module, CausalConv3d)]
    assert len(doubling) == 2
    for module in doubling:
        pairs = module(_noise(1, module.conv.in_channels, 2, 3, 3))
        assert torch.equal(pairs[:, ::2], pairs[:, 1::2])


def _pixels(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 9, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _changed(vae: Any, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in vae.state_dict().items() if not torch.equal(value, before[name])}


def test_each_half_learns_alone(vae: Any, tmp_path: Path):
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    open_sora.train_spatial(vae, _pixels(3), tmp_path, Recipe(2, 2, 1e-3, seed=3))
    assert {name.split(".")[0] for name in _changed(vae, before)} == {"spatial_vae"}
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    open_sora.train_temporal(vae, _pixels(3), tmp_path, Recipe(2, 2, 1e-3, seed=3))
    assert {name.split(".")[0] for name in _changed(vae, before)} == {"temporal_vae"}
    assert not any(parameter.requires_grad for parameter in vae.parameters())


def test_the_temporal_half_is_trained_on_what_it_will_be_given(
    vae: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pixels, seen = _pixels(11), []

    def loss(temporal: Any, batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        seen.append(batch)
        return sum(p.sum() for p in temporal.parameters()) * 0

    monkeypatch.setattr(open_sora, "temporal_loss", loss)
    open_sora.train_temporal(vae, pixels, tmp_path, Recipe(1, 64, 0.0))
    given: list[torch.Tensor] = []
    vae.temporal_vae.encoder.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    with torch.no_grad():
        assert vae.encode(video.signed(pixels)).latent_dist.mean.shape == (11, 8, 3, 12, 12)
    # The encoder is given three zeros in front, as 12 frames make three groups of four.
    expected = torch.cat(given)[:, :, 3:]
    assert float(expected.std()) == pytest.approx(1, rel=1e-3)
    for row in seen[0]:
        assert min(float((row - clip).abs().max()) for clip in expected) < 1e-4


def test_the_loss_of_the_temporal_half_is_what_it_should_be():
    class Twice:
        """Draws nothing, and gives back twice what it is given."""

        def encode(self, batch: torch.Tensor) -> torch.Tensor:
            self.batch = batch
            return torch.cat([torch.full_like(batch[:, :, :3], 0.5), torch.full_like(batch[:, :, :3], -30.0)], 1)

        def decode(self, latents: torch.Tensor, frames: int) -> torch.Tensor:
            assert frames == 9 and torch.allclose(latents, torch.tensor(0.5), atol=1e-4)
            return 2 * self.batch

    batch = torch.full((2, 8, 9, 12, 12), 0.3)
    batch[1, :, ::2] = -0.3
    found = open_sora.temporal_loss(Twice(), batch, torch.Generator().manual_seed(0))
    # Both clips are off by 0.3 everywhere, so that no weight changes the mean.
    assert float(found) == pytest.approx(0.3 + 0.09 + 0.5e-4 * (0.25 - 1 + 30), rel=1e-4)
    still = batch.clone()
    still[1] = 0
    moving = still.clone()
    moving[1, :, ::2] = 0.6
    spread = float(moving[1, 0, :, 0, 0].std())
    weights, errors = (1, 1 + open_sora._EMPHASIS * spread), (0.39, (0.6 + 0.36) * 5 / 9)
    expected = sum(w * e for w, e in zip(weights, errors, strict=True)) / sum(weights)
    found = open_sora.temporal_loss(Twice(), moving, torch.Generator().manual_seed(0))
    assert float(found) == pytest.approx(expected + 0.5e-4 * (0.25 - 1 + 30), rel=1e-4)


def test_the_last_stage_leaves_the_encoders_of_both_halves_as_they_are(vae: Any, tmp_path: Path):
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    motion.train_on_motion(vae, _pixels(2), tmp_path, Recipe(1, 1, 1e-3, warmup=1), decoder_only=True)
    halves = ("spatial_vae.module", "temporal_vae")
    places = {tuple(name.removeprefix(half + ".").split(".")[0] for half in halves if name.startswith(half))
              for name in _changed(vae, before)}  # fmt: skip
    assert places == {("decoder",), ("post_quant_conv",)}


@torch.no_grad()
def test_normalised_latents_are_those_of_the_autoencoder_from_now_on(vae: Any):
    clips = _noise(4, 3, 9, 48, 48)
    raw = vae.encode(clips).latent_dist.mean
    video_before = video.decoded(vae, raw, clips)
    scaled = open_sora.normalise(vae, raw)
    assert torch.allclose(scaled.std((0, 2, 3, 4)), torch.ones(8), atol=1e-5)
    assert torch.allclose(vae.encode(clips).latent_dist.mean, scaled, atol=1e-4)
    assert torch.allclose(video.decoded(vae, scaled, clips), video_before, atol=1e-4)
    assert vae.config["latents_mean"] == pytest.approx(vae.shift.flatten().tolist())
    assert vae.config["latents_std"] == pytest.approx(vae.scale.flatten().tolist())


def test_stills_are_crops_of_the_frames():
    pixels = torch.randint(0, 256, (2, 9, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    stills = video.stills(pixels, 3, torch.Generator().manual_seed(1))
    assert stills.shape == (3, 3, 1, 24, 24)
    signed = video.signed(pixels).transpose(1, 2).flatten(0, 1)
    windows = signed.unfold(2, 24, 1).unfold(3, 24, 1)
    for still in stills[:, :, 0]:
        assert bool((windows == still[None, :, None, None]).flatten(4).all(4).all(1).any())
