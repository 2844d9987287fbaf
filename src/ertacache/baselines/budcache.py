"""BudCache: the schedule by simulated annealing at a fixed number of computed steps, then by local moves."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ertacache.baselines.baseline import Bench
from ertacache.baselines.searched_reuse import Loss, SearchedReuse

#: Of the annealing, as in the authors' configuration for FLUX: the mean squared error of the final latent.
_HOTTEST, _COLDEST = 0.05, 1e-5
#: A move is near with this probability, and of one step with that one.
_NEAR, _ONE = 0.7, 0.9
_RADIUS = 3
#: Far moves of each computed step that a round of local moves tries besides the near ones.
_FAR = 2


@dataclass(frozen=True)
class BudCache(SearchedReuse):
    """The schedule is changed at random, and kept with the probability exp(−Δ/τ) where that makes it worse by Δ.

    The first K // 4 steps are always computed. From a random schedule on, `iterations` moves at a temperature τ that
    falls from 0.05 to 1e-5, each of one computed step or, one time in ten, of two; then rounds in which every near move
    and some far ones are tried and the best is made, until none helps. The loss is the mean squared error of the final
    latents. This is the authors' first stage, which their paper uses unless it says otherwise; they search on one
    prompt, here it is two. Their second stage, a trained time grid, is not here.

    Args:
        iterations: of the annealing. rounds: at most, of local moves.
    """

    key: ClassVar[str] = "budcache"
    title: ClassVar[str] = "BudCache"
    paper: ClassVar[str] = "arXiv 2606.13496"

    prompts: int = 2
    iterations: int = 200
    rounds: int = 2

    def search(self, bench: Bench, K: int, loss: Loss) -> tuple[int, ...]:
        return anneal(bench.T, K, loss, random.Random(self.seed), self.iterations, self.rounds)

    def distance(self, latents: Tensor, reference: Tensor) -> float:
        error = float((latents - reference).double().square().mean())
        return error if error == error else math.inf  # NaN


def anneal(T: int, K: int, loss: Loss, dice: random.Random, iterations: int, rounds: int) -> tuple[int, ...]:
    """The best schedule of K of T steps that was met."""
    fixed = max(1, K // 4)
    now = (*range(fixed), *sorted(dice.sample(range(fixed, T), K - fixed)))
    best = now
    for n in range(iterations if fixed < K < T else 0):
        temperature = _HOTTEST * (_COLDEST / _HOTTEST) ** (n / iterations)
        other = _moved(now, T, fixed, dice)
        worse = loss(other) - loss(now)
        if worse < 0 or dice.random() < math.exp(-worse / temperature):
            now = other
            best = min(best, now, key=loss)
    for _ in range(rounds):
        found = min(_neighbours(best, T, fixed, dice), key=loss, default=best)
        if loss(found) >= loss(best):
            break
        best = found
    return best


def _moved(steps: tuple[int, ...], T: int, fixed: int, dice: random.Random) -> tuple[int, ...]:
    movable, free = steps[fixed:], sorted(set(range(fixed, T)) - set(steps))
    count = 1 if dice.random() < _ONE or min(len(movable), len(free)) < 2 else 2
    sources = dice.sample(movable, count)
    near = [target for target in free if abs(target - sources[0]) <= _RADIUS]
    targets = dice.sample(near if count == 1 and near and dice.random() < _NEAR else free, count)
    return tuple(sorted({*steps} - {*sources} | {*targets}))


def _neighbours(steps: tuple[int, ...], T: int, fixed: int, dice: random.Random) -> Iterator[tuple[int, ...]]:
    free = sorted(set(range(fixed, T)) - set(steps))
    for source in steps[fixed:]:
        near = [target for target in free if abs(target - source) <= _RADIUS]
        for target in (*near, *dice.sample(free, min(_FAR, len(free)))):
            yield tuple(sorted({*steps} - {source} | {target}))
