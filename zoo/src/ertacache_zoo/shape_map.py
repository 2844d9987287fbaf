"""Which shape a video model has to draw where: told to it in training, as it learns outlines last.

Movers cover a sixth of a clip, and their outlines are a detail of that. So training weighs an error within them more,
and asks at every place that a mover covers which shape is drawn there, and whether the caption names it first.
"""

import torch
from torch import Tensor

from ertacache_zoo import clips

#: How much more an error within a mover counts, on latents that are free of noise.
EMPHASIS = 4.0
#: Where no mover is; cross-entropy ignores it.
NOWHERE = -100
#: Pixels of a latent, and the frames that each latent frame is made of.
_SIDE, _GROUPS = 4, (slice(0, 1), slice(1, 5), slice(5, 9))


def shape_map(drawn: list[clips.Clip], paths: Tensor) -> Tensor:
    """The shape at each latent position of clips, as its number in `clips.SHAPES`.

    Args:
        drawn: N clips.
        paths: centres of their movers in every frame, [N, 2, 9, 2] pixels to the right and down.

    Returns:
        int64 [N, 3, 12, 12]; `NOWHERE` outside the box of each mover, on average over the frames of a latent frame.
    """
    shapes = torch.tensor([[clips.SHAPES.index(mover.shape) for mover in clip.movers] for clip in drawn])
    return _where(drawn, paths, shapes)


def mover_map(drawn: list[clips.Clip], paths: Tensor) -> Tensor:
    """Which of the two movers is at each latent position, 0 or 1 in the caption's order; else as `shape_map`."""
    return _where(drawn, paths, torch.arange(2).expand(len(drawn), 2))


def _where(drawn: list[clips.Clip], paths: Tensor, values: Tensor) -> Tensor:
    """The one of `values` [N, 2] that belongs to the mover at each latent position."""
    extents = torch.tensor([[mover.extent for mover in clip.movers] for clip in drawn])
    centres = torch.stack([paths[:, :, group].mean(2) for group in _GROUPS], 2)
    places = (torch.arange(clips.CLIP_SIZE // _SIDE) + 0.5) * _SIDE
    # [N, 2, 3, 12]: whether a column, or a row, crosses a mover
    columns, rows = ((places - centres[..., axis, None]).abs() < extents[:, :, None, None] for axis in (0, 1))
    inside = rows[..., :, None] & columns[..., None, :]
    found = torch.where(inside, values[:, :, None, None, None], NOWHERE)
    return found.amax(1)


def emphasis(shapes: Tensor, sigma: Tensor) -> Tensor:
    """How much an error counts at each latent position, [B, 1, 3, 12, 12], for `shapes` [B, 3, 12, 12] at `sigma` [B].

    The cleaner the latents, the more within a mover: in pure noise nobody knows where one will be, and a prediction
    that counts more where it is would show movers everywhere.
    """
    level = sigma[:, None, None, None]
    return (1 + EMPHASIS * (1 - level) * (shapes != NOWHERE)).unsqueeze(1)
