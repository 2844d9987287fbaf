"""A temporal autoencoder in float64, tap by tap and sample by sample: a second witness of its mathematics.

Nothing but the names of the weights is shared with the module; shapes are [C, frames, H, W].
"""

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def encoded(weights: Weights, x: Tensor, halved: list[bool]) -> Tensor:
    """Mean and log-variance of one chunk; `halved` says after which levels time is halved."""
    first = -x.shape[1] % 2 ** sum(halved)
    x = torch.cat([torch.zeros(x.shape[0], first, *x.shape[2:], dtype=x.dtype), x], 1)
    x = convolved(weights, "encoder.conv_in", x)
    for level in range(len(halved) + 1):
        x = blocks(weights, f"encoder.block_res_blocks.{level}", x)
        if level < len(halved) and halved[level]:
            x = convolved(weights, f"encoder.conv_blocks.{level}", x, stride=2)
    x = activated(weights, "encoder.norm1", blocks(weights, "encoder.res_blocks", x))
    return convolved(weights, "quant_conv", convolved(weights, "encoder.conv2", x))


def decoded(weights: Weights, z: Tensor, frames: int, doubled: list[bool]) -> Tensor:
    """Frames of one chunk of latents."""
    x = convolved(weights, "decoder.conv1", convolved(weights, "post_quant_conv", z))
    x = blocks(weights, "decoder.res_blocks", x)
    for level in range(len(doubled), -1, -1):
        x = blocks(weights, f"decoder.block_res_blocks.{level}", x)
        if level > 0 and doubled[level - 1]:
            x = convolved(weights, f"decoder.conv_blocks.{level - 1}", x)
            # Channel 2c holds the first frame of each pair, 2c + 1 the second.
            pairs = torch.empty(x.shape[0] // 2, 2 * x.shape[1], *x.shape[2:], dtype=x.dtype)
            pairs[:, 0::2], pairs[:, 1::2] = x[0::2], x[1::2]
            x = pairs
    return convolved(weights, "decoder.conv_out", activated(weights, "decoder.norm1", x))[:, x.shape[1] - frames :]


def convolved(weights: Weights, name: str, x: Tensor, stride: int = 1) -> Tensor:
    """A sum over the kernel's taps; a result reads its own frames and earlier ones, and zeros beyond every edge."""
    kernel, bias = weights[f"{name}.conv.weight"], weights.get(f"{name}.conv.bias")
    size, (_, frames, height, width) = kernel.shape[2], x.shape
    out = torch.zeros(kernel.shape[0], frames // stride, height, width, dtype=x.dtype)
    for frame in range(frames // stride):
        newest = stride * frame + stride - 1
        for back in range(min(size, newest + 1)):
            for row in range(height):
                for column in range(width):
                    for down in range(size):
                        for right in range(size):
                            at = row + down - size // 2, column + right - size // 2
                            if 0 <= at[0] < height and 0 <= at[1] < width:
                                tap = kernel[:, :, size - 1 - back, down, right]
                                out[:, frame, row, column] += tap @ x[:, newest - back, at[0], at[1]]
    return out if bias is None else out + bias[:, None, None, None]


def blocks(weights: Weights, name: str, x: Tensor) -> Tensor:
    """The residual blocks `name`.0, `name`.1, … one after another."""
    n = 0
    while f"{name}.{n}.norm1.weight" in weights:
        block = f"{name}.{n}"
        inner = convolved(weights, f"{block}.conv1", activated(weights, f"{block}.norm1", x))
        inner = convolved(weights, f"{block}.conv2", activated(weights, f"{block}.norm2", inner))
        x = inner + (convolved(weights, f"{block}.conv3", x) if f"{block}.conv3.conv.weight" in weights else x)
        n += 1
    return x


def activated(weights: Weights, name: str, x: Tensor, groups: int = 2) -> Tensor:
    """x · sigmoid(x) of the group-normed input."""
    normed = torch.empty_like(x)
    size = x.shape[0] // groups
    for start in range(0, x.shape[0], size):
        part = x[start : start + size]
        mean = part.sum() / part.numel()
        variance = ((part - mean) ** 2).sum() / part.numel()
        normed[start : start + size] = (part - mean) / (variance + 1e-5) ** 0.5
    normed = normed * weights[f"{name}.weight"][:, None, None, None] + weights[f"{name}.bias"][:, None, None, None]
    return normed / (1 + torch.exp(-normed))
