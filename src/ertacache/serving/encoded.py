"""Pictures and clips as the bytes of a file."""

from io import BytesIO
from pathlib import Path

from torch import Tensor

from ertacache.evaluation.sample_files import eight_bit, mp4


def picture(image: Tensor, kind: str, compression: int = 100) -> bytes:
    """An image [3, H, W] in [0, 1] as png, webp or jpeg; `compression` is the quality of the last two, 100 the best.

    WebP of quality 100 loses nothing.
    """
    from PIL import Image

    lossy = {"quality": compression, "lossless": kind == "webp" and compression == 100}
    options, file = {"compress_level": 1} if kind == "png" else lossy, BytesIO()
    Image.fromarray(eight_bit(image[None])[0].numpy()).save(file, kind.upper(), **options)
    return file.getvalue()


def clip(frames: Tensor, fps: float) -> bytes:
    """A clip [F, 3, H, W] in [0, 1] as mp4."""
    return mp4(eight_bit(frames), Path("clip.mp4"), fps)
