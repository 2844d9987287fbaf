"""The image that clips begin with, or the clip that they go on from, in pixels."""

from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ertacache.errors import InvalidArgument

_IMAGE = "an image, an array [height, width, 3] or a tensor [3, height, width]"
_CLIP = "a list of images, an array [frames, height, width, 3] or a tensor [frames, 3, height, width]"


def given_frames(image: Any, video: Any, size: tuple[int, int], count: int) -> Tensor | None:
    """The frames that are given to a call.

    Args:
        image: one, or a list with one for each prompt: pictures, arrays [H, W, 3] or tensors [3, H, W].
        video: one clip, or a list with one for each prompt: a list of images, an array [F, H, W, 3] or a tensor
            [F, 3, H, W]. Whole numbers are from 0 to 255, others from 0 to 1.
        size: height and width of the call.
        count: prompts of the call.

    Returns:
        [1 or count, 3, F, H, W] float32 in [-1, 1]; None where nothing is given.

    Raises:
        InvalidArgument: both at once, something else than that, another size, or another number of them.
    """
    if image is not None and video is not None:
        raise InvalidArgument("both image and video are given; give the image to begin with, or the clip to go on from")
    if image is None and video is None:
        return None
    name = "image" if video is None else "video"
    clips = [[one] for one in _each(image)] if video is None else _clips(video)
    if len(clips) not in (1, count):
        raise InvalidArgument(f"{len(clips)} of {name} are given for {count} prompt(s); give one, or one for each")
    frames = [[_pixels(one, name, size) for one in clip] for clip in clips]
    lengths = sorted({len(clip) for clip in frames})
    if len(lengths) > 1:
        raise InvalidArgument(f"the clips of video have {lengths} frames; make them equal")
    return torch.stack([torch.stack(clip, 1) for clip in frames]) * 2 - 1


def _each(value: Any) -> list[Any]:
    """The images or frames in a list, or along the first axis of a batch."""
    if isinstance(value, list | tuple):
        return list(cast("list[Any]", value))
    return list(value) if getattr(value, "ndim", 3) == 4 else [value]


def _clips(video: Any) -> list[list[Any]]:
    several = getattr(video, "ndim", 0) == 5
    if isinstance(video, list) and video:
        several = isinstance(video[0], list | tuple) or getattr(cast(Any, video[0]), "ndim", 0) == 4
    clips = [_each(clip) if _is_clip(clip) else [] for clip in (video if several else [video])]
    if not clips or not all(clips):
        raise InvalidArgument(f"video is a {type(video).__name__}; give {_CLIP}, or a list of such clips")
    return clips


def _is_clip(value: Any) -> bool:
    return isinstance(value, list | tuple) or getattr(value, "ndim", 0) == 4


def _pixels(one: Any, name: str, size: tuple[int, int]) -> Tensor:
    """[3, H, W] float32 in [0, 1]."""
    if isinstance(one, Image.Image):
        one = np.asarray(one.convert("RGB"))
    if isinstance(one, np.ndarray) and one.ndim == 3:
        one = torch.from_numpy(np.array(one)).movedim(-1, 0)
    if not isinstance(one, Tensor) or one.ndim != 3 or one.shape[0] != 3:
        found = f"shape {list(one.shape)}" if hasattr(one, "shape") else type(one).__name__
        raise InvalidArgument(f"{name} has a part with {found}; give {_IMAGE if name == 'image' else _CLIP}")
    if tuple(one.shape[1:]) != size:
        raise InvalidArgument(
            f"{name} has {one.shape[1]}×{one.shape[2]} pixels (height × width) and the call {size[0]}×{size[1]}; scale "
            "and crop it, or give its height and width"
        )
    pixels = one.float() if one.is_floating_point() else one.float() / 255
    if not bool(((pixels >= 0) & (pixels <= 1)).all()):
        raise InvalidArgument(
            f"{name} has values from {float(pixels.min()):g} to {float(pixels.max()):g}; give 0 to 1, or whole numbers "
            "from 0 to 255"
        )
    return pixels.cpu()
