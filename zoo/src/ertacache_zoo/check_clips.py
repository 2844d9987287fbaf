"""Whether a video model shows what the caption says, by a judge that knows the generator."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ertacache_zoo import check, clip_sheet, clips, scenes

#: Largest distance (RGB, unit cube) at which a pixel still counts as a palette colour.
_NEAR = 0.33
#: Fewest pixels of the colour that make a mover, a third of the smallest shape; and in how many frames of nine.
_FEWEST, _FRAMES = 10, 8
#: Pixels per frame below which a mover stands still, and above which it moves fast.
_STILL, _FAST = 0.4, sum(clips.SPEEDS.values()) / 2
#: Radii and, as centres lie between pixels, offsets at which the shape templates are drawn, in pixels.
_RADII = (4.0, 4.5, 5.0, 6.3, 7.0, 7.7)
_OFFSETS = (0.0, 0.5)
#: Half the side of a template, and how many frames on the shape is looked at again.
_REACH, _EVERY = 9, 4


@dataclass(frozen=True, slots=True)
class Verdict:
    """Shares in [0, 1], over `objects` movers, of right ones; a mover whose colour is missing is wrong in all."""

    objects: int
    colour: float
    direction: float
    speed: float
    shape: float


class Judge:
    """Reads motion off the path of a colour's centre, and the shape by the best-fitting template."""

    def __init__(self) -> None:
        self._palette = torch.tensor(list(clips.COLOURS.values()))
        axis = torch.arange(2 * _REACH + 1, dtype=torch.float32) - _REACH
        v, u = torch.meshgrid(axis, axis, indexing="ij")
        drawn = [
            (shape, (scenes.distance(shape, u - right, v - down, radius) < 0).float())
            for shape in clips.SHAPES
            for radius in _RADII
            for right in _OFFSETS
            for down in _OFFSETS
        ]
        self._shapes = [shape for shape, _ in drawn]
        self._templates = torch.stack([template for _, template in drawn])

    def judge(self, videos: Tensor, captions: Sequence[str]) -> Verdict:
        """Compare videos [N, 9, 3, 48, 48] in [0, 1] with their captions.

        Raises:
            InvalidArgument: a caption that the generator cannot have written.
        """
        right: list[tuple[bool, bool, bool, bool]] = []
        for video, caption in zip(videos, captions, strict=True):
            # [frames, colours, H, W]
            distance = (video[:, None] - self._palette[:, :, None, None]).square().sum(2).sqrt()
            nearest, which = distance.min(1)
            for mover in clips.parse(caption).movers:
                wanted = list(clips.COLOURS).index(mover.colour)
                right.append(self._mover(((nearest < _NEAR) & (which == wanted)).float(), mover))
        shares = torch.tensor(right, dtype=torch.float64).mean(0).tolist()
        return Verdict(len(right), *shares)

    def _mover(self, masks: Tensor, mover: clips.Mover) -> tuple[bool, bool, bool, bool]:
        """Whether colour, direction, speed and shape are right, from the pixels of the colour [9, H, W]."""
        seen = masks.sum((1, 2)) >= _FEWEST
        if int(seen.sum()) < _FRAMES:
            return False, False, False, False
        right, down = _velocity(masks[seen], torch.nonzero(seen)[:, 0].float())
        fast = max(abs(right), abs(down)) > _FAST
        return (
            True,
            _direction(right, down) == mover.direction,
            fast == (mover.speed == "fast"),
            self._shape(masks[seen][::_EVERY]) == mover.shape,
        )

    def _shape(self, masks: Tensor) -> str:
        """The template with the largest overlap (intersection over union) at any place, on average over frames."""
        overlap = torch.nn.functional.conv2d(masks[:, None], self._templates[:, None], padding=_REACH).amax((2, 3))
        area = self._templates.sum((1, 2)) + masks.sum((1, 2))[:, None]
        return self._shapes[int((overlap / (area - overlap)).mean(0).argmax())]


def _velocity(masks: Tensor, frames: Tensor) -> tuple[float, float]:
    """Pixels to the right and down per frame: the least-squares line through the centres of masks [F, H, W]."""
    mass, axis = masks.sum((1, 2)), torch.arange(masks.shape[-1], dtype=torch.float32)
    time = frames - frames.mean()
    right, down = (masks.sum(1) * axis).sum(1) / mass, (masks.sum(2) * axis).sum(1) / mass
    return float((right * time).sum() / time.square().sum()), float((down * time).sum() / time.square().sum())


def _direction(right: float, down: float) -> str | None:
    """The direction of the larger component; None for what stands still."""
    if max(abs(right), abs(down)) < _STILL:
        return None
    if abs(right) > abs(down):
        return "right" if right > 0 else "left"
    return "down" if down > 0 else "up"


def check_model(name: str, captions: int, sheet: Path | None) -> dict[str, Any]:
    """Draw held-out captions with a bundled video model and judge them.

    Args:
        name: of the model.
        captions: number of captions.
        sheet: also show the first clips there: moving in a .gif, frame by frame in any other kind of picture.

    Returns:
        Shares of right movers, and the judge's own shares on the generator's clips of the same captions.
    """
    from ertacache.pipelines.loading import call_arguments, load_pipeline

    drawn = clips.sample(captions, 7, "heldout")
    texts = [clip.caption for clip in drawn]
    videos = check.draw(load_pipeline(name), texts, seed=7, call=call_arguments(name, {}))
    if sheet is not None:
        clip_sheet.write(videos, texts, sheet)
    judge = Judge()
    return check.shares(name, judge.judge(videos, texts), judge.judge(clips.render(drawn, 7), texts), captions)
