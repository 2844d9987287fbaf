"""What the training of tiny-open-sora's autoencoder has to itself."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ertacache.opensora.causal_convolution import CausalConv3d
from ertacache_zoo import components, open_sora, video
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
    assert 1_000_000 < sum(p.numel() for p in vae.parameters()) < 1_400_000


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


def test_the_spatial_half_learns_alone_and_its_latents_get_a_deviation_of_1(vae: Any, tmp_path: Path):
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    pixels = torch.randint(0, 256, (3, 9, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    open_sora.train_spatial(vae, pixels, tmp_path, Recipe(2, 2, 1e-3, seed=3))
    moved = {name.split(".")[0] for name, value in vae.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"spatial_vae"}
    frames = video.stills(pixels, 1000, torch.Generator().manual_seed(3)).squeeze(2)
    with torch.no_grad():
        latents = vae.spatial_vae.module.encode(frames).latent_dist.mean
    assert float(latents.std()) * vae.config["spatial_scaling_factor"] == pytest.approx(1, rel=1e-5)


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
