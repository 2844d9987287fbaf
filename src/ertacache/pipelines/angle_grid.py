"""Time grids of schedulers that know ᾱ alone (DDIM): angles φ = atan2(√(1 − ᾱ), √ᾱ), in which DDIM is of order 1.

Such a scheduler walks an integer table of ᾱ with one fixed stride. On another grid its timesteps are fractions,
where the angle lies between two entries of the table, and each step is made by the scheduler's own arithmetic on a
table made for it. The timesteps are all that tells the grid: `set_timesteps` undoes it.
"""

import copy
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# Angles this near are the same one: what is left of an angle after a float32 timestep.
_SAME = 1e-6


def read(scheduler: Any) -> Tensor:
    """The grid [T+1] as angles, float32 on the CPU."""
    table = _table(scheduler)
    timesteps = scheduler.timesteps.detach().cpu()
    angles = _angle(table[timesteps]) if not is_written(scheduler) else _between(timesteps, _knots(scheduler))
    return torch.cat([angles, _angle(_end(scheduler))]).float()


def is_written(scheduler: Any) -> bool:
    """Whether the scheduler runs on a grid that was written; its own timesteps are whole numbers."""
    return scheduler.timesteps.is_floating_point()


def write(scheduler: Any, grid: Tensor) -> None:
    """Replace the timesteps by those of a grid of angles [T+1]; entries that are the scheduler's own keep theirs.

    In place where a grid was written before in this run, otherwise as a new tensor of floats.
    """
    knots = _knots(scheduler)
    wanted = grid[:-1].detach().cpu().double()
    # Entry t of the table is knot t + 1: before it comes the end of the trajectory.
    above = torch.searchsorted(knots, wanted.contiguous()).clamp(1, len(knots) - 1)
    low, high = knots[above - 1], knots[above]
    timesteps = above - 2 + (wanted - low) / (high - low)
    unchanged = (wanted - read(scheduler)[:-1].double()).abs() <= _SAME
    before = scheduler.timesteps.cpu().double()
    timesteps = torch.where(unchanged, before, timesteps).float().to(scheduler.timesteps.device)
    if is_written(scheduler):
        scheduler.timesteps.copy_(timesteps)
    else:
        scheduler.timesteps = timesteps


@contextmanager
def stand_in(scheduler: Any, i: int) -> Generator[Tensor]:
    """While step i of a written grid is made: a table in which the scheduler's stride leads from entry to entry.

    Yields:
        The timestep to call `step` with. Where both ends of the step are the scheduler's own that is its own timestep,
        and there is no other table: its stride does not always lead to its next timestep.
    """
    own, timesteps = _own_timesteps(scheduler), scheduler.timesteps.cpu()
    if bool((timesteps[i : i + 2] == own[i : i + 2]).all()):
        yield own[i]
        return
    stride, T = _stride(scheduler), len(timesteps)
    indices = torch.arange(T, 0, -1) * stride
    table = scheduler.alphas_cumprod.new_ones(T * stride + 1)
    table[indices.to(table.device)] = _alphas(scheduler, timesteps).to(table)
    table[0] = _end(scheduler)[0]
    with _replaced(scheduler, alphas_cumprod=table, timesteps=indices):
        yield indices[i]


def add_noise(
    original: Callable[..., Tensor], scheduler: Any, original_samples: Tensor, noise: Tensor, timesteps: Tensor
) -> Tensor:
    """`scheduler.add_noise` at timesteps that may be fractions, as a late start asks for."""
    if not timesteps.is_floating_point():
        return original(original_samples, noise, timesteps)
    flat = timesteps.flatten()
    table = _alphas(scheduler, flat.cpu()).to(scheduler.alphas_cumprod)
    with _replaced(scheduler, alphas_cumprod=table):
        return original(original_samples, noise, torch.arange(len(flat), device=flat.device))


@contextmanager
def _replaced(scheduler: Any, **parts: Any) -> Generator[None]:
    before = {name: getattr(scheduler, name) for name in parts}
    try:
        for name, value in parts.items():
            setattr(scheduler, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(scheduler, name, value)


def _alphas(scheduler: Any, timesteps: Tensor) -> Tensor:
    """ᾱ at timesteps that may be fractions; those of the table are exact."""
    table = _table(scheduler)
    whole = timesteps == timesteps.round()
    looked_up = table[timesteps.round().long().clamp_min(0)].double()
    return torch.where(whole & (timesteps >= 0), looked_up, _between(timesteps, _knots(scheduler)).cos().square())


def _between(timesteps: Tensor, knots: Tensor) -> Tensor:
    """Angles float64 at timesteps, on the line between two knots; knot t + 1 is entry t of the table."""
    position = (timesteps.double() + 1).clamp(0, len(knots) - 1)
    low = position.floor().long().clamp_max(len(knots) - 2)
    return torch.lerp(knots[low], knots[low + 1], position - low)


def _knots(scheduler: Any) -> Tensor:
    """Angles float64 of the end of the trajectory and of every entry of the table, rising."""
    return _angle(torch.cat([_final(scheduler), _table(scheduler)]))


def _angle(alphas: Tensor) -> Tensor:
    alphas = alphas.double().clamp(0, 1)
    return torch.atan2((1 - alphas).sqrt(), alphas.sqrt())


def _table(scheduler: Any) -> Tensor:
    return scheduler.alphas_cumprod.detach().cpu()


def _final(scheduler: Any) -> Tensor:
    final = torch.as_tensor(getattr(scheduler, "final_alpha_cumprod", 1.0))
    return final.detach().reshape(1).to(_table(scheduler))


def _end(scheduler: Any) -> Tensor:
    """[1] ᾱ where the last step ends: that of its stride, which may just stay within the table."""
    if getattr(scheduler, "num_inference_steps", None) is None:
        return _final(scheduler)
    last = int(_own_timesteps(scheduler)[-1]) - _stride(scheduler)
    return _table(scheduler)[last : last + 1] if last >= 0 else _final(scheduler)


def _stride(scheduler: Any) -> int:
    return scheduler.config.num_train_timesteps // scheduler.num_inference_steps


def _own_timesteps(scheduler: Any) -> Tensor:
    """What `set_timesteps` made of the step count: whole numbers."""
    if not is_written(scheduler):
        return scheduler.timesteps.cpu()
    plain = copy.copy(scheduler)
    type(scheduler).set_timesteps(plain, scheduler.num_inference_steps)
    return plain.timesteps.cpu()
