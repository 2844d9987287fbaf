"""A small Open-Sora transformer, arguments for it, and the tensors that the reference made."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ertacache.opensora.transformer import STDiT3Transformer3DModel

FIXTURES = "ERTACACHE_OPEN_SORA_FIXTURES"


def transformer(seed: int = 0, **config: Any) -> STDiT3Transformer3DModel:
    """Two pairs of blocks of two heads; every weight is random, the norms' as well."""
    sizes: dict[str, Any] = {
        "caption_channels": 20, "depth": 2, "hidden_size": 48, "num_heads": 2, "model_max_length": 7,
    }  # fmt: skip
    torch.manual_seed(seed)
    model = STDiT3Transformer3DModel(**{**sizes, **config}).eval()
    for name, weight in model.named_parameters():
        if name.endswith("_norm.weight"):
            torch.nn.init.normal_(weight, 1.0, 0.3)
    return model


def arguments(
    batch: int = 2, frames: int = 3, size: tuple[int, int] = (5, 7), lengths: tuple[int, ...] = (7, 3), seed: int = 1
) -> dict[str, Any]:
    """Of a forward call; each sample's caption has as many tokens that count as `lengths` says."""
    torch.manual_seed(seed)
    return {
        "hidden_states": torch.randn(batch, 4, frames, *size),
        "timestep": torch.tensor([992.9314, 143.121])[:batch],
        "encoder_hidden_states": torch.randn(batch, 7, 20),
        "encoder_attention_mask": torch.arange(7) < torch.tensor(lengths)[:batch, None],
        "fps": torch.tensor([24.0]),
        "height": torch.tensor([8.0 * size[0]]),
        "width": torch.tensor([8.0 * size[1] + 6.0]),
    }


def run(model: STDiT3Transformer3DModel, **given: Any) -> Tensor:
    """The output [B, 8, T, H, W]."""
    with torch.no_grad():
        return model(**given, return_dict=False)[0]


def reference(name: str) -> dict[str, Tensor]:
    """The tensors of a file that the reference made; without the folder the test is skipped."""
    from safetensors.torch import load_file

    if not (folder := os.environ.get(FIXTURES)):
        pytest.skip(f"set {FIXTURES} to the folder with the reference's tensors")
    return load_file(Path(folder) / name)
