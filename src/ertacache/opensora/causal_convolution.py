"""Convolution over time that looks back only, and the residual block made of it; both keep the number of frames."""

import torch.nn.functional as F
from torch import Tensor, nn


class CausalConv3d(nn.Module):
    """A convolution of [B, C, frames, H, W] with zeros before the first frame and around every frame, none after it.

    A frame depends on itself and on those before it. With `time_stride` 2, `frames` has to be even, and the later
    frame of each pair is the one that a result lies at (Open-Sora 1.2).
    """

    def __init__(self, inner: int, outer: int, kernel: int, *, time_stride: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.before = kernel - time_stride
        padding = (0, kernel // 2, kernel // 2)
        self.conv = nn.Conv3d(inner, outer, kernel, stride=(time_stride, 1, 1), padding=padding, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inner, frames, H, W] to [B, outer, frames / time_stride, H, W]."""
        return self.conv(F.pad(x, (0, 0, 0, 0, self.before, 0)) if self.before else x)


class CausalResBlock(nn.Module):
    """Twice group norm, SiLU and a causal convolution, added to the input; 1×1×1 where the channels change."""

    def __init__(self, inner: int, outer: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inner)
        self.conv1 = CausalConv3d(inner, outer, 3, bias=False)
        self.norm2 = nn.GroupNorm(groups, outer)
        self.conv2 = CausalConv3d(outer, outer, 3, bias=False)
        self.conv3 = CausalConv3d(inner, outer, 1, bias=False) if inner != outer else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, inner, frames, H, W] to [B, outer, frames, H, W]."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return self.conv3(x) + hidden
