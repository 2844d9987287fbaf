"""The price of skipping: what the best fit over the last computed outputs leaves at a segment's end.

A segment runs from one computed step to the next, or to the end of the run. Everything is read from the uncached
runs' Gram matrices; the model is not called.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ertacache.core.fit import energy_weights, ridge_solution
from ertacache.core.run_gram import RunGrams, held, left_by_reuse
from ertacache.errors import InvalidArgument


@dataclass(frozen=True, eq=False)
class SegmentCosts:
    """The segments of a run as a graph: a state is the last p computed steps, an edge a segment.

    Attributes:
        T: number of steps.
        states: S tuples of computed steps, newest first, of at most p; shorter where no more exist. The first is (0,).
        prices: [S, L] float64 of the segment from a state to the step j+1 later, infinite where there is none.
        following: [S, L] int64, the state once that step is computed; 0 for the end of the run, and without meaning
            where the price is infinite.
    """

    T: int
    states: tuple[tuple[int, ...], ...]
    prices: Tensor
    following: Tensor

    def weighed(self, growth: Tensor) -> "SegmentCosts":
        """The prices of other factors [T+1], where these have none; see `segment_costs`.

        Raises:
            InvalidArgument: as there.
        """
        _check_growth(growth, self.T)
        newest = torch.tensor([state[0] for state in self.states])
        ends = newest[:, None] + torch.arange(1, self.prices.shape[1] + 1)
        factor = growth.cpu().double().square()[ends.clamp(max=self.T)]
        return replace(self, prices=torch.where(self.prices < torch.inf, self.prices * factor, torch.inf))


def segment_ends(T: int, boundaries: Iterable[int] = (), max_gap: int | None = None) -> list[range]:
    """For each of T steps the steps at which a segment that begins there may end, T being the end of the run.

    Args:
        boundaries: steps at which another denoiser takes over: they are computed, and no segment crosses one.
        max_gap: the longest segment; None for any.

    Raises:
        InvalidArgument: a boundary that is no step of the run, or a longest segment below 1.
    """
    given = set(boundaries)
    if outside := sorted(b for b in given if not 0 <= b < T):
        raise InvalidArgument(f"boundaries {outside} are no steps of a run of T={T}; use 1 to {T - 1}")
    if max_gap is not None and max_gap < 1:
        raise InvalidArgument(f"max_gap is {max_gap}; use 1 or more, or None for gaps of any length")
    stops = sorted({*given, T})
    reach = T if max_gap is None else max_gap
    return [range(i + 1, min(i + reach, next(b for b in stops if b > i)) + 1) for i in range(T)]


def segment_costs(
    grams: RunGrams,
    levels: int = 3,
    directions: int = 2,
    *,
    growth: Tensor | None = None,
    ridge: float = 1e-3,
    boundaries: Iterable[int] = (),
    max_gap: int | None = None,
) -> SegmentCosts:
    """The price of every segment after every history of computed steps.

    From a computed step c to the segment's end e the solver makes the latent x_e. What holding the output g_c would
    leave of it, y = x_e − A x_c − B g_c (see `run_gram.held`; under Euler x_e − x_c − (σ_e − σ_c) g_c), is fitted over
    all prompts, with common coefficients, on the last `levels` computed outputs and the last `directions` guidance
    directions, as far as they exist: ridge least squares, each prompt p weighted by
    w_p = 1 / (|y_p|² + 1e-6 |x_e − A x_c|²), which is `fit.prompt_weights` for what plain reuse leaves. The price is
    growth[e]² · Σ w_p |remainder_p|² / Σ w_p, the energy of a latent's deviation at the end of the run. A segment that
    skips nothing costs 0 exactly.

    Args:
        levels: how many computed outputs the fit may use, 1 or more.
        directions: how many guidance directions, at most `levels`; 0 for runs without.
        growth: [T+1], what a deviation at each latent is multiplied by until the end; ones if None.
        ridge: relative to each feature's energy, see `fit.ridge_solution`.
        boundaries, max_gap: see `segment_ends`. At a boundary the history begins afresh.

    Raises:
        InvalidArgument: a history without outputs, directions that the runs or the levels do not have, a growth of
            another length or that is negative, NaN or infinite, a negative ridge, or bad boundaries.
    """
    _check(grams, levels, directions, growth)
    starts = {0, *boundaries}
    ends = segment_ends(grams.T, starts, max_gap)
    by_step = _histories(ends, levels, starts)
    states = [state for of_step in by_step for state in of_step]
    index = {state: s for s, state in enumerate(states)}
    prices = torch.full((len(states), max(map(len, ends))), torch.inf, dtype=torch.float64)
    following = torch.zeros(prices.shape, dtype=torch.int64)
    factor = torch.ones(grams.T + 1, dtype=torch.float64) if growth is None else growth.cpu().double().square()
    reuse = held(grams)
    row = 0
    for c, of_step in enumerate(by_step):
        here, columns = slice(row, row + len(of_step)), len(ends[c])
        left = _remainders(grams, of_step, ends[c], directions, ridge, reuse)
        prices[here, :columns] = left * factor[list(ends[c])]
        inner = [e for e in ends[c] if e < grams.T]
        following[here, : len(inner)] = torch.tensor(
            [[index[_after(state, e, levels, starts)] for e in inner] for state in of_step], dtype=torch.int64
        )
        row = here.stop
    return SegmentCosts(grams.T, tuple(states), prices, following)


def _check(grams: RunGrams, levels: int, directions: int, growth: Tensor | None) -> None:
    if levels < 1 or not 0 <= directions <= levels:
        raise InvalidArgument(
            f"levels={levels}, directions={directions}: use 1 level or more, and 0 to as many directions"
        )
    if directions and not grams.has_directions:
        raise InvalidArgument(f"directions={directions} and the runs hold none; record them, or pass directions=0")
    if growth is not None:
        _check_growth(growth, grams.T)


def _check_growth(growth: Tensor, T: int) -> None:
    if growth.shape != (T + 1,):
        raise InvalidArgument(f"growth has shape {list(growth.shape)}; give one factor per latent, [{T + 1}]")
    if not bool((growth.isfinite() & (growth >= 0)).all()):
        raise InvalidArgument("growth holds a factor that is negative, NaN or infinite; see growth_of")


def _after(state: tuple[int, ...], step: int, levels: int, starts: set[int]) -> tuple[int, ...]:
    """The history once `step` is computed too."""
    return (step,) if step in starts else (step, *state[: levels - 1])


def _histories(ends: list[range], levels: int, starts: set[int]) -> list[list[tuple[int, ...]]]:
    """For each step the histories with which it can be the newest computed one, in ascending order."""
    T = len(ends)
    found: list[set[tuple[int, ...]]] = [set() for _ in range(T)]
    found[0].add((0,))
    for c in range(T):
        for e in ends[c]:
            if e < T:
                found[e].update(_after(state, e, levels, starts) for state in found[c])
    return [sorted(of_step) for of_step in found]


def _remainders(
    grams: RunGrams,
    histories: list[tuple[int, ...]],
    ends: range,
    directions: int,
    ridge: float,
    reuse: tuple[Tensor, Tensor],
) -> Tensor:
    """[S, E] float64: what the fit over each of S histories with one newest step leaves at each end."""
    c, levels = histories[0][0], max(map(len, histories))
    left = left_by_reuse(grams, c, list(ends), *reuse)
    made = left.clone()
    made[:, grams.output(c)] = 0  # with the held output: all that the outputs make of the latent
    energy = grams.energies(left)
    weights = energy_weights(energy, grams.energies(made))
    weights = weights / weights.sum(0).clamp(min=torch.finfo(weights.dtype).tiny)
    oldest = min(min(state) for state in histories)
    used = [grams.output(i) for i in range(oldest, c + 1)]
    if directions:
        used += [grams.direction(i) for i in range(oldest, c + 1)]
    absent = len(used)  # stands for a step that no history holds yet: a feature of zeros
    gram, moment = torch.zeros(len(ends), absent + 1, absent + 1).double(), torch.zeros(len(ends), absent + 1).double()
    rows = grams.stack[:, used]
    gram[:, :absent, :absent] = torch.einsum("ne,nab->eab", weights, rows[:, :, used])
    moment[:, :absent] = torch.einsum("ne,nam,em->ea", weights, rows, left)
    chosen = torch.tensor([_features(state, oldest, c, levels, directions, absent) for state in histories])
    gram = gram[:, chosen[:, :, None], chosen[:, None, :]]
    moment = moment[:, chosen]
    a = ridge_solution(gram, moment, ridge)
    explained = 2 * (a * moment).sum(-1) - (a * (gram @ a[..., None])[..., 0]).sum(-1)
    remainder = ((weights * energy).sum(0)[:, None] - explained).clamp(min=0)
    if ends[0] == c + 1:
        remainder[0] = 0.0
    return remainder.T


def _features(state: tuple[int, ...], oldest: int, c: int, levels: int, directions: int, absent: int) -> list[int]:
    """Rows of the outputs and directions of a history, `absent` where it is shorter."""
    outputs = [i - oldest for i in state] + [absent] * (levels - len(state))
    shift = c + 1 - oldest
    return outputs + [absent if row == absent else row + shift for row in outputs[:directions]]
