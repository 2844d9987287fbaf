"""Attention of Open-Sora 1.2: over the tokens of a frame, over the frames of a token, and to the caption."""

from typing import Any, ClassVar, cast

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn

#: cos and sin of the angles by which the pairs of channels are turned [N, D/2].
Rotation = tuple[Tensor, Tensor]


class STDiT3AttnProcessor:
    """Softmax attention as diffusers dispatches it: SDPA, unless `set_attention_backend` chose another kernel."""

    _attention_backend: Any = None

    def __call__(
        self,
        attn: "_Attention",
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Rotation | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            attn: whose projections are used.
            hidden_states: [R, N, C] the queries' tokens.
            encoder_hidden_states: [R, L, C] the tokens attended to, where these are others.
            attention_mask: [R, 1, 1, L] bool, True where a token may be attended to; None is everywhere.
            rotary_emb: of queries and keys.

        Returns:
            [R, N, C].
        """
        query, key, value = attn.projected(hidden_states, encoder_hidden_states, rotary_emb)
        attended = dispatch_attention_fn(query, key, value, attn_mask=attention_mask, backend=self._attention_backend)
        return attn.proj(attended.flatten(2).to(query.dtype))


class HeadNorm(nn.Module):
    """Root-mean-square norm of each head, taken in float32 at least; the weight is applied in the input's dtype.

    Not `torch.nn.RMSNorm`, which rounds once only, after the weight.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x: Tensor) -> Tensor:
        """[*, D] to the same."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return scaled.to(x.dtype) * self.weight.to(x.dtype)


class _Attention(nn.Module, AttentionModuleMixin):
    """What diffusers asks of an attention module. The published weights hold the projections fused already."""

    _default_processor_cls = STDiT3AttnProcessor
    _available_processors: ClassVar = [STDiT3AttnProcessor]
    _supports_qkv_fusion = False
    proj: nn.Linear
    processor: Any

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.set_processor(cast(Any, STDiT3AttnProcessor()))

    def projected(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor | None, rotary_emb: Rotation | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [R, N, heads, D], keys and values [R, L, heads, D]."""
        raise NotImplementedError


class SelfAttention(_Attention):
    """Tokens attend to each other within their row."""

    is_cross_attention = False

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(heads)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.q_norm, self.k_norm = HeadNorm(dim // heads), HeadNorm(dim // heads)

    def projected(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor | None, rotary_emb: Rotation | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self.qkv(hidden_states).unflatten(-1, (3, self.heads, -1)).unbind(2)
        query, key = self.q_norm(query), self.k_norm(key)
        if rotary_emb is not None:
            query, key = rotated(query, rotary_emb), rotated(key, rotary_emb)
        return query, key, value

    def forward(self, hidden_states: Tensor, rotary_emb: Rotation | None = None) -> Tensor:
        """[R, N, C] to the same, row by row."""
        return self.processor(self, hidden_states, rotary_emb=rotary_emb)


class CrossAttention(_Attention):
    """All tokens of a video attend to its caption, without a norm of queries and keys."""

    is_cross_attention = True

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(heads)
        self.q_linear, self.kv_linear, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def projected(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor | None, rotary_emb: Rotation | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        query = self.q_linear(hidden_states).unflatten(-1, (self.heads, -1))
        key, value = self.kv_linear(cast(Tensor, encoder_hidden_states)).unflatten(-1, (2, self.heads, -1)).unbind(2)
        return query, key, value

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """[B, N, C] and the caption [B, L, C] to [B, N, C]; the mask is [B, 1, 1, L]."""
        return self.processor(self, hidden_states, encoder_hidden_states, attention_mask)


def rotated(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn the pairs of neighbouring channels of [R, N, heads, D] by the angles of their positions."""
    cos, sin = (part.to(x.dtype)[:, None] for part in rotation)
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1).flatten(-2)
