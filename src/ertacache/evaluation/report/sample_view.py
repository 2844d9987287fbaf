"""A sample as a report shows it: a picture, or a clip that plays above its frames, and what differs from no cache."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ertacache.errors import InvalidArgument
from ertacache.evaluation.report.embedded import (
    amplified_difference,
    image_uri,
    is_pixel_art,
    loop_uri,
    open_clip,
    open_image,
    strip_uri,
)

#: The frames of a clip; a picture is a clip of one.
Frames = Sequence[Image.Image]


@dataclass(frozen=True, slots=True)
class View:
    """Data URIs.

    Attributes:
        image: the picture, or frames of the clip side by side.
        loop: the clip as it plays; None for a picture.
        difference: of `image` from the same of the uncached run, amplified; None for that one.
        pixels: whether to show them when enlarged.
    """

    image: str
    loop: str | None
    difference: str | None
    pixels: bool


def open_frames(path: Path, where: str, count: int | None) -> Frames:
    """A sample's frames.

    Args:
        where: what it is, for messages.
        count: frames of a clip; None for a picture.

    Raises:
        InvalidArgument: as `open_image` and `open_clip`.
    """
    return [open_image(path, where)] if count is None else open_clip(path, where, count)


def view(frames: Frames, truth: Frames | None, where: str) -> View:
    """What is shown of a sample.

    Args:
        truth: the uncached run's frames, as many; None for that run itself.

    Raises:
        InvalidArgument: another size or length than the uncached run's.
    """
    difference = None
    if truth is not None:
        if len(frames) != len(truth):
            raise InvalidArgument(
                f"{where} has {len(frames)} frames and its uncached reference {len(truth)}; generate equally many"
            )
        apart = [amplified_difference(a, b, where) for a, b in zip(frames, truth, strict=True)]
        difference = image_uri(apart[0], lossless=False) if len(apart) == 1 else strip_uri(apart, lossless=False)
    moves = len(frames) > 1
    return View(
        image=strip_uri(frames) if moves else image_uri(frames[0]),
        loop=loop_uri(frames) if moves else None,
        difference=difference,
        pixels=is_pixel_art(frames[0]),
    )
