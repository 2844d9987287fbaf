"""A small autoencoder of Open-Sora, and the names of the published one's tensors."""

from pathlib import Path
from typing import Any

import torch

from ertacache.opensora.autoencoder import AutoencoderKLOpenSora

KEYS = Path(__file__).parent / "data" / "open_sora" / "opensora-vae-keys.txt"
#: Height and width are halved, time is quartered; 17 frames to a chunk as in the published model.
SMALL: dict[str, Any] = {
    "block_out_channels": (4, 8),
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "sample_size": 16,
    "temporal_filters": 4,
    "temporal_res_blocks": 1,
    "temporal_norm_num_groups": 2,
}


def small(**changes: Any) -> AutoencoderKLOpenSora:
    """A small model in float64, whose norms and biases are not those of a new one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoencoderKLOpenSora(**{**SMALL, **changes}).double().eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model
