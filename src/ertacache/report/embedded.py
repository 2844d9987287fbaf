"""Pictures and clips as data URIs, and differences between pictures made visible."""

import base64
import io
from pathlib import Path

from PIL import Image, ImageChops, UnidentifiedImageError

from ertacache.errors import InvalidArgument

DIFFERENCE_GAIN = 4
_PIXEL_ART_SIDE = 128  # up to this side, images are kept lossless and enlarged with visible pixels
_LARGEST_SIDE = 512


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


def amplified_difference(image: Image.Image, truth: Image.Image, where: str) -> Image.Image:
    """The absolute difference of two RGB images of one size, times `DIFFERENCE_GAIN`.

    Raises:
        InvalidArgument: two sizes.
    """
    if image.size != truth.size:
        raise InvalidArgument(
            f"{where} has {image.size} pixels and its uncached reference {truth.size}; generate both at one size"
        )
    gain = [min(255, DIFFERENCE_GAIN * value) for value in range(256)] * 3
    return ImageChops.difference(image, truth).point(gain)


def is_pixel_art(image: Image.Image) -> bool:
    """Whether an image is small enough to show its pixels."""
    return max(image.size) <= _PIXEL_ART_SIDE


def image_uri(image: Image.Image, *, lossless: bool = True) -> str:
    """A WebP of at most 512 pixels a side: small images lossless, others at quality 90.

    Args:
        lossless: False for a small image that only shows where something is: then the smaller of both.
    """
    if not is_pixel_art(image):
        image = image.copy()
        image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
        return _uri("image/webp", _webp(image, False))
    data = _webp(image, True)
    return _uri("image/webp", data if lossless else min(data, _webp(image, False), key=len))


def clip_uri(path: Path, where: str) -> str:
    """An mp4 file as it is.

    Raises:
        InvalidArgument: it is missing or no mp4.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _missing(path, where) from error
    if data[4:8] != b"ftyp":
        raise InvalidArgument(f"{where} is not an mp4 file; run the comparison again")
    return _uri("video/mp4", data)


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
