"""What a trained image model says along its own runs: states, velocities and final latents to distil from."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ertacache.files import save_atomic
from ertacache_zoo import components, scenes
from ertacache_zoo.flow import Denoiser

#: Solver steps of a run, as `call.json` has them.
STEPS = 30
#: Every which of them is computed; where it begins differs from batch to batch, so that all are met.
STRIDE = 3
#: Captions in a batch, and how many batches make a file.
BATCH, BATCHES = 50, 10


@dataclass(frozen=True, eq=False)
class Trajectories:
    """P pairs of state and velocity, and the final latents of N captions, in float16.

    Attributes:
        states, velocities: [P, 64, 16], packed as the pipeline packs them.
        steps, captions: [P], places in the solver's grid and in `t5_ids`.
        finals: [N, 64, 16]. t5_ids, clip_ids: [N, L].
    """

    states: Tensor
    velocities: Tensor
    steps: Tensor
    captions: Tensor
    finals: Tensor
    t5_ids: Tensor
    clip_ids: Tensor


def sigmas() -> Tensor:
    """The noise levels [STEPS + 1] of the pipeline's grid, 1 first and 0 last."""
    solver: Any = components.scheduler()
    solver.set_timesteps(sigmas=np.linspace(1, 1 / STEPS, STEPS), mu=solver.config.max_shift)
    return solver.sigmas


def visited(offset: int) -> list[int]:
    """The steps that a run computes: the first, and then every STRIDE-th from `offset` on."""
    return sorted({0, *range(offset, STEPS, STRIDE)})


def record(
    teacher: Denoiser, guidance: float, tokenizers: tuple[Any, Any], captions: int, folder: Path
) -> Trajectories:
    """Run `teacher` on `captions` captions of the training split; what `folder` holds already is read."""
    texts = [scene.caption for scene in scenes.sample(captions, 3, "train")]
    ids = components.tokenize(texts, *tokenizers)
    folder.mkdir(parents=True, exist_ok=True)
    size = BATCH * BATCHES
    parts = [
        _file(teacher, guidance, (ids[0][start : start + size], ids[1][start : start + size]), start, folder)
        for start in range(0, captions, size)
    ]
    states, velocities, steps, owners, finals = (torch.cat(part) for part in zip(*parts, strict=True))
    return Trajectories(states, velocities, steps, owners, finals, *ids)


def _file(teacher: Denoiser, guidance: float, ids: tuple[Tensor, Tensor], start: int, folder: Path) -> list[Tensor]:
    path = folder / f"{start}.pt"
    if not path.exists():
        runs = list(_runs(teacher, guidance, ids, start))
        parts = [torch.cat(part) for part in zip(*runs, strict=True)]
        save_atomic(path, lambda file: torch.save(parts, file))
    return torch.load(path, weights_only=True)


@torch.no_grad()
def _runs(teacher: Denoiser, guidance: float, ids: tuple[Tensor, Tensor], start: int) -> Iterator[tuple[Tensor, ...]]:
    """Of every batch: states, velocities, steps, captions, final latents."""
    grid = sigmas()
    for n, (t5_ids, clip_ids) in enumerate(zip(ids[0].split(BATCH), ids[1].split(BATCH), strict=True)):
        text, count = teacher.encode(t5_ids, clip_ids), len(t5_ids)
        first = start + n * BATCH
        x = torch.randn(count, 64, 16, generator=torch.Generator().manual_seed(1_000_003 + first))
        steps = visited(n % STRIDE)
        states, velocities = [], []
        for step, following in zip(steps, [*steps[1:], STEPS], strict=True):
            v = teacher(x, grid[step].expand(count), text, torch.full((count,), guidance))
            states.append(x)
            velocities.append(v)
            x = x + (grid[following] - grid[step]) * v
        owners = torch.arange(first, first + count).repeat(len(steps))
        places = torch.tensor(steps).repeat_interleave(count)
        yield torch.cat(states).half(), torch.cat(velocities).half(), places, owners, x.half()
