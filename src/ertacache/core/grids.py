"""Schedules after two published searches for coarse time grids, read from recorded runs without a model call.

Both take the T-step runs as the teacher's and keep K of their nodes. They are proposals to be run and compared; their
sources search for grids of a plain solver, not for what a fitted prediction leaves.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from ertacache.core.run_gram import RunGrams, held, left_by_reuse
from ertacache.core.schedule import Schedule
from ertacache.core.segment_costs import segment_ends
from ertacache.errors import ScheduleInvalid

# By how much more GITS counts each later step of the coarse grid.
_GITS_GROWTH = 1.15


def gits(grams: RunGrams, K: int, boundaries: Iterable[int] = ()) -> Schedule:
    """K of T steps after GITS (2405.11326): the path with the smallest sum of single-step deviations.

    A step from node i to node j holds g_i and starts from the recorded x_i; its price is the mean distance to x_j,
    each run's in units of its whole way from x_0 to x_T, and each step of the coarse grid counts 1.15 times as much
    as the one before it. The first and the last step are among the nodes.

    Raises:
        ScheduleInvalid: K steps do not fit between the boundaries.
        InvalidArgument: a boundary that is no step of the run.
    """
    A, B = held(grams)
    ends = segment_ends(grams.T, boundaries)
    deviation = torch.full((grams.T, grams.T + 1), torch.inf, dtype=torch.float64)
    scale = _ways(grams)[:, None]
    for i, reachable in enumerate(ends):
        left = left_by_reuse(grams, i, list(reachable), A, B)
        deviation[i, list(reachable)] = (grams.energies(left) / scale).sqrt().mean(0)
    deviation[:-1, -1] = torch.inf
    paid = torch.full((grams.T + 1,), torch.inf, dtype=torch.float64)
    paid[0] = 0.0
    before: list[Tensor] = []
    for k in range(K):
        paid, came = (paid[:-1, None] + _GITS_GROWTH**k * deviation).min(0)
        before.append(came)
    return _nodes(grams.T, K, before, paid)


def oss(grams: RunGrams, K: int, boundaries: Iterable[int] = ()) -> Schedule:
    """K of T steps after OSS (2503.21774): the student's own states, as near to the teacher's as the steps allow.

    For every node j and number of steps k the student's state is the one, of all that step to j from a state with
    k−1 steps, that comes nearest to the recorded x_j, all runs taken together as in `gits`. What the student's
    output would be at its own state is not recorded: the teacher's at that node stands for it, so that every
    state is a sum of recorded vectors. The first and the last step are among the nodes.

    Raises:
        ScheduleInvalid: K steps do not fit between the boundaries.
        InvalidArgument: a boundary that is no step of the run.
    """
    T, (A, B) = grams.T, held(grams)
    ends = segment_ends(T, boundaries)
    mean = (grams.stack / _ways(grams)[:, None, None]).mean(0)
    recorded = torch.eye(T + 1, len(mean), dtype=torch.float64)
    states: dict[int, Tensor] = {0: recorded[0]}
    nearest, before = torch.zeros(0), list[Tensor]()
    for _ in range(K):
        nearest = torch.full((T + 1,), torch.inf, dtype=torch.float64)
        came, stepped = torch.zeros(T + 1, dtype=torch.int64), dict[int, Tensor]()
        for i, state in states.items():
            for j in ends[i] if i < T else ():
                if j == T and i != T - 1:
                    continue
                arrived = A[i, j] * state
                arrived[grams.output(i)] += B[i, j]
                left = arrived - recorded[j]
                if (distance := left @ mean @ left) < nearest[j]:
                    nearest[j], came[j], stepped[j] = distance, i, arrived
        states = stepped
        before.append(came)
    return _nodes(T, K, before, nearest)


def _ways(grams: RunGrams) -> Tensor:
    """[N] float64 |x_T − x_0|² of each run."""
    way = torch.zeros(grams.stack.shape[1], dtype=torch.float64)
    way[grams.latent(grams.T)], way[grams.latent(0)] = 1.0, -1.0
    return grams.energies(way).clamp(min=torch.finfo(torch.float64).tiny)


def _nodes(T: int, K: int, before: list[Tensor], reached: Tensor) -> Schedule:
    """The nodes from which each of K steps came, back from the end of the run."""
    if not before or not bool(reached[T] < torch.inf):
        raise ScheduleInvalid(f"K={K} of T={T} steps do not fit between these boundaries; choose another K")
    steps, node = list[int](), T
    for came in reversed(before):
        node = int(came[node])
        steps.append(node)
    return Schedule.from_steps(T, steps)
