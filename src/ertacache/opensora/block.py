"""The blocks of Open-Sora 1.2 and its last layer, both modulated by time."""

from typing import cast

import torch
from torch import Tensor, nn

from ertacache.opensora.attention import CrossAttention, Rotation, SelfAttention
from ertacache.opensora.embeddings import Mlp


class STDiT3Block(nn.Module):
    """Attention within frames or, in a `temporal` block, along them; attention to the caption; an MLP."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, *, temporal: bool) -> None:
        super().__init__()
        self.temporal = temporal
        self.norm1, self.norm2 = _norm(dim), _norm(dim)
        self.attn, self.cross_attn = SelfAttention(dim, heads), CrossAttention(dim, heads)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dim)
        self.scale_shift_table = nn.Parameter(torch.randn(6, dim) / dim**0.5)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        num_frames: int,
        encoder_attention_mask: Tensor | None = None,
        rotary_emb: Rotation | None = None,
    ) -> Tensor:
        """Run the block.

        Args:
            hidden_states: [B, T·S, C], frame by frame.
            encoder_hidden_states: [B, L, C] the caption.
            temb: [B, 1, 6, C] modulation by time, or [B, T, 6, C] where it differs from frame to frame: shift, scale
                and gate of the attention, then of the MLP.
            num_frames: T.
            encoder_attention_mask: [B, 1, 1, L] bool, True where a token counts; None is everywhere.
            rotary_emb: of the T frames, in a temporal block.

        Returns:
            [B, T·S, C].
        """
        table = self.scale_shift_table.to(temb.dtype)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = _split(table + temb)
        rows = _modulated(self.norm1(hidden_states), shift, scale, num_frames)
        rows = rows.transpose(1, 2) if self.temporal else rows
        attended = self.attn(rows.flatten(0, 1), rotary_emb).unflatten(0, rows.shape[:2])
        attended = attended.transpose(1, 2) if self.temporal else attended
        hidden_states = hidden_states + (gate * attended).flatten(1, 2)
        hidden_states = hidden_states + self.cross_attn(hidden_states, encoder_hidden_states, encoder_attention_mask)
        rows = _modulated(self.norm2(hidden_states), mlp_shift, mlp_scale, num_frames)
        return hidden_states + (mlp_gate * self.mlp(rows)).flatten(1, 2)


class FinalLayer(nn.Module):
    """The tokens as patches."""

    def __init__(self, dim: int, outer: int) -> None:
        super().__init__()
        self.norm_final = _norm(dim)
        self.linear = nn.Linear(dim, outer)
        self.scale_shift_table = nn.Parameter(torch.randn(2, dim) / dim**0.5)

    def forward(
        self,
        hidden_states: Tensor,
        temb: Tensor,
        num_frames: int,
        frame_mask: Tensor | None = None,
        fixed: Tensor | None = None,
    ) -> Tensor:
        """Modulate and project.

        A fixed frame is normalised and modulated twice, by the time of the others first: so the weights were trained.

        Args:
            hidden_states: [B, T·S, C].
            temb: [B, C] of the frames that are generated. fixed: [B, C] of the others, given along with the mask.
            num_frames: T.
            frame_mask: [B, T] bool, True where a frame is generated; None is all of them.

        Returns:
            [B, T, S, outer].
        """
        rows = self._modulated(hidden_states.unflatten(1, (num_frames, -1)), temb)
        if frame_mask is not None:
            rows = torch.where(frame_mask[:, :, None, None], rows, self._modulated(rows, cast(Tensor, fixed)))
        return self.linear(rows)

    def _modulated(self, rows: Tensor, temb: Tensor) -> Tensor:
        shift, scale = _split((self.scale_shift_table.to(temb.dtype) + temb[:, None])[:, None])
        return self.norm_final(rows) * (1 + scale) + shift


def _norm(dim: int) -> nn.LayerNorm:
    return nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)


def _split(modulation: Tensor) -> tuple[Tensor, ...]:
    """[B, F, n, C] as n tensors [B, F, 1, C], to be applied to [B, T, S, C]."""
    return modulation.unsqueeze(3).unbind(2)


def _modulated(x: Tensor, shift: Tensor, scale: Tensor, num_frames: int) -> Tensor:
    """[B, T·S, C] to [B, T, S, C]."""
    return x.unflatten(1, (num_frames, -1)) * (1 + scale) + shift
