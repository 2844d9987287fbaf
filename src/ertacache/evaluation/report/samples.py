"""Samples side by side: pictures or clips, each with its difference from the one without cache."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ertacache.errors import InvalidArgument
from ertacache.evaluation.report.embedded import (
    amplified_differences,
    image_uri,
    is_pixel_art,
    loop_uri,
    open_clip,
    open_image,
    strip_uri,
)

#: The frames of a clip; a picture is a clip of one.
Frames = Sequence[Image.Image]
#: Seed and prompt of a run, by number.
Run = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Sample:
    """A file and what is known of it.

    Attributes:
        where: what it is, for messages.
        frames: number of frames of a clip; None for a picture.
        psnr: of this one, in dB.
    """

    path: Path
    where: str
    frames: int | None
    psnr: float


@dataclass(frozen=True, slots=True)
class Sampled:
    """One column of a sheet: a method with its samples."""

    name: str
    samples: Mapping[Run, Sample]


@dataclass(frozen=True, slots=True)
class View:
    """One cell of a sheet; what is shown are data URIs.

    Attributes:
        image: the picture, or frames of the clip side by side.
        loop: the clip as it plays; None for a picture.
        difference: of `image` from that of the uncached run, amplified; None for that run itself.
        gain: how much it is amplified.
        pixels: whether to show them when enlarged.
    """

    name: str
    psnr: float
    image: str
    loop: str | None
    difference: str | None
    gain: int
    pixels: bool


@dataclass(frozen=True, slots=True)
class Sheet:
    """Samples of methods of one cost; a row of views for each run, the first of them without cache where it is there.

    Attributes:
        rows: run, and one view for each of `names`; None where a method has no sample of that run.
    """

    heading: str
    names: Sequence[str]
    rows: Sequence[tuple[Run, Sequence[View | None]]]
    reference: bool


def sheet(heading: str, reference: Sampled | None, others: Sequence[Sampled]) -> Sheet | None:
    """The samples of methods beside those without cache; None where no method has any.

    Raises:
        InvalidArgument: a sample that is missing, cannot be read or has another size or length than its reference.
    """
    others = [one for one in others if one.samples]
    if not others:
        return None
    reference = reference if reference is not None and reference.samples else None
    columns = [reference, *others] if reference else others
    runs = sorted({run for one in others for run in one.samples})
    rows: list[tuple[Run, list[View | None]]] = []
    for run in runs:
        truth = reference.samples.get(run) if reference else None
        frames = open_frames(truth) if truth else None
        rows.append((run, [_view(one, one.samples.get(run), truth, frames) for one in columns]))
    return Sheet(heading, [one.name for one in columns], rows, reference is not None)


def open_frames(sample: Sample) -> Frames:
    """A sample's frames.

    Raises:
        InvalidArgument: as `open_image` and `open_clip`.
    """
    if sample.frames is None:
        return [open_image(sample.path, sample.where)]
    return open_clip(sample.path, sample.where, sample.frames)


def _view(column: Sampled, sample: Sample | None, truth: Sample | None, uncached: Frames | None) -> View | None:
    if sample is None:
        return None
    own = uncached is None or sample is truth
    frames = uncached if uncached is not None and own else open_frames(sample)
    gain, difference = (1, None) if own or uncached is None else _difference(frames, uncached, sample.where)
    moves = len(frames) > 1
    return View(
        name=column.name,
        psnr=sample.psnr,
        image=strip_uri(frames) if moves else image_uri(frames[0]),
        loop=loop_uri(frames) if moves else None,
        difference=difference,
        gain=gain,
        pixels=is_pixel_art(frames[0]),
    )


def _difference(frames: Frames, truth: Frames, where: str) -> tuple[int, str]:
    if len(frames) != len(truth):
        raise InvalidArgument(
            f"{where} has {len(frames)} frames and its uncached reference {len(truth)}; generate equally many"
        )
    gain, apart = amplified_differences(frames, truth, where)
    return gain, image_uri(apart[0], lossless=False) if len(apart) == 1 else strip_uri(apart, lossless=False)
