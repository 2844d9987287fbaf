"""The temporal half of Open-Sora's autoencoder: latents of single frames to latents of a quarter of the frames."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from ertacache.opensora.causal_convolution import CausalConv3d, CausalResBlock


@dataclass(frozen=True, slots=True)
class TemporalSizes:
    """Sizes of both directions.

    Attributes:
        latent_channels: of what goes in and of what comes out.
        widths: channels of each level; the first is the one with the most frames.
        res_blocks: at every level, and as many again at the innermost.
        groups: of the group norms.
        downsample: for each level but the last, whether the number of frames is halved after it.
    """

    latent_channels: int
    widths: tuple[int, ...]
    res_blocks: int
    groups: int
    downsample: tuple[bool, ...]

    @property
    def compression(self) -> int:
        """Frames to one latent frame."""
        return 2 ** sum(self.downsample)

    def blocks(self, widths: Sequence[int]) -> Iterator[nn.ModuleList]:
        """Residual blocks from each of `widths` to the next."""
        for inner, outer in pairwise(widths):
            first = CausalResBlock(inner, outer, self.groups)
            others = (CausalResBlock(outer, outer, self.groups) for _ in range(self.res_blocks - 1))
            yield nn.ModuleList([first, *others])


class TemporalEncoder(nn.Module):
    """Levels of residual blocks with a halving of time after some; parameters are named as in Open-Sora 1.2."""

    def __init__(self, sizes: TemporalSizes) -> None:
        super().__init__()
        widths, channels = sizes.widths, sizes.latent_channels
        self.conv_in = CausalConv3d(channels, widths[0], 3, bias=False)
        self.block_res_blocks = nn.ModuleList(sizes.blocks((widths[0], *widths)))
        self.conv_blocks = nn.ModuleList(
            CausalConv3d(width, width, 3, time_stride=2) if halve else nn.Identity()
            for width, halve in zip(widths, sizes.downsample, strict=False)
        )
        self.res_blocks = next(sizes.blocks((widths[-1], widths[-1])))
        self.norm1 = nn.GroupNorm(sizes.groups, widths[-1])
        self.conv2 = CausalConv3d(widths[-1], 2 * channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, frames, h, w] to [B, 2C, frames / compression, h, w]."""
        x = self.conv_in(x)
        for level, blocks in enumerate(self.block_res_blocks):
            x = _through(blocks, x)
            if level < len(self.conv_blocks):
                x = self.conv_blocks[level](x)
        x = _through(self.res_blocks, x)
        return self.conv2(F.silu(self.norm1(x)))


class TemporalDecoder(nn.Module):
    """The encoder's levels backwards: its lists are stored by level and run from the last level to the first."""

    def __init__(self, sizes: TemporalSizes) -> None:
        super().__init__()
        widths, channels = sizes.widths, sizes.latent_channels
        self.conv1 = CausalConv3d(channels, widths[-1], 3)
        self.res_blocks = next(sizes.blocks((widths[-1], widths[-1])))
        self.block_res_blocks = nn.ModuleList(reversed(list(sizes.blocks((widths[-1], *reversed(widths))))))
        self.conv_blocks = nn.ModuleList(
            CausalConv3d(width, 2 * width, 3) if double else nn.Identity()
            for width, double in zip(widths[1:], sizes.downsample, strict=True)
        )
        self.norm1 = nn.GroupNorm(sizes.groups, widths[0])
        self.conv_out = CausalConv3d(widths[0], channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, frames, h, w] to [B, C, compression · frames, h, w]."""
        x = _through(self.res_blocks, self.conv1(x))
        for level in reversed(range(len(self.block_res_blocks))):
            x = _through(self.block_res_blocks[level], x)
            if level and isinstance(convolution := self.conv_blocks[level - 1], CausalConv3d):
                x = _channels_to_time(convolution(x))
        return self.conv_out(F.silu(self.norm1(x)))


class TemporalAutoencoder(nn.Module):
    """Both directions with their 1×1×1 convolutions, for one chunk of frames (Open-Sora 1.2)."""

    def __init__(self, sizes: TemporalSizes) -> None:
        super().__init__()
        channels = sizes.latent_channels
        self.compression = sizes.compression
        self.encoder = TemporalEncoder(sizes)
        self.quant_conv = CausalConv3d(2 * channels, 2 * channels, 1)
        self.post_quant_conv = CausalConv3d(channels, channels, 1)
        self.decoder = TemporalDecoder(sizes)

    def encode(self, x: Tensor) -> Tensor:
        """Mean and log-variance [B, 2C, ⌈frames / compression⌉, h, w] of latents of frames [B, C, frames, h, w].

        Zeros stand before the first frame where their number is no multiple of the compression.
        """
        return self.quant_conv(self.encoder(F.pad(x, (0, 0, 0, 0, -x.shape[2] % self.compression, 0))))

    def decode(self, z: Tensor, frames: int) -> Tensor:
        """[B, C, ⌈frames / compression⌉, h, w] to [B, C, frames, h, w]: what stands for the zeros is dropped."""
        return self.decoder(self.post_quant_conv(z))[:, :, -frames % self.compression :]


def _through(blocks: nn.Module, x: Tensor) -> Tensor:
    for block in blocks.children():
        x = block(x)
    return x


def _channels_to_time(x: Tensor) -> Tensor:
    """[B, 2C, frames, h, w] to [B, C, 2 · frames, h, w]: neighbouring channels are neighbouring frames."""
    return x.unflatten(1, (-1, 2)).transpose(2, 3).flatten(2, 3)
