from itertools import combinations

import pytest
import torch
from torch import Tensor

from ertacache.core.grids import gits, oss
from ertacache.core.run_gram import RunGrams, gram_of
from ertacache.core.schedule import Schedule
from ertacache.errors import InvalidArgument, ScheduleInvalid

SIGMAS = torch.tensor([1.0, 0.97, 0.9, 0.85, 0.7, 0.5, 0.42, 0.3, 0.1, 0.0], dtype=torch.float64)
T = len(SIGMAS) - 1


def runs(seed: int) -> tuple[Tensor, Tensor]:
    """Two Euler runs: latents [T+1, 2, 30] and outputs [T, 2, 30]."""
    generator = torch.Generator().manual_seed(seed)
    g = torch.randn(T, 2, 30, generator=generator, dtype=torch.float64).cumsum(0)
    g[:, 1] *= 7
    x = torch.randn(1, 2, 30, generator=generator, dtype=torch.float64)
    return torch.cat([x, x + (SIGMAS.diff()[:, None, None] * g).cumsum(0)]), g


def grams(x: Tensor, g: Tensor) -> RunGrams:
    return RunGrams.of([gram_of(x[:, p], g[:, p]) for p in range(2)], T)


def candidates(K: int, boundaries: tuple[int, ...]) -> list[tuple[int, ...]]:
    every = [(0, *inner, T - 1) for inner in combinations(range(1, T - 1), K - 2)]
    return [steps for steps in every if set(boundaries) <= set(steps)]


@pytest.mark.parametrize("boundaries", [(), (4,), (3, 7)])
@pytest.mark.parametrize("seed", range(3))
def test_gits_is_the_best_of_all_paths(seed: int, boundaries: tuple[int, ...]):
    x, g = runs(seed)
    way = (x[-1] - x[0]).norm(dim=1)

    def price(steps: tuple[int, ...]) -> float:
        jumps = zip(steps, (*steps[1:], T), strict=True)
        left = [(x[j] - x[i] - (SIGMAS[j] - SIGMAS[i]) * g[i]).norm(dim=1) / way for i, j in jumps]
        return sum(1.15**k * float(each.mean()) for k, each in enumerate(left))

    for K in range(2 + len(boundaries), T + 1):
        assert gits(grams(x, g), K, boundaries).computed_steps == min(candidates(K, boundaries), key=price)


@pytest.mark.parametrize("boundaries", [(), (4,)])
@pytest.mark.parametrize("seed", range(3))
def test_oss_follows_the_students_own_states(seed: int, boundaries: tuple[int, ...]):
    x, g = runs(seed)
    way = (x[-1] - x[0]).square().sum(1)

    def nearest(k: int, j: int) -> tuple[Tensor, tuple[int, ...]] | None:
        """The student's state at node j after k steps, and the nodes that it stepped from."""
        if k == 0:
            return (x[0], ()) if j == 0 else None
        arrived: list[tuple[float, Tensor, tuple[int, ...]]] = []
        for i in range(T - 1 if j == T else 0, j):
            if (before := nearest(k - 1, i)) and not any(i < b < j for b in boundaries):
                state = before[0] + (SIGMAS[j] - SIGMAS[i]) * g[i]
                arrived.append((float(((state - x[j]).square().sum(1) / way).mean()), state, (*before[1], i)))
        return min(arrived, key=lambda entry: entry[0])[1:] if arrived else None

    for K in range(2 + len(boundaries), 7):
        expected = nearest(K, T)
        assert expected is not None
        assert oss(grams(x, g), K, boundaries).computed_steps == expected[1]


def test_all_steps_are_the_uncached_run():
    for search in (gits, oss):
        assert search(grams(*runs(0)), T) == Schedule.all_computed(T)


@pytest.mark.parametrize("search", [gits, oss])
def test_refusals(search):
    both = grams(*runs(0))
    for K, boundaries in ((0, ()), (1, ()), (T + 1, ()), (2, (4,))):
        with pytest.raises(ScheduleInvalid, match=f"K={K} of T=9 steps do not fit between these boundaries; choose"):
            search(both, K, boundaries)
    with pytest.raises(InvalidArgument, match=r"boundaries \[9\] are no steps of a run of T=9"):
        search(both, 4, (9,))
