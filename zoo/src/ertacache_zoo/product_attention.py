"""Attention of Open-Sora's transformer for its training on a CPU in bfloat16."""

from typing import Any

import torch
from torch import Tensor

#: Up to as many tokens, products are written out as sums: matrices of that size are not worth a call each.
_FEW = 4


class ProductAttention:
    """Softmax attention as products, and the softmax in float32; for SDPA on a CPU is slow backwards in bfloat16.

    A processor for `STDiT3Transformer3DModel.set_attn_processor`, called as `STDiT3AttnProcessor` is.
    """

    _attention_backend: Any = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """[R, N, C] and the tokens attended to, [R, L, C], to [R, N, C]; the mask is [R, 1, 1, L] bool."""
        parts = attn.projected(hidden_states, encoder_hidden_states, rotary_emb)
        query, key, value = (part.transpose(1, 2) for part in parts)
        few = max(query.shape[2], key.shape[2]) <= _FEW
        if few:
            query, key, value = query.float(), key.float(), value.float()
            scores = (query[:, :, :, None] * key[:, :, None]).sum(-1)
        else:
            scores = (query @ key.mT).float()
        scores = scores * query.shape[-1] ** -0.5
        if attention_mask is not None:
            scores = scores.masked_fill(~attention_mask, float("-inf"))
        shares = torch.softmax(scores, -1)
        attended = (shares[..., None] * value[:, :, None]).sum(3) if few else shares.to(value.dtype) @ value
        return attn.proj(attended.transpose(1, 2).flatten(2).to(hidden_states.dtype))
