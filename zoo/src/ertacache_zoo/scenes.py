"""The captioned images that the zoo models are trained on.

A scene is two objects (size, colour, shape, place) on a textured background. The caption fixes all of that and nothing
else: exact position, shading, and the texture's tint, angle, frequency and phase are drawn at random, so that a model
must commit to details while it denoises, which is what makes a trajectory hard to predict.
"""

import hashlib
import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor

from ertacache.errors import InvalidArgument

IMAGE_SIZE = 64
SIZES = {"small": 7.5, "large": 12.0}
COLOURS = {
    "red": (0.87, 0.13, 0.15),
    "green": (0.13, 0.70, 0.24),
    "blue": (0.16, 0.30, 0.92),
    "yellow": (0.97, 0.88, 0.16),
    "purple": (0.62, 0.20, 0.80),
    "orange": (0.98, 0.52, 0.10),
    "cyan": (0.18, 0.83, 0.87),
    "white": (0.97, 0.97, 0.97),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")
PLACES = {"top left": (16, 16), "top right": (48, 16), "bottom left": (16, 48), "bottom right": (48, 48)}
TONES = {"dark": 0.18, "grey": 0.42}
TEXTURES = ("striped", "checked", "dotted", "cloudy")

Split = Literal["train", "heldout"]


class Captioned(Protocol):
    """What belongs to a split by its text."""

    @property
    def caption(self) -> str: ...


C = TypeVar("C", bound=Captioned)


@dataclass(frozen=True, slots=True)
class Object:
    size: str
    colour: str
    shape: str
    place: str

    def __str__(self) -> str:
        return f"a {self.size} {self.colour} {self.shape} at the {self.place}"


@dataclass(frozen=True, slots=True)
class Scene:
    objects: tuple[Object, Object]
    tone: str
    texture: str

    @property
    def caption(self) -> str:
        return f"{self.objects[0]} and {self.objects[1]} on a {self.tone} {self.texture} background"


def count() -> int:
    """Number of distinct captions."""
    one = len(SIZES) * len(COLOURS) * len(SHAPES)
    return one**2 * len(PLACES) * (len(PLACES) - 1) * len(TONES) * len(TEXTURES)


def split_of(caption: str) -> Split:
    """A tenth of all captions is held out of training, by a hash of the text: no list to keep, none to leak."""
    return "heldout" if hashlib.sha256(caption.encode()).digest()[0] < 26 else "train"


def drawn(n: int, split: Split, draw: Callable[[], C]) -> list[C]:
    """The first `n` of what `draw` gives that belong to the split."""
    found: list[C] = []
    while len(found) < n:
        one = draw()
        if split_of(one.caption) == split:
            found.append(one)
    return found


def sample(n: int, seed: int, split: Split) -> list[Scene]:
    """Draw `n` scenes of one split; the same seed gives the same scenes."""
    rng = random.Random(seed)

    def draw() -> Scene:
        objects = [
            Object(rng.choice(list(SIZES)), rng.choice(list(COLOURS)), rng.choice(SHAPES), place)
            for place in rng.sample(list(PLACES), 2)
        ]
        return Scene((objects[0], objects[1]), rng.choice(list(TONES)), rng.choice(TEXTURES))

    return drawn(n, split, draw)


def parse(caption: str) -> Scene:
    """The scene a caption describes; raises InvalidArgument for text that the generator cannot have written."""
    alternatives = ["|".join(words) for words in (SIZES, COLOURS, SHAPES, PLACES)]
    one = "a ({}) ({}) ({}) at the ({})".format(*alternatives)
    match = re.fullmatch(f"{one} and {one} on a ({'|'.join(TONES)}) ({'|'.join(TEXTURES)}) background", caption)
    if match is None:
        raise InvalidArgument(f"not a caption of this generator: {caption!r}; draw one with scenes.sample(...)")
    words = match.groups()
    return Scene((Object(*words[:4]), Object(*words[4:8])), words[8], words[9])


def words() -> list[str]:
    """Every word a caption can hold, in a fixed order: the tokenizers' vocabulary."""
    listed = ["a", "at", "the", "and", "on", "background"]
    listed += [*SIZES, *COLOURS, *SHAPES, *TONES, *TEXTURES, "top", "bottom", "left", "right"]
    return listed


def render(scenes: list[Scene], seed: int) -> Tensor:
    """Draw scenes as float32 images [N, 3, 64, 64] in [0, 1]; what captions leave open comes from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([_render_one(scene, generator) for scene in scenes])


def uniform(generator: torch.Generator, low: float, high: float) -> float:
    """One number from `low` to `high`."""
    return low + (high - low) * float(torch.rand((), generator=generator))


def _render_one(scene: Scene, generator: torch.Generator) -> Tensor:
    axis = torch.arange(IMAGE_SIZE, dtype=torch.float32)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    image = background(scene.tone, scene.texture, x, y, generator)
    light = uniform(generator, 0, 2 * math.pi)
    for item in scene.objects:
        cx, cy = PLACES[item.place]
        u = x - cx - uniform(generator, -2.5, 2.5) + 0.5
        v = y - cy - uniform(generator, -2.5, 2.5) + 0.5
        image = painted(image, item.shape, item.colour, SIZES[item.size], u, v, light)
    return image.clamp(0, 1)


def painted(canvas: Tensor, shape: str, colour: str, radius: float, u: Tensor, v: Tensor, light: float) -> Tensor:
    """A canvas [..., 3, H, W] with a shape on it, shaded as from the direction `light` in radians.

    Args:
        u, v: [..., H, W] place of each pixel from the shape's centre, to the right and down.
    """
    shade = 1 + 0.12 * (math.cos(light) * u + math.sin(light) * v) / radius
    shaded = torch.tensor(COLOURS[colour])[:, None, None] * shade.unsqueeze(-3)
    alpha = (0.5 - distance(shape, u, v, radius)).clamp(0, 1).unsqueeze(-3)
    return canvas + alpha * (shaded - canvas)


def background(tone: str, texture: str, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """Colours [..., 3, H, W] at pixel coordinates `x` and `y` [..., H, W], which lie in 0 to 63."""
    angle = uniform(generator, 0, math.pi)
    frequency = 2 * math.pi / uniform(generator, 7, 14)
    a = frequency * (math.cos(angle) * x + math.sin(angle) * y) + uniform(generator, 0, 2 * math.pi)
    b = frequency * (math.cos(angle) * y - math.sin(angle) * x) + uniform(generator, 0, 2 * math.pi)
    if texture == "striped":
        pattern = torch.tanh(2 * a.sin())
    elif texture == "checked":
        pattern = torch.tanh(4 * a.sin() * b.sin())
    elif texture == "dotted":
        pattern = torch.tanh(3 * (a.cos() + b.cos() - 0.9))
    else:
        coarse = torch.randn(1, 1, 7, 7, generator=generator)
        clouds = torch.nn.functional.interpolate(coarse, size=IMAGE_SIZE, mode="bicubic")[0, 0].clamp(-1.5, 1.5)
        pattern = _interpolated(clouds, x, y)
    tint = 1 + 0.25 * (2 * torch.rand(3, generator=generator) - 1)
    return (TONES[tone] * tint)[:, None, None] * (1 + 0.35 * pattern.unsqueeze(-3))


def _interpolated(image: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Bilinear values of `image` [H, W] at fractional coordinates; exact at whole ones."""
    left, top = x.floor().long(), y.floor().long()
    right, bottom = (left + 1).clamp(max=image.shape[1] - 1), (top + 1).clamp(max=image.shape[0] - 1)
    across, down = x - left, y - top
    upper = image[top, left] * (1 - across) + image[top, right] * across
    lower = image[bottom, left] * (1 - across) + image[bottom, right] * across
    return upper * (1 - down) + lower * down


def distance(shape: str, u: Tensor, v: Tensor, radius: float) -> Tensor:
    """Signed distance in pixels (negative inside) from a shape centred at the origin; v points down."""
    if shape == "circle":
        return torch.hypot(u, v) - radius
    if shape == "square":
        return torch.maximum(u.abs(), v.abs()) - 0.85 * radius
    if shape == "triangle":
        sides = 0.894 * u.abs() - 0.447 * (v + radius)
        return torch.maximum(v - 0.75 * radius, sides)
    if shape == "cross":
        upright = torch.maximum(u.abs() - 0.3 * radius, v.abs() - radius)
        level = torch.maximum(v.abs() - 0.3 * radius, u.abs() - radius)
        return torch.minimum(upright, level)
    if shape == "ring":
        return (torch.hypot(u, v) - 0.78 * radius).abs() - 0.22 * radius
    if shape == "diamond":
        return (u.abs() + v.abs() - 1.1 * radius) * 0.7071
    raise InvalidArgument(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")
