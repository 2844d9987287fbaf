"""What Open-Sora 1.2 makes of its inputs before the blocks: patches, positions, scalars and captions."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ertacache.opensora.attention import Rotation

#: Period of the slowest sinusoid, of positions and scalars alike.
_THETA = 10000.0


def frequencies(dim: int, *, rounded: bool, device: torch.device | None = None, dtype: torch.dtype) -> Tensor:
    """Angular frequencies θ^(−2j/dim) [dim/2], `rounded` to bfloat16 or not.

    They are computed wherever they are needed and not held as a buffer, which `.to(torch.bfloat16)` would round.
    """
    exponents = torch.arange(0, dim, 2, device=device, dtype=dtype) / dim
    values = 1.0 / _THETA**exponents
    return values.to(torch.bfloat16).to(dtype) if rounded else values


def position_embedding(
    height: Tensor, width: Tensor, grid: tuple[int, int], channels: int, input_sq_size: int, *, rounded: bool
) -> Tensor:
    """Sinusoids of the place of each token in its frame, which is laid out as at the resolution of the training.

    Args:
        height, width: [] of the video, in pixels.
        grid: tokens in a column and in a row.
        channels: C. The first half is of the place in the row, the second of that in the column.
        input_sq_size: side of the square, in pixels, at which the scale is 1.
        rounded: frequencies as in `frequencies`.

    Returns:
        [rows · columns, C] row by row, in the dtype of `height`.
    """
    rows, columns = grid
    scale = (height * width).sqrt() / input_sq_size
    base = round(math.sqrt(rows * columns))
    own = frequencies(channels // 2, rounded=rounded, device=height.device, dtype=height.dtype)

    def embedded(count: int) -> Tensor:
        places = torch.arange(count, device=height.device, dtype=height.dtype) / scale * base / count
        angles = places[:, None] * own
        return torch.cat((angles.sin(), angles.cos()), dim=-1)

    across = embedded(columns)[None].expand(rows, -1, -1)
    down = embedded(rows)[:, None].expand(-1, columns, -1)
    return torch.cat((across, down), dim=-1).flatten(0, 1)


class Rope(nn.Module):
    """Rotary embedding of the frames.

    `freqs` is there because the published file holds it: a constant of the architecture, which a state dict may leave
    out. The angles are not computed from it, so that its dtype does not matter.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        # Past `register_parameter`, which is replaced while weights are loaded, so that it is never left empty there.
        vars(self)["_parameters"]["freqs"] = nn.Parameter(self._freqs(), requires_grad=False)

    def _freqs(self) -> Tensor:
        return frequencies(self.dim, rounded=False, dtype=torch.float32)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        state_dict.setdefault(f"{prefix}freqs", self._freqs())
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def forward(self, frames: int, *, rounded: bool, device: torch.device, dtype: torch.dtype) -> Rotation:
        """cos and sin [frames, dim/2] of the angles, in `dtype`; where `rounded`, the angles are bfloat16, too."""
        own = frequencies(self.dim, rounded=rounded, device=device, dtype=dtype)
        angles = torch.arange(frames, device=device, dtype=dtype)[:, None] * own
        if rounded:
            angles = angles.to(torch.bfloat16).to(dtype)
        return angles.cos(), angles.sin()


class PatchEmbedder(nn.Module):
    """Patches of a video as tokens."""

    def __init__(self, channels: int, dim: int, patch: tuple[int, int, int]) -> None:
        super().__init__()
        size = (patch[0], patch[1], patch[2])  # a list in a file
        self.proj = nn.Conv3d(channels, dim, size, stride=size)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W], sizes multiples of the patch, to [B, T, rows, columns, dim]."""
        return self.proj(x).permute(0, 2, 3, 4, 1)


class ScalarEmbedder(nn.Module):
    """A number, such as the timestep or the frames per second, as a vector."""

    def __init__(self, dim: int, sinusoids: int = 256) -> None:
        super().__init__()
        self.sinusoids = sinusoids
        self.mlp = nn.Sequential(nn.Linear(sinusoids, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """[B] to [B, dim] in `dtype`; the sinusoids are computed in the dtype of `value`."""
        half = self.sinusoids // 2
        steps = torch.arange(half, device=value.device, dtype=value.dtype)
        angles = value[:, None] * torch.exp(-math.log(_THETA) * steps / half)
        return self.mlp(torch.cat((angles.cos(), angles.sin()), dim=-1).to(dtype))


class Mlp(nn.Module):
    """Two layers with GELU (tanh) between them."""

    def __init__(self, inner: int, hidden: int, outer: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(inner, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, outer)

    def forward(self, x: Tensor) -> Tensor:
        """[*, inner] to [*, outer]."""
        return self.fc2(self.act(self.fc1(x)))


class CaptionEmbedder(nn.Module):
    """The text encoder's tokens at the width of the blocks; `y_embedding` [L, caption_channels] is the null caption."""

    y_embedding: Tensor

    def __init__(self, channels: int, dim: int, tokens: int) -> None:
        super().__init__()
        self.register_buffer("y_embedding", torch.randn(tokens, channels) / channels**0.5)
        self.y_proj = Mlp(channels, dim, dim)

    def forward(self, captions: Tensor) -> Tensor:
        """[B, L, caption_channels] to [B, L, dim]."""
        return self.y_proj(captions)
