"""Pictures and clips as the bytes of a file."""

from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from ertacache.evaluation.sample_files import eight_bit, write_clip


def picture(image: Tensor, kind: str, compression: int = 100) -> bytes:
    """An image [3, H, W] in [0, 1] as png, webp or jpeg; `compression` is the quality of the last two, 100 the best.

    WebP of quality 100 loses nothing.
    """
    from PIL import Image

    options: dict[str, Any] = {"compress_level": 1} if kind == "png" else {"quality": compression}
    if kind == "webp" and compression == 100:
        options |= {"lossless": True}
    file = BytesIO()
    Image.fromarray(eight_bit(image[None])[0].numpy()).save(file, kind.upper(), **options)
    return file.getvalue()


def clip(frames: Tensor, fps: float) -> bytes:
    """A clip [F, 3, H, W] in [0, 1] as mp4."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_clip(frames, path, fps=fps)
        return path.read_bytes()
