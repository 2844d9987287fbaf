"""Open-Sora's autoencoder: the reference's numbers, a second witness, chunks, memory and names."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from safetensors.torch import load_file
from torch import Tensor

import temporal_by_hand
from ertacache.opensora.autoencoder import AutoencoderKLOpenSora
from ertacache.opensora.posterior import TwoStagePosterior
from ertacache.opensora.temporal_autoencoder import TemporalAutoencoder, TemporalSizes
from live_bytes import LiveBytes
from small_autoencoder import KEYS, SMALL, small


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latents(model: AutoencoderKLOpenSora, x: Tensor) -> Tensor:
    return model.encode(x).latent_dist.mode()


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    folder = os.environ.get("ERTACACHE_OPEN_SORA_FIXTURES")
    if not folder:
        pytest.skip("set ERTACACHE_OPEN_SORA_FIXTURES to the folder with the reference's tensors")
    return load_file(Path(folder) / "opensora-vae-temporal-tiny-fixture.safetensors")


@pytest.mark.parametrize("frames", [17, 1, 8, 12])
@torch.no_grad()
def test_the_temporal_half_gives_the_references_numbers(reference: dict[str, Tensor], frames: int):
    model = TemporalAutoencoder(TemporalSizes(4, (16, 32, 32, 64), 1, 8, (False, True, True)))
    model.load_state_dict({name[3:]: value for name, value in reference.items() if name.startswith("sd.")})
    moments = model.encode(reference[f"enc{frames}.in"])
    found = {
        f"enc{frames}.mean": moments[:, :4],
        f"enc{frames}.logvar": moments[:, 4:],
        f"dec{frames}.out": model.decode(reference[f"enc{frames}.mean"], frames),
    }
    for name, value in found.items():
        error = value - reference[name]
        # One value is up to 3e-6 off by the order of sums, which depends on the processor: so far is the reference,
        # in float32 itself, from its own formula in float64.
        assert error.square().mean().sqrt() < 1e-6, name
        assert error.abs().max() < 5e-6, name


@pytest.mark.parametrize("frames", [1, 5, 8])
@pytest.mark.parametrize("halved", [[False, True, True], [True, False, False]])
def test_the_formula_by_hand_gives_the_same(frames: int, halved: list[bool]):
    model = small(time_downsample=halved, temporal_res_blocks=2 if frames == 5 else 1)
    weights = dict(model.temporal_vae.state_dict())
    spatial: Any = model.spatial_vae.module
    x, shift, scale = noise(1, 3, frames, 6, 4), model.shift[0], model.scale[0]
    inner = spatial.encode(x[0].transpose(0, 1)).latent_dist.mean.transpose(0, 1) * 0.18215
    moments = temporal_by_hand.encoded(weights, inner, halved)
    posterior = model.encode(x).latent_dist
    assert (posterior.mode()[0] - (moments[:4] - shift) / scale).abs().max() < 1e-10
    assert (posterior.logvar[0] - (moments[4:] - 2 * scale.log())).abs().max() < 1e-10
    z = noise(1, 4, moments.shape[1], 3, 2, seed=2)
    pixels = temporal_by_hand.decoded(weights, z[0] * scale + shift, frames, halved)
    expected = spatial.decode(pixels.transpose(0, 1) / 0.18215).sample.transpose(0, 1)
    assert (model.decode(z, frames).sample[0] - expected).abs().max() < 1e-10


def test_names_shapes_and_sizes_are_the_published_ones():
    with torch.device("meta"):
        model = AutoencoderKLOpenSora()
    lines = [line.split(" ", 1) for line in KEYS.read_text().splitlines()]
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == {
        name: json.loads(shape) for name, shape in lines
    }
    assert sum(p.numel() for p in model.spatial_vae.parameters()) == 83_653_863
    assert sum(p.numel() for p in model.temporal_vae.parameters()) == 309_687_144
    assert (model.spatial_compression_ratio, model.temporal_compression_ratio) == (8, 4)
    frames = {1: 1, 4: 1, 5: 2, 16: 4, 17: 5, 18: 6, 20: 6, 51: 15, 102: 30, 204: 60, 408: 120, 816: 240}
    assert {count: model.latent_frames(count) for count in frames} == frames


def test_mean_and_deviation_are_those_of_the_configuration():
    model = AutoencoderKLOpenSora(**SMALL)
    assert torch.equal(model.shift.flatten(), torch.tensor([-0.10, 0.34, 0.27, 0.98]))
    assert torch.equal(model.scale.flatten(), torch.tensor([3.85, 2.32, 2.33, 3.06]))


@pytest.mark.parametrize("frames", [51, 20, 17, 3])
def test_chunks_know_nothing_of_each_other(frames: int):
    model, x = small(), noise(1, 3, frames, 6, 4)
    z, chunks = latents(model, x), x.split(17, 2)
    assert z.shape == (1, 4, model.latent_frames(frames), 3, 2)
    assert torch.equal(z, torch.cat([latents(model, chunk) for chunk in chunks], 2))
    alone = [model.decode(part, c.shape[2]).sample for part, c in zip(z.split(5, 2), chunks, strict=True)]
    video = model.decode(z, frames).sample
    assert video.shape == x.shape
    assert torch.equal(video, torch.cat(alone, 2))


def test_both_posteriors_are_drawn():
    model, x = small(), noise(1, 3, 20, 6, 4)
    posterior, generator = model.encode(x).latent_dist, seeded()
    frames = x[0].transpose(0, 1)
    spatial: Any = model.spatial_vae.module
    moments = torch.cat([spatial.encode(part).latent_dist.parameters for part in frames.split(17)])
    inner = DiagonalGaussianDistribution(moments.transpose(0, 1)[None]).sample(generator) * 0.18215
    outer = torch.cat([model.temporal_vae.encode(part) for part in inner.split(17, 2)], 2)
    z = DiagonalGaussianDistribution(outer).sample(generator)
    expected = (z - model.shift) / model.scale
    assert torch.allclose(posterior.sample(seeded()), expected, rtol=0, atol=1e-12)
    assert not torch.equal(posterior.sample(seeded(4)), posterior.sample(seeded()))
    assert torch.equal(posterior.mode(), posterior.mode())
    assert torch.equal(posterior.mean, posterior.mode())
    assert torch.allclose(posterior.var, posterior.std**2)
    assert torch.allclose(posterior.logvar, posterior.var.log())


def test_the_temporal_stage_sees_what_was_drawn_and_runs_once_for_the_mean():
    seen: list[Tensor] = []

    def temporal(x: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(x)
        return 2 * x, torch.zeros_like(x)

    mean = noise(2, 4, 3, 2, 2)
    posterior = TwoStagePosterior(DiagonalGaussianDistribution(torch.cat([mean, torch.zeros_like(mean)], 1)), temporal)
    assert torch.equal(posterior.mode(), 2 * mean)
    assert posterior.std.sum() == posterior.var.sum() == 0
    assert len(seen) == 1
    sample = posterior.sample([seeded(1), seeded(2)])
    drawn = [torch.randn(1, 4, 3, 2, 2, generator=seeded(n), dtype=torch.float64) for n in (1, 2)]
    assert torch.equal(sample, 2 * (mean + torch.cat(drawn)))


def test_a_slice_is_computed_as_in_the_batch():
    model, x = small(), noise(3, 3, 20, 6, 4)
    calls: list[int] = []
    model.temporal_vae.encoder.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    model.temporal_vae.decoder.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    z = latents(model, x)
    whole = z, model.encode(x).latent_dist.sample(seeded()), model.decode(z, 20).sample
    assert set(calls) == {3}
    calls.clear()
    model.enable_slicing()
    sliced = latents(model, x), model.encode(x).latent_dist.sample(seeded()), model.decode(z, 20).sample
    assert set(calls) == {1}
    assert all(torch.equal(one, other) for one, other in zip(whole, sliced, strict=True))
    calls.clear()
    model.disable_slicing()
    model.decode(z, 20)
    assert set(calls) == {3}


def test_frames_go_through_the_spatial_half_in_micro_batches():
    model, sizes = small(micro_batch_size=3), []
    spatial: Any = model.spatial_vae.module
    for half in (spatial.encoder, spatial.decoder):
        half.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    z = latents(model, noise(2, 3, 20, 6, 4))
    assert sizes == 2 * [3, 3, 3, 3, 3, 2] + 2 * [3]
    sizes.clear()
    model.decode(z, 20)
    assert sizes == 2 * [3, 3, 3, 3, 3, 2] + 2 * [3]


def test_tiles_are_those_of_the_spatial_half():
    model, x = small(), noise(1, 3, 5, 16, 12)
    z = latents(model, x)
    video = model.decode(z, 5).sample
    model.enable_tiling()
    assert model.use_tiling and model.spatial_vae.module.use_tiling
    # No larger than a tile: to the same bits.
    assert torch.equal(latents(model, x), z)
    assert torch.equal(model.decode(z, 5).sample, video)
    sizes: list[tuple[int, ...]] = []
    model.spatial_vae.module.decoder.register_forward_pre_hook(lambda _, given: sizes.append(given[0].shape[-2:]))
    large = noise(1, 4, 2, 8, 10, seed=2)
    assert model.decode(large, 5).sample.shape == (1, 3, 5, 16, 20)
    assert max(max(size) for size in sizes) == 8
    sizes.clear()
    model.disable_tiling()
    model.decode(large, 5)
    assert set(sizes) == {(8, 10)}


def test_saved_and_loaded_it_is_the_same(tmp_path: Path):
    model, x = small(time_downsample=(True, False, True), latents_mean=(1, 2, 3, 4)).float(), noise(1, 3, 18, 6, 4)
    model.scale.mul_(2)  # a checkpoint's values are taken, not those of the configuration
    model.save_pretrained(tmp_path)
    # Attention that needs no gradient takes another way.
    loaded = AutoencoderKLOpenSora.from_pretrained(tmp_path).requires_grad_(False)
    config = {name: value for name, value in model.config.items() if not name.startswith("_")}
    assert json.loads(json.dumps(config)) == {name: loaded.config[name] for name in config}
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    z = latents(model, x.float())
    assert torch.equal(latents(loaded, x.float()), z)
    assert torch.equal(loaded.decode(z, 18).sample, model.decode(z, 18).sample)


@pytest.mark.parametrize("sliced", [False, True])
@torch.no_grad()
def test_memory_is_that_of_one_chunk(sliced: bool):
    model = small().float()
    model.use_slicing = sliced

    def peak(work: Callable[[Tensor, int], object], given: Tensor, frames: int) -> int:
        """Most bytes at once besides the input and the weights."""
        with LiveBytes([given, *model.state_dict().values()]) as counted:
            work(given, frames)
        return counted.peak

    clips = {frames: noise(2, 3, frames, 8, 8).float() for frames in (17, 34, 68)}
    one, two, four = (peak(lambda z, n: model.decode(z, n), noise(2, 4, n // 17 * 5, 4, 4).float(), n) for n in clips)
    # What comes out is there once; besides, two chunks and four take what one takes, its own output included.
    assert two - clips[34].nbytes == four - clips[68].nbytes <= one
    one, two, four = (peak(lambda x, n: model.encode(x).latent_dist.mode(), x, n) for n, x in clips.items())
    # Of every frame and latent frame: mean and log-variance, the latter clamped, the deviation and the variance.
    kept = 5 * 4 * 2 * (17 + 5) * 4 * 4 * 4
    assert four - two <= 2 * kept
    assert two - one <= kept


def test_gradients_reach_both_halves():
    model = small().requires_grad_(True)
    model(noise(1, 3, 20, 6, 4), sample_posterior=True, generator=seeded()).sample.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_called_it_encodes_and_decodes():
    model, x = small(), noise(1, 3, 20, 6, 4)
    assert torch.equal(model(x).sample, model.decode(latents(model, x), 20).sample)
    (drawn,) = model(x, sample_posterior=True, generator=seeded(), return_dict=False)
    assert torch.equal(drawn, model.decode(model.encode(x).latent_dist.sample(seeded()), 20).sample)


def test_hooks_that_bring_the_weights_back_run_before_each_half_is_used():
    class Hook:
        calls = 0

        def pre_forward(self, module: Any) -> None:
            self.calls += 1

    model: Any = small()
    model._hf_hook = hook = Hook()
    posterior = model.encode(noise(1, 3, 2, 6, 4)).latent_dist
    assert hook.calls == 1
    z = posterior.mode()
    assert hook.calls == 2
    model.decode(z, 2)
    assert hook.calls == 3


def test_in_bfloat16_it_keeps_the_dtype_and_drops_odd_edges():
    model = small().bfloat16()
    z = latents(model, noise(1, 3, 2, 7, 5).bfloat16())
    assert (z.dtype, z.shape) == (torch.bfloat16, (1, 4, 1, 3, 2))
    assert model.decode(z, 2).sample.shape == (1, 3, 2, 6, 4)
