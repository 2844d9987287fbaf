"""The captioned clips that the zoo's video models are trained on.

A clip is two objects that move straight at a steady speed over a textured background. The caption fixes size, colour,
shape, direction and speed of both, and the background's tone and texture. Where they start, shading, the texture's
tint, angle, frequency and phase, and the slow drift of the background are drawn at random, so that a model must commit
to them while it denoises, which is what makes a trajectory hard to predict.
"""

import math
import random
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from ertacache.errors import InvalidArgument
from ertacache_zoo import scenes
from ertacache_zoo.scenes import COLOURS, SHAPES, TEXTURES, TONES, Split, uniform

CLIP_SIZE = 48
FRAMES = 9
#: Radii in pixels, steps of one frame as (right, down), and pixels per frame.
SIZES = {"small": 4.5, "large": 7.0}
DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
SPEEDS = {"slowly": 1.0, "fast": 2.5}

#: Half the side of the box that holds any shape, in radii (a diamond's), and the room around it in pixels.
_EXTENT, _ROOM = 1.1, 0.5
#: Most pixels per frame that the background drifts.
_DRIFT = 0.5
_TRIES = 256


@dataclass(frozen=True, slots=True)
class Mover:
    size: str
    colour: str
    shape: str
    direction: str
    speed: str

    def __str__(self) -> str:
        return f"a {self.size} {self.colour} {self.shape} moving {self.direction} {self.speed}"

    @property
    def extent(self) -> float:
        """Half the side in pixels of the box that it keeps for itself."""
        return _EXTENT * SIZES[self.size] + _ROOM

    @property
    def step(self) -> tuple[float, float]:
        """Pixels to the right and down from one frame to the next."""
        right, down = DIRECTIONS[self.direction]
        return right * SPEEDS[self.speed], down * SPEEDS[self.speed]


@dataclass(frozen=True, slots=True)
class Clip:
    movers: tuple[Mover, Mover]
    tone: str
    texture: str

    @property
    def caption(self) -> str:
        return f"{self.movers[0]} and {self.movers[1]} on a {self.tone} {self.texture} background"


def count() -> int:
    """Number of distinct captions."""
    one = len(SIZES) * len(SHAPES) * len(DIRECTIONS) * len(SPEEDS)
    return one**2 * len(COLOURS) * (len(COLOURS) - 1) * len(TONES) * len(TEXTURES)


def sample(n: int, seed: int, split: Split) -> list[Clip]:
    """Draw `n` clips of one split; the same seed gives the same clips."""
    rng = random.Random(seed)

    def draw() -> Clip:
        movers = [
            Mover(
                rng.choice(list(SIZES)),
                colour,
                rng.choice(SHAPES),
                rng.choice(list(DIRECTIONS)),
                rng.choice(list(SPEEDS)),
            )
            for colour in rng.sample(list(COLOURS), 2)
        ]
        return Clip((movers[0], movers[1]), rng.choice(list(TONES)), rng.choice(TEXTURES))

    return scenes.drawn(n, split, draw)


def parse(caption: str) -> Clip:
    """The clip a caption describes; raises InvalidArgument for text that the generator cannot have written."""
    alternatives = ["|".join(words) for words in (SIZES, COLOURS, SHAPES, DIRECTIONS, SPEEDS)]
    one = "a ({}) ({}) ({}) moving ({}) ({})".format(*alternatives)
    match = re.fullmatch(f"{one} and {one} on a ({'|'.join(TONES)}) ({'|'.join(TEXTURES)}) background", caption)
    found = match.groups() if match else ()
    if not found or found[1] == found[6]:
        raise InvalidArgument(f"not a caption of this generator: {caption!r}; draw one with clips.sample(...)")
    return Clip((Mover(*found[:5]), Mover(*found[5:10])), found[10], found[11])


def words() -> list[str]:
    """Every word a caption can hold, in a fixed order: the tokenizer's vocabulary."""
    listed = ["a", "moving", "and", "on", "background"]
    return [*listed, *SIZES, *COLOURS, *SHAPES, *DIRECTIONS, *SPEEDS, *TONES, *TEXTURES]


def render(clips: list[Clip], seed: int) -> Tensor:
    """Draw clips as float32 frames [N, 9, 3, 48, 48] in [0, 1]; what captions leave open comes from `seed`."""
    return render_with_paths(clips, seed)[0]


def render_with_paths(clips: list[Clip], seed: int) -> tuple[Tensor, Tensor]:
    """What `render` draws, and where: the centres of both movers as `paths` has them, [N, 2, 9, 2]."""
    generator = torch.Generator().manual_seed(seed)
    frames, centres = zip(*(_render_one(clip, generator) for clip in clips), strict=True)
    return torch.stack(frames), torch.stack(centres)


def paths(clip: Clip, generator: torch.Generator) -> Tensor:
    """Centres [2, 9, 2] of both movers in every frame, as (right, down) in pixels.

    Start places are uniform among those that keep both boxes inside the frame and apart from each other throughout.
    """
    time = torch.arange(FRAMES)[:, None]
    steps = torch.tensor([mover.step for mover in clip.movers])
    extents = torch.tensor([mover.extent for mover in clip.movers])
    travel = steps * (FRAMES - 1)
    low = extents[:, None] - travel.clamp(max=0)
    high = CLIP_SIZE - extents[:, None] - travel.clamp(min=0)
    while True:
        start = low + (high - low) * torch.rand(_TRIES, 2, 2, generator=generator)
        centres = start[:, :, None] + time * steps[:, None]
        gap = (centres[:, 0] - centres[:, 1]).abs().amax(-1).amin(-1)
        apart = torch.nonzero(gap >= extents.sum())
        if len(apart):
            return centres[apart[0, 0]]


def _render_one(clip: Clip, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    axis = torch.arange(CLIP_SIZE, dtype=torch.float32)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    time = torch.arange(FRAMES)[:, None, None]
    heading, drift = uniform(generator, 0, 2 * math.pi), uniform(generator, 0, _DRIFT)
    # Textures are defined on the larger canvas of the still scenes: its middle leaves room for the drift.
    edge = (scenes.IMAGE_SIZE - CLIP_SIZE) / 2
    across = x + edge + time * (drift * math.cos(heading))
    down = y + edge + time * (drift * math.sin(heading))
    frames = scenes.background(clip.tone, clip.texture, across, down, generator)
    light = uniform(generator, 0, 2 * math.pi)
    centres = paths(clip, generator)
    for mover, path in zip(clip.movers, centres, strict=True):
        u = x + 0.5 - path[:, 0, None, None]
        v = y + 0.5 - path[:, 1, None, None]
        frames = scenes.painted(frames, mover.shape, mover.colour, SIZES[mover.size], u, v, light)
    return frames.clamp(0, 1), centres
