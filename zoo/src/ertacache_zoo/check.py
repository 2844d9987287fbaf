"""Whether a model draws what the caption says, by a judge that knows the generator."""

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ertacache.evaluation.sample_files import eight_bit, picture_format
from ertacache.files import save_atomic
from ertacache_zoo import scenes

#: Largest distance (RGB, unit cube) at which a pixel still counts as a palette colour.
_NEAR = 0.33
#: Fewest pixels of the colour that make an object, a third of the smallest shape.
_FEWEST = 25
#: Samples on a sheet.
SHEET = 12
#: Radii at which the shape templates are drawn, in pixels.
_RADII = (6.5, 7.5, 9.0, 11.0, 12.0, 13.0)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Shares of right objects in [0, 1], over `objects` of them."""

    objects: int
    colour_and_place: float
    shape: float


class Judge:
    """Reads colour and place off the pixels and the shape by the best-fitting template."""

    def __init__(self) -> None:
        self._palette = torch.tensor(list(scenes.COLOURS.values()))
        self._templates = [(shape, radius) for shape in scenes.SHAPES for radius in _RADII]
        axis = torch.arange(33, dtype=torch.float32) - 16
        v, u = torch.meshgrid(axis, axis, indexing="ij")
        self._masks = torch.stack([(scenes.distance(s, u, v, r) < 0).float() for s, r in self._templates])

    def judge(self, images: Tensor, captions: Sequence[str]) -> Verdict:
        """Compare images [N, 3, 64, 64] in [0, 1] with their captions."""
        coloured = shaped = total = 0
        for image, caption in zip(images, captions, strict=True):
            for item in scenes.parse(caption).objects:
                total += 1
                mask = self._mask(image, item)
                if mask is not None:
                    coloured += 1
                    shaped += self._shape(mask) == item.shape
        return Verdict(total, coloured / total, shaped / total)

    def _mask(self, image: Tensor, item: scenes.Object) -> Tensor | None:
        """Pixels of the object's colour around its place; None where another colour rules there, or none."""
        cx, cy = scenes.PLACES[item.place]
        part = image[:, cy - 16 : cy + 16, cx - 16 : cx + 16]
        # Shading changes brightness, so colours are compared where the texture cannot reach: near the palette.
        distance = (part[None] - self._palette[:, :, None, None]).square().sum(1).sqrt()
        nearest, which = distance.min(0)
        counts = torch.bincount(which[nearest < _NEAR], minlength=len(self._palette))
        wanted = list(scenes.COLOURS).index(item.colour)
        if int(counts.argmax()) != wanted or int(counts[wanted]) < _FEWEST:
            return None
        return ((nearest < _NEAR) & (which == wanted)).float()

    def _shape(self, mask: Tensor) -> str:
        """The template with the largest overlap (intersection over union) at any offset."""
        padded = torch.nn.functional.pad(mask, (16, 16, 16, 16))[None, None]
        overlap = torch.nn.functional.conv2d(padded, self._masks[:, None]).flatten(2)[0].amax(1)
        area = self._masks.flatten(1).sum(1)
        score = overlap / (area + mask.sum() - overlap)
        return self._templates[int(score.argmax())][0]


@torch.no_grad()
def draw(pipe: Any, captions: Sequence[str], seed: int, call: dict[str, Any], batch_size: int = 50) -> Tensor:
    """Images [N, 3, 64, 64] of captions, number n from the noise of seed + n."""
    from ertacache.calibration.pipeline_run import run_pipeline
    from ertacache.calibration.prompts import Prompts
    from ertacache.runtime.run import Controller

    batches = Prompts(tuple(captions), seed).batches(batch_size)
    return torch.cat([run_pipeline(pipe, batch, Controller(), call) for batch in batches])


def check_model(name: str, captions: int, sheet: Path | None) -> dict[str, Any]:
    """Draw held-out captions with a bundled model and judge them.

    Returns:
        Shares of right objects, and the judge's own shares on the generator's images of the same captions.
    """
    from ertacache.pipelines.loading import call_arguments, load_pipeline

    scenes_ = scenes.sample(captions, 7, "heldout")
    texts = [scene.caption for scene in scenes_]
    judge = Judge()
    drawn = draw(load_pipeline(name), texts, seed=7, call=call_arguments(name, {}))
    if sheet is not None:
        write_sheet(drawn[:SHEET], texts[:SHEET], sheet)
    return shares(name, judge.judge(drawn, texts), judge.judge(scenes.render(scenes_, 7), texts), captions)


def shares(name: str, verdict: Any, truth: Any, captions: int) -> dict[str, Any]:
    """What a check reports: the verdict on a model, and the judge's own on the generator's samples as `judge_...`.

    Args:
        verdict, truth: dataclasses of the number of `objects` and the shares of right ones.
    """
    own = {f"judge_{key}": share for key, share in asdict(truth).items() if key != "objects"}
    return {"model": name, "captions": captions, **asdict(verdict), **own}


def write_sheet(images: Tensor, captions: Sequence[str], path: Path) -> None:
    """A picture of images with their captions under them, four in a row."""
    from PIL import Image, ImageDraw

    columns, size, gap, text = 4, 192, 12, 46
    rows = -(-len(images) // columns)
    canvas = Image.new("RGB", (columns * (size + gap) + gap, rows * (size + text + gap) + gap), "white")
    pen = ImageDraw.Draw(canvas)
    for n, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = gap + n % columns * (size + gap), gap + n // columns * (size + text + gap)
        canvas.paste(enlarged(image, size), (left, top))
        pen.multiline_text((left, top + size + 4), textwrap.fill(caption, 34), fill="black", spacing=2)
    save_picture(canvas, path)


def save_picture(picture: Any, path: Path, **options: Any) -> None:
    """A PIL image, or an animation of it, as a file of the kind that its name says, all or nothing.

    Raises:
        InvalidArgument: an unknown kind of file.
    """
    kind = picture_format(path)
    save_atomic(path, lambda file: picture.save(file, kind, optimize=True, **options))


def enlarged(image: Tensor, side: int) -> Any:
    """An image [3, H, H] in [0, 1] as a picture of `side` pixels a side, its own pixels visible."""
    from PIL import Image

    return Image.fromarray(eight_bit(image[None])[0].numpy()).resize((side, side), Image.Resampling.NEAREST)
