"""Pictures and clips as data URIs, and differences between pictures made visible."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, UnidentifiedImageError

from ertacache.errors import InvalidArgument
from ertacache.evaluation.sample_files import FPS, LOSSLESS_SIDE, durations

#: How much differences are amplified at most.
LARGEST_GAIN = 64
#: Frames of a clip that are shown side by side, and the pixels between them.
STRIP_FRAMES, STRIP_GAP = 5, 2
# Largest sides: of a picture, of a clip that plays, of a frame beside others.
_LARGEST_SIDE, _LARGEST_CLIP, _LARGEST_FRAME = 512, 256, 192


def open_image(path: Path, where: str) -> Image.Image:
    """An image file as RGB.

    Args:
        where: what the image is, for messages.

    Raises:
        InvalidArgument: it is missing or no image.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise _missing(path, where) from error
    except (UnidentifiedImageError, OSError) as error:
        raise InvalidArgument(f"{where} is not a readable image; run the comparison again") from error


def open_clip(path: Path, where: str, count: int) -> list[Image.Image]:
    """The `count` frames of a looping image as RGB. Equal neighbours, which its writer joined, are apart again.

    Raises:
        InvalidArgument: it is missing, no image, or of another length.
    """
    frames: list[Image.Image] = []
    try:
        with Image.open(path) as image:
            still = getattr(image, "n_frames", 1) == 1
            for index in range(getattr(image, "n_frames", 1)):
                image.seek(index)
                frame = image.convert("RGB")
                stays = count if still else max(1, round(image.info["duration"] * FPS / 1000))
                frames += [frame] * stays
    except FileNotFoundError as error:
        raise _missing(path, where) from error
    except (UnidentifiedImageError, OSError) as error:
        raise InvalidArgument(f"{where} is not a readable image; run the comparison again") from error
    if len(frames) != count:
        raise InvalidArgument(f"{where} has {len(frames)} frames and its row {count}; run the comparison again")
    return frames


def amplified_differences(
    images: Sequence[Image.Image], truths: Sequence[Image.Image], where: str
) -> tuple[int, list[Image.Image]]:
    """Absolute differences of RGB images of one size, all amplified alike until their largest hundredth is bright.

    Returns:
        How much: a power of two up to `LARGEST_GAIN`; and the differences.

    Raises:
        InvalidArgument: two sizes.
    """
    for image, truth in zip(images, truths, strict=True):
        if image.size != truth.size:
            raise InvalidArgument(
                f"{where} has {image.size} pixels and its uncached reference {truth.size}; generate both at one size"
            )
    apart = [ImageChops.difference(image, truth) for image, truth in zip(images, truths, strict=True)]
    bright = np.quantile(np.stack([np.asarray(one) for one in apart]), 0.99)
    gain = 1
    while gain < LARGEST_GAIN and 2 * gain * bright <= 255:
        gain *= 2
    table = [min(255, gain * value) for value in range(256)] * 3
    return gain, [one.point(table) for one in apart]


def is_pixel_art(image: Image.Image) -> bool:
    """Whether an image is small enough to be kept without loss and enlarged with visible pixels."""
    return max(image.size) <= LOSSLESS_SIDE


def image_uri(image: Image.Image, *, lossless: bool = True) -> str:
    """A WebP of at most 512 pixels a side: small images lossless, others at quality 90.

    Args:
        lossless: False for a small image that only shows where something is: then the smaller of both.
    """
    if not is_pixel_art(image):
        return _uri("image/webp", _webp(_reduced(image, _LARGEST_SIDE), False))
    return _smallest(image, lossless)


def strip_uri(frames: Sequence[Image.Image], *, lossless: bool = True) -> str:
    """`side_by_side` as a WebP; frames of at most 192 pixels a side, small ones as `image_uri` keeps small images."""
    if is_pixel_art(frames[0]):
        return _smallest(side_by_side(frames), lossless)
    return _uri("image/webp", _webp(side_by_side([_reduced(frame, _LARGEST_FRAME) for frame in frames]), False))


def side_by_side(frames: Sequence[Image.Image]) -> Image.Image:
    """Up to `STRIP_FRAMES` frames of a clip, evenly spaced, the first and the last among them, with gaps between."""
    shown = [frames[index] for index in shown_frames(len(frames))]
    width, height = shown[0].size
    strip = Image.new("RGBA", (len(shown) * (width + STRIP_GAP) - STRIP_GAP, height))
    for index, frame in enumerate(shown):
        strip.paste(frame, (index * (width + STRIP_GAP), 0))
    return strip


def shown_frames(count: int) -> list[int]:
    """Which of `count` frames a strip shows."""
    shown = min(count, STRIP_FRAMES)
    return [round(n * (count - 1) / max(shown - 1, 1)) for n in range(shown)]


def loop_uri(frames: Sequence[Image.Image]) -> str:
    """The clip as a WebP that loops, of at most 256 pixels a side; the strip beside it is the exact one."""
    small = [_reduced(frame, _LARGEST_CLIP) for frame in frames]
    buffer = io.BytesIO()
    times = durations(len(small), FPS, 1)
    small[0].save(buffer, "WEBP", save_all=True, append_images=small[1:], duration=times, loop=0, quality=85, method=4)
    return _uri("image/webp", buffer.getvalue())


def _reduced(image: Image.Image, side: int) -> Image.Image:
    image = image.copy()
    image.thumbnail((side, side))
    return image


def _smallest(image: Image.Image, lossless: bool) -> str:
    data = _webp(image, True)
    return _uri("image/webp", data if lossless else min(data, _webp(image, False), key=len))


def _missing(path: Path, where: str) -> InvalidArgument:
    return InvalidArgument(
        f"{where} is not in {path.parent}; keep results.jsonl beside its samples folder, or run the comparison again"
    )


def _webp(image: Image.Image, lossless: bool) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=lossless, quality=90, method=4)
    return buffer.getvalue()


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
