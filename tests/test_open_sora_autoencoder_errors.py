"""What Open-Sora's autoencoder refuses: tensors of a checkpoint, configurations, clips and latents."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from ertacache.errors import InvalidArgument
from ertacache.opensora.autoencoder import AutoencoderKLOpenSora
from ertacache.opensora.autoencoder_keys import published_keys
from small_autoencoder import KEYS, SMALL, small


def test_old_names_of_the_attention_become_the_present_ones():
    model = small()
    present = model.state_dict()
    renamed = (".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn.")
    old = dict(present)
    for new, before in renamed:
        old = {name.replace(new, before): value for name, value in old.items()}
    assert sum(name not in present for name in old) == 16
    given = copy.copy(old)
    found = published_keys(old, model)
    assert found.keys() == present.keys() and all(found[name] is present[name] for name in present)
    assert old.keys() == given.keys()
    assert published_keys(present, model).keys() == present.keys()
    model.load_state_dict(found)


def test_the_published_sizes_are_meant_without_a_model():
    names = [line.split(" ", 1)[0] for line in KEYS.read_text().splitlines()]
    tensors = {name: torch.zeros(0) for name in names}
    assert list(published_keys(tensors)) == names
    del tensors["scale"]
    with pytest.raises(InvalidArgument, match=r"\(missing: scale\); give the whole checkpoint of OpenSora-VAE-v1.2"):
        published_keys(tensors)


def test_missing_unknown_and_doubled_tensors_are_named():
    model = small()
    tensors = model.state_dict()
    attention = "spatial_vae.module.encoder.mid_block.attentions.0"
    tensors[f"{attention}.query.weight"] = tensors[f"{attention}.to_q.weight"]
    tensors["temporal_vae.encoder.query.weight"] = tensors.pop("temporal_vae.quant_conv.conv.bias")
    message = (
        r"missing: temporal_vae\.quant_conv\.conv\.bias; unknown: temporal_vae\.encoder\.query\.weight; "
        rf"twice: {attention}\.to_q\.weight\)"
    )
    with pytest.raises(InvalidArgument, match=message):
        published_keys(tensors, model)
    with pytest.raises(InvalidArgument, match=r"missing: scale, shift, .* and \d+ more; unknown: vae\.scale\)"):
        published_keys({"vae.scale": torch.ones(1)}, model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_channels": 0}, "latent_channels is 0; give a whole number from 1"),
        ({"temporal_filters": True}, "temporal_filters is True; give a whole number"),
        ({"temporal_res_blocks": 1.5}, "temporal_res_blocks is 1.5; give a whole number"),
        ({"layers_per_block": "2"}, "layers_per_block is '2'; give"),
        ({"micro_frame_size": 0}, "micro_frame_size is 0; give"),
        ({"micro_batch_size": -1}, "micro_batch_size is -1; give"),
        ({"sample_size": 0}, "sample_size is 0; give"),
        ({"block_out_channels": ()}, "block_out_channels is empty; name at least one level"),
        ({"temporal_multipliers": (1, 0, 2, 4)}, "each of temporal_multipliers is 0; give"),
        ({"norm_num_groups": 8}, "norm_num_groups is 8, which does not divide 4 of block_out_channels"),
        (
            {"temporal_norm_num_groups": 3},
            "temporal_norm_num_groups is 3, which does not divide 4 of temporal_filters × temporal_multipliers",
        ),
        ({"time_downsample": (True,)}, "time_downsample has 1 values for 4 temporal levels; give 3"),
        ({"latents_mean": (0.0,)}, "latents_mean has 1 values for 4 latent channels; give one for each"),
        ({"latents_std": (1.0,) * 5}, "latents_std has 5 values for 4 latent channels; give one for each"),
        ({"latents_std": (1.0, 0.0, 1.0, 1.0)}, "latents_std is .*; latents are divided by it: give values above 0"),
        ({"latents_std": (1.0, float("nan"), 1.0, 1.0)}, "latents_std is .*; latents are divided by it"),
        ({"spatial_scaling_factor": 0}, "spatial_scaling_factor is 0; give one above 0, as 0.18215"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(changes: dict[str, Any], message: str):
    with pytest.raises(InvalidArgument, match=message):
        AutoencoderKLOpenSora(**{**SMALL, **changes})


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 5, 4, 4), r"clips have shape \[3, 5, 4, 4\]; give \[batch, 3, frames, height, width\]"),
        (torch.zeros(1, 5, 3, 4, 4), r"clips have shape \[1, 5, 3, 4, 4\]; give \[batch, 3, frames"),
        (torch.zeros(0, 3, 1, 4, 4), r"clips have shape \[0, 3, 1, 4, 4\]; give \[batch, 3"),
        (torch.zeros(1, 3, 0, 4, 4), r"clips of shape \[1, 3, 0, 4, 4\] have no frame; give at least one"),
        (torch.zeros(1, 3, 1, 4, 1), "have less than 2 pixels of height or width, which make one latent"),
        (torch.zeros(1, 3, 1, 4, 4, dtype=torch.uint8), "clips are uint8; give floating-point values"),
    ],
)
def test_what_is_no_clip_is_refused(x: Tensor, message: str):
    with pytest.raises(InvalidArgument, match=message):
        small().encode(x)


@pytest.mark.parametrize(
    ("shape", "num_frames", "message"),
    [
        ((4, 5, 2, 2), 17, r"latents have shape \[4, 5, 2, 2\]; give \[batch, 4, latent frames, height, width\]"),
        ((1, 3, 5, 2, 2), 17, r"latents have shape \[1, 3, 5, 2, 2\]; give \[batch, 4"),
        ((1, 4, 5, 0, 2), 17, r"latents of shape \[1, 4, 5, 0, 2\] hold nothing"),
        ((1, 4, 0, 2, 2), 1, r"latents of shape \[1, 4, 0, 2, 2\] hold nothing"),
        ((1, 4, 5, 2, 2), None, "num_frames is missing; 5 latent frames hold 17 frames: say how many there were"),
        ((1, 4, 4, 2, 2), 17, "num_frames is 17, but 4 latent frames hold 13 to 16 frames; give such a number"),
        ((1, 4, 6, 2, 2), 17, "num_frames is 17, but 6 latent frames hold 18 to 21 frames"),
        ((1, 4, 1, 2, 2), 0, "num_frames is 0; a clip has at least one frame"),
        ((1, 4, 1, 2, 2), 1.0, "num_frames is 1.0; a clip has at least one frame"),
        ((1, 4, 1, 2, 2), True, "num_frames is True; a clip has at least one frame"),
    ],
)
def test_latents_that_are_not_those_of_so_many_frames_are_refused(
    shape: tuple[int, ...], num_frames: Any, message: str
):
    with pytest.raises(InvalidArgument, match=message):
        small().decode(torch.zeros(shape), num_frames)


def test_latents_of_whole_numbers_are_refused():
    with pytest.raises(InvalidArgument, match="latents are int64; give floating-point values"):
        small().decode(torch.zeros(1, 4, 5, 2, 2, dtype=torch.int64), 17)


@pytest.mark.parametrize("size", [1, 2, 5, 16, 17, 18])
@pytest.mark.parametrize("halved", [(False, False, False), (True, False, True)])
def test_the_frames_that_a_refusal_names_are_those_that_fit(size: int, halved: tuple[bool, ...]):
    model = AutoencoderKLOpenSora(**SMALL, micro_frame_size=size, time_downsample=halved)
    by_latents: dict[int, list[int]] = {}
    for frames in range(1, 60):
        by_latents.setdefault(model.latent_frames(frames), []).append(frames)
    for count in list(by_latents)[:-1]:
        least, most = by_latents[count][0], by_latents[count][-1]
        hold = f"{count} latent frames hold {least} to {most} frames" if most > least else f"hold {least} frame"
        with pytest.raises(InvalidArgument, match=hold):
            model.decode(torch.zeros(1, 4, count, 2, 2))
