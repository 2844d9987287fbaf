"""The samples of a comparison, side by side: pictures or clips with what differs from the uncached run."""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from ertacache.errors import InvalidArgument
from ertacache.report.comparison_file import ComparisonFile, Result, Section
from ertacache.report.comparison_rows import Row
from ertacache.report.embedded import amplified_difference, clip_uri, image_uri, is_pixel_art, open_image


@dataclass(frozen=True, slots=True)
class Cell:
    """One sample: a picture or a clip, stills of a clip by name, and the amplified difference, all as data URIs."""

    result: Result
    psnr: float
    uri: str
    clip: bool
    pixels: bool
    stills: tuple[tuple[str, str], ...]
    difference: str | None


@dataclass(frozen=True, slots=True)
class Line:
    """The samples of one prompt and seed; None where an entrant has none."""

    prompt: int
    seed: int
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True, slots=True)
class Sheet:
    """The samples of one target: the uncached run, then entrants from the highest mean PSNR to the lowest."""

    section: Section
    results: tuple[Result, ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class _Frames:
    """What a difference and stills are made of; a picture is its own first, middle and last frame."""

    first: Image.Image
    middle: Image.Image
    last: Image.Image


def can_decode() -> bool:
    """Whether clips can be taken apart here; without the extra `video`, they are shown without stills."""
    return find_spec("imageio_ffmpeg") is not None


@dataclass
class Samples:
    """The sheets of a comparison; every uncached sample is opened once.

    Args:
        comparison: the samples' paths are relative to its folder.
    """

    comparison: ComparisonFile
    _truths: dict[str, _Frames | None] = field(default_factory=dict[str, _Frames | None], init=False)

    def sheet(self, section: Section) -> Sheet | None:
        """The samples of one section; None where it has none.

        Raises:
            InvalidArgument: a sample that is missing, cannot be read or has another size than its reference.
        """
        own = [result for result in section.results if any(row.sample for row in result.rows)]
        if not own:
            return None
        ranked = sorted(own, key=lambda result: -result.psnr.mean)
        results = (self.comparison.reference, *ranked)
        keys = sorted({(row.seed, row.prompt) for result in ranked for row in result.rows if row.sample})
        lines = tuple(self._line(seed, prompt, results) for seed, prompt in keys)
        return Sheet(section, results, lines)

    def _line(self, seed: int, prompt: int, results: Sequence[Result]) -> Line:
        found = [_sampled(result, prompt, seed) for result in results]
        cells = [
            None if row is None else self._cell(result, row, found[0])
            for result, row in zip(results, found, strict=True)
        ]
        return Line(prompt, seed, tuple(cells))

    def _cell(self, result: Result, row: Row, reference: Row | None) -> Cell:
        path, where = self._place(row)
        clip = clip_uri(path, where) if _is_clip(path) else None
        frames = self._truth(row) if row is reference else self._frames(row)
        truth = None if reference is None or row is reference else self._truth(reference)
        difference = None
        if frames is not None and truth is not None:
            difference = image_uri(amplified_difference(frames.middle, truth.middle, where), lossless=False)
        stills: list[tuple[str, str]] = []
        if clip is not None and frames is not None:
            stills = [("first frame", image_uri(frames.first)), ("last frame", image_uri(frames.last))]
        return Cell(
            result=result,
            psnr=row.metrics["psnr"],
            uri=clip or (image_uri(frames.first) if frames is not None else ""),
            clip=clip is not None,
            pixels=frames is not None and is_pixel_art(frames.first),
            stills=tuple(stills),
            difference=difference,
        )

    def _truth(self, row: Row) -> _Frames | None:
        name = row.sample or ""
        if name not in self._truths:
            self._truths[name] = self._frames(row)
        return self._truths[name]

    def _frames(self, row: Row) -> _Frames | None:
        path, where = self._place(row)
        if _is_clip(path):
            return _decoded(path, where) if can_decode() else None
        image = open_image(path, where)
        return _Frames(image, image, image)

    def _place(self, row: Row) -> tuple[Path, str]:
        return self.comparison.folder / (row.sample or ""), f"sample {row.sample} (results.jsonl, line {row.line})"


def _is_clip(path: Path) -> bool:
    return path.suffix == ".mp4"


def _sampled(result: Result, prompt: int, seed: int) -> Row | None:
    return next((row for row in result.rows if row.sample and row.key[1:] == (prompt, seed)), None)


def _decoded(path: Path, where: str) -> _Frames:
    """First, middle and last frame of a clip, decoded by the ffmpeg that imageio-ffmpeg brings."""
    from imageio_ffmpeg import get_ffmpeg_exe

    # Called by itself: imageio's own readers leave the pipes to it open.
    command = [get_ffmpeg_exe(), "-v", "error", "-i", str(path.resolve()), "-f", "image2pipe", "-c:v", "ppm", "-"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    header = re.match(rb"P6\s(\d+)\s(\d+)\s255\s", done.stdout)
    if header is None:
        reason = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise InvalidArgument(f"{where} cannot be decoded ({reason or 'no frames'}); run the comparison again")
    width, height = (int(number) for number in header.groups())
    length = header.end() + 3 * width * height
    frames = [done.stdout[start + header.end() : start + length] for start in range(0, len(done.stdout), length)]
    chosen = (frames[0], frames[len(frames) // 2], frames[-1])
    return _Frames(*(Image.frombytes("RGB", (width, height), frame) for frame in chosen))
