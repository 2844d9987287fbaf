"""Open-Sora 1.2's transformer in float64, sample by sample and frame by frame: a second witness of the mathematics.

Only the weights are shared with the module. Rotations are complex numbers, attention is a softmax written out over the
tokens that count, and a frame is modulated by itself.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return torch.einsum("...i,oi->...o", x, weights[f"{name}.weight"]) + weights[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def mlp(weights: Weights, name: str, x: Tensor) -> Tensor:
    return linear(weights, f"{name}.fc2", gelu(linear(weights, f"{name}.fc1", x)))


def centred(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
    return (x - mean) / (variance + 1e-6).sqrt()


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """[N, heads, D], [L, heads, D] twice, to [N, heads · D]."""
    scores = torch.einsum("nhd,lhd->hnl", query, key) / math.sqrt(query.shape[-1])
    shares = torch.exp(scores - scores.amax(-1, keepdim=True))
    return torch.einsum("hnl,lhd->nhd", shares / shares.sum(-1, keepdim=True), value).flatten(1)


def head_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / ((x * x).sum(-1, keepdim=True) / x.shape[-1] + 1e-6).sqrt() * weight


def inverse_powers(count: int, rounded: bool) -> Tensor:
    """10000^(−j/count), j < count."""
    values = torch.tensor([math.exp(-math.log(10_000) * j / count) for j in range(count)], dtype=torch.float64)
    return values.bfloat16().double() if rounded else values


def turned(x: Tensor, rounded: bool) -> Tensor:
    """[N, heads, D] turned by the place of each of the N, as complex numbers."""
    angles = torch.outer(torch.arange(len(x), dtype=torch.float64), inverse_powers(x.shape[-1] // 2, rounded))
    angles = angles.bfloat16().double() if rounded else angles
    turn = torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turn[:, None]).flatten(-2)


def self_attention(weights: Weights, name: str, x: Tensor, heads: int, rounded: bool | None) -> Tensor:
    """[N, C]; `rounded` None turns nothing."""
    query, key, value = linear(weights, f"{name}.qkv", x).chunk(3, dim=-1)
    query, key, value = (part.unflatten(-1, (heads, -1)) for part in (query, key, value))
    query, key = head_norm(query, weights[f"{name}.q_norm.weight"]), head_norm(key, weights[f"{name}.k_norm.weight"])
    if rounded is not None:
        query, key = turned(query, rounded), turned(key, rounded)
    return linear(weights, f"{name}.proj", attention(query, key, value))


def cross_attention(weights: Weights, name: str, x: Tensor, caption: Tensor, heads: int) -> Tensor:
    key, value = linear(weights, f"{name}.kv_linear", caption).chunk(2, dim=-1)
    query = linear(weights, f"{name}.q_linear", x)
    query, key, value = (part.unflatten(-1, (heads, -1)) for part in (query, key, value))
    return linear(weights, f"{name}.proj", attention(query, key, value))


def block(
    weights: Weights, name: str, x: Tensor, caption: Tensor, times: list[Tensor], heads: int, rounded: bool
) -> Tensor:
    """x [T, S, C] of one sample; `times` the modulation [6 C] of each frame."""
    frames, tokens, width = x.shape
    six = torch.stack([weights[f"{name}.scale_shift_table"] + time.reshape(6, width) for time in times])  # [T, 6, C]
    inner = torch.stack([centred(x[t]) * (1 + six[t, 1]) + six[t, 0] for t in range(frames)])
    attn, cross = f"{name}.attn", f"{name}.cross_attn"
    if name.startswith("temporal"):
        columns = [self_attention(weights, attn, inner[:, s], heads, rounded) for s in range(tokens)]
        attended = torch.stack(columns, dim=1)
    else:
        attended = torch.stack([self_attention(weights, attn, inner[t], heads, None) for t in range(frames)])
    made: list[Tensor] = []
    for t in range(frames):
        frame = x[t] + six[t, 2] * attended[t]
        frame = frame + cross_attention(weights, cross, frame, caption, heads)
        made.append(frame + six[t, 5] * mlp(weights, f"{name}.mlp", centred(frame) * (1 + six[t, 4]) + six[t, 3]))
    return torch.stack(made)


def scalar(weights: Weights, name: str, value: float) -> Tensor:
    angles = value * inverse_powers(128, False)
    hidden = silu(linear(weights, f"{name}.mlp.0", torch.cat((angles.cos(), angles.sin()))))
    return linear(weights, f"{name}.mlp.2", hidden)


def places(rows: int, columns: int, width: int, pixels: tuple[float, float], side: float, rounded: bool) -> Tensor:
    """[rows · columns, width], one token after the other."""
    scale, base = math.sqrt(math.prod(pixels)) / side, round(math.sqrt(rows * columns))
    own = inverse_powers(width // 4, rounded)
    found: list[Tensor] = []
    for i in range(rows):
        for j in range(columns):
            down, across = i / scale * base / rows * own, j / scale * base / columns * own
            found.append(torch.cat((across.sin(), across.cos(), down.sin(), down.cos())))
    return torch.stack(found)


def patches(weights: Weights, x: Tensor) -> Tensor:
    """[C, T, H, W] of one sample to [T, rows, columns, dim]; odd sizes are filled up with zeros."""
    channels, frames, height, width = x.shape
    filled = x.new_zeros(channels, frames, height + height % 2, width + width % 2)
    filled[..., :height, :width] = x
    parts = filled.unfold(2, 2, 2).unfold(3, 2, 2)  # [C, T, rows, columns, 2, 2]
    kernel = weights["x_embedder.proj.weight"][:, :, 0]
    return torch.einsum("ctijab,ocab->tijo", parts, kernel) + weights["x_embedder.proj.bias"]


def last_layer(weights: Weights, x: Tensor, time: Tensor, rest: Tensor | None) -> Tensor:
    """One frame [S, C]; where `rest` is given, it is a fixed one, modulated once more."""
    for own in (time,) if rest is None else (time, rest):
        shift, scale = weights["final_layer.scale_shift_table"] + own
        x = centred(x) * (1 + scale) + shift
    return linear(weights, "final_layer.linear", x)


def velocity(
    weights: Weights, x: Tensor, time: float, caption: Tensor, fps: float, size: tuple[float, float],
    moving: list[bool], *, heads: int, side: float = 512, rounded: bool = False,
) -> Tensor:  # fmt: skip
    """One sample [C, T, H, W] and the tokens of its caption that count, [L, caption_channels], to [out, T, H, W]."""
    x, frames = x.double(), x.shape[1]
    tokens = patches(weights, x)
    _, rows, columns, width = tokens.shape
    hidden = tokens.flatten(1, 2) + places(rows, columns, width, size, side, rounded)
    rate = scalar(weights, "fps_embedder", fps)
    running, resting = (scalar(weights, "t_embedder", value) + rate for value in (time, 0.0))
    times = [linear(weights, "t_block.1", silu(running if moves else resting)) for moves in moving]
    embedded = mlp(weights, "y_embedder.y_proj", caption.double())
    depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("spatial_blocks"))
    for n in range(depth):
        for kind in ("spatial_blocks", "temporal_blocks"):
            hidden = block(weights, f"{kind}.{n}", hidden, embedded, times, heads, rounded)
    made = [last_layer(weights, hidden[t], running, None if moving[t] else resting) for t in range(frames)]
    channels = made[0].shape[-1] // 4
    video = x.new_zeros(channels, frames, 2 * rows, 2 * columns)
    for t in range(frames):
        for i in range(rows):
            for j in range(columns):
                patch = made[t][i * columns + j].reshape(2, 2, channels)
                video[:, t, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = patch.permute(2, 0, 1)
    return video[..., : x.shape[2], : x.shape[3]]
