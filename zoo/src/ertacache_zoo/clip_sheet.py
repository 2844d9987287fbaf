"""Pictures of clips with their captions: frame by frame, or moving."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ertacache_zoo.check import enlarged, save_picture

#: Clips on a picture and in an animation, and how many times larger their pixels are there.
_ROWS, _MOVING = 8, 6
_ROW_ZOOM, _MOVING_ZOOM = 2, 3
_COLUMNS, _GAP, _PALETTE = 3, 8, 256
#: Milliseconds for which an animation shows a frame, and its last one.
_FRAME_TIME, _LAST_TIME = 120, 700


def write(videos: Tensor, captions: Sequence[str], path: Path) -> None:
    """Write the first of videos [N, F, 3, H, W] in [0, 1]: moving if `path` is a .gif, else frame by frame."""
    if path.suffix.lower() == ".gif":
        frames = [_grid(videos[:_MOVING, n], captions) for n in range(videos.shape[1])]
        times = [_FRAME_TIME] * (len(frames) - 1) + [_LAST_TIME]
        save_picture(frames[0], path, save_all=True, append_images=frames[1:], duration=times, loop=0)
    else:
        save_picture(_rows(videos[:_ROWS], captions), path)


def _rows(videos: Tensor, captions: Sequence[str]) -> Any:
    """One clip a row, its frames from left to right, with its caption below."""
    from PIL import Image, ImageDraw

    size, text = videos.shape[-1] * _ROW_ZOOM + _GAP // 2, 20
    canvas = Image.new("RGB", (videos.shape[1] * size, len(videos) * (size + text)), "white")
    pen = ImageDraw.Draw(canvas)
    for row, (video, caption) in enumerate(zip(videos, captions, strict=False)):
        top = row * (size + text)
        for column, frame in enumerate(video):
            canvas.paste(enlarged(frame, frame.shape[-1] * _ROW_ZOOM), (column * size, top))
        pen.text((0, top + size), caption, fill="black")
    return canvas


def _grid(frames: Tensor, captions: Sequence[str]) -> Any:
    """One frame of each clip, three in a row, with its caption below."""
    from PIL import Image, ImageDraw

    size, text = frames.shape[-1] * _MOVING_ZOOM + _GAP, 72
    rows = -(-len(frames) // _COLUMNS)
    canvas = Image.new("RGB", (_COLUMNS * size, rows * (size + text)), "white")
    pen = ImageDraw.Draw(canvas)
    for n, (frame, caption) in enumerate(zip(frames, captions, strict=False)):
        left, top = n % _COLUMNS * size, n // _COLUMNS * (size + text)
        canvas.paste(enlarged(frame, frame.shape[-1] * _MOVING_ZOOM), (left, top))
        pen.multiline_text((left, top + size - _GAP // 2), textwrap.fill(caption, 23), fill="black", spacing=1)
    # By coverage: small bright movers keep their colours beside large backgrounds.
    return canvas.quantize(_PALETTE, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
