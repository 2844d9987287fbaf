"""Attention as products is the attention that the pipeline computes."""

import pytest
import torch

from ertacache.opensora.attention import CrossAttention, SelfAttention, STDiT3AttnProcessor
from ertacache.opensora.embeddings import Rope
from ertacache_zoo.product_attention import ProductAttention


def _noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
@pytest.mark.parametrize("tokens", [3, 36])
@pytest.mark.parametrize("turned", [False, True])
def test_within_a_row(tokens: int, turned: bool):
    attention, x = SelfAttention(64, 2), _noise(5, tokens, 64)
    rotation = Rope(32)(tokens, rounded=True, device=x.device, dtype=x.dtype) if turned else None
    found = ProductAttention()(attention, x, rotary_emb=rotation)
    assert torch.allclose(found, STDiT3AttnProcessor()(attention, x, rotary_emb=rotation), atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("tokens", [2, 7])
def test_to_a_caption_with_a_mask(tokens: int):
    attention, x, caption = CrossAttention(64, 2), _noise(3, tokens, 64), _noise(3, 4, 64, seed=1)
    mask = (torch.arange(4) < torch.tensor([[1], [3], [4]]))[:, None, None]
    found = ProductAttention()(attention, x, caption, mask)
    assert torch.allclose(found, STDiT3AttnProcessor()(attention, x, caption, mask), atol=1e-6)
    caption[0, 1:] = 100
    assert torch.equal(found[0], ProductAttention()(attention, x, caption, mask)[0])
