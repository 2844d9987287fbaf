import re
from itertools import combinations, pairwise

import pytest
import torch
from torch import Tensor

from ertacache.core.fit import RidgeSums, prompt_weights
from ertacache.core.run_gram import RunGrams, gram_of
from ertacache.core.segment_costs import segment_costs, segment_ends
from ertacache.errors import InvalidArgument

T, SIGMAS = 7, torch.tensor([1.0, 0.95, 0.85, 0.7, 0.5, 0.3, 0.1, 0.0], dtype=torch.float64)


def run(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, outputs and guidance directions of an Euler run, of a size that depends on the prompt."""
    generator = torch.Generator().manual_seed(seed)
    walk = torch.randn(2, T, 30, generator=generator, dtype=torch.float64).cumsum(1) * (1 + seed)
    x = [torch.randn(30, generator=generator, dtype=torch.float64)]
    for i in range(T):
        x.append(x[i] + (SIGMAS[i + 1] - SIGMAS[i]) * walk[0, i])
    return torch.stack(x), walk[0], walk[1]


RUNS = [run(seed) for seed in range(3)]
GRAMS = RunGrams.of([gram_of(*one) for one in RUNS], T)


def fitted(history: tuple[int, ...], end: int, directions: int, ridge: float) -> float:
    """The price from the vectors themselves."""
    x, g, d = (torch.stack(kind) for kind in zip(*RUNS, strict=True))
    c = history[0]
    made = x[:, end] - x[:, c]
    left = made - (SIGMAS[end] - SIGMAS[c]) * g[:, c]
    features = [g[:, i] for i in history] + [d[:, i] for i in history[:directions]]
    weights = prompt_weights(left, made)
    sums = RidgeSums(len(features))
    sums.update(features, left, weights)
    remainder = left - sum(a * f for a, f in zip(sums.solve(ridge), features, strict=True))
    return float((weights * remainder.square().sum(1)).sum() / weights.sum())


@pytest.mark.parametrize(("levels", "directions"), [(1, 0), (1, 1), (2, 0), (3, 2), (3, 3)])
@pytest.mark.parametrize("ridge", [0.0, 1e-3])
def test_every_price_is_what_the_fit_on_the_vectors_leaves(levels: int, directions: int, ridge: float):
    growth = torch.linspace(3, 1, T + 1)
    costs = segment_costs(GRAMS, levels, directions, growth=growth, ridge=ridge)
    some = {h for n in range(1, levels + 1) for h in combinations(range(T - 1, -1, -1), n)}
    assert set(costs.states) == {h for h in some if len(h) == levels or h[-1] == 0}
    assert costs.states[0] == (0,) and costs.prices.shape == (len(costs.states), T)
    for history, prices, following in zip(costs.states, costs.prices, costs.following, strict=True):
        c = history[0]
        assert prices[0] == 0
        assert prices[T - c :].tolist() == [torch.inf] * c
        for end in range(c + 1, T + 1):
            if end > c + 1:
                expected_price = float(growth[end]) ** 2 * fitted(history, end, directions, ridge)
                assert float(prices[end - c - 1]) == pytest.approx(expected_price, rel=1e-6, abs=1e-12)
            if end < T:
                assert costs.states[following[end - c - 1]] == (end, *history)[:levels]


def test_the_history_begins_afresh_at_a_boundary_and_no_segment_crosses_it():
    costs = segment_costs(GRAMS, 3, 2, boundaries=[4])
    plain = segment_costs(GRAMS, 3, 2)
    assert [state for state in costs.states if state[0] >= 4] == [(4,), (5, 4), (6, 4), (6, 5, 4)]
    for history, prices in zip(costs.states, costs.prices, strict=True):
        stop = 4 if history[0] < 4 else T
        assert prices.isfinite().sum() == stop - history[0]
        if history[0] < 4:
            same = plain.prices[plain.states.index(history)]
            torch.testing.assert_close(prices[prices.isfinite()], same[: stop - history[0]])
        for end in range(history[0] + 2, stop + 1):
            assert float(prices[end - history[0] - 1]) == pytest.approx(fitted(history, end, 2, 1e-3), rel=1e-6)


def test_a_longest_gap_keeps_the_other_prices():
    costs, plain = segment_costs(GRAMS, 3, 2, max_gap=2), segment_costs(GRAMS, 3, 2)
    assert costs.prices.shape[1] == 2
    assert all(a - b <= 2 for state in costs.states for a, b in pairwise(state))
    for history, prices in zip(costs.states, costs.prices, strict=True):
        torch.testing.assert_close(prices, plain.prices[plain.states.index(history), :2])


def test_outputs_that_repeat_cost_nothing_to_skip():
    g = torch.ones(T, 30, dtype=torch.float64)
    x = torch.stack([torch.arange(30).double() + float(s) for s in SIGMAS])
    costs = segment_costs(RunGrams.of([gram_of(x, g)], T), 2, 0)
    assert costs.prices[costs.prices.isfinite()].max() < 1e-10


def test_ends_of_segments():
    assert segment_ends(4) == [range(1, 5), range(2, 5), range(3, 5), range(4, 5)]
    assert segment_ends(4, [0, 2], 1) == [range(i + 1, i + 2) for i in range(4)]
    assert segment_ends(5, [2, 3]) == [range(1, 3), range(2, 3), range(3, 4), range(4, 6), range(5, 6)]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: segment_costs(GRAMS, 0, 0), "levels=0, directions=0: use 1 level or more, and 0 to as many"),
        (lambda: segment_costs(GRAMS, 2, 3), "levels=2, directions=3: use"),
        (lambda: segment_costs(GRAMS, 2, -1), "levels=2, directions=-1: use"),
        (
            lambda: segment_costs(RunGrams.of([gram_of(*RUNS[0][:2])], T), 2, 1),
            "directions=1 and the runs hold none; record them, or pass directions=0",
        ),
        (lambda: segment_costs(GRAMS, growth=torch.ones(T)), "growth has shape [7]; give one factor per latent, [8]"),
        (lambda: segment_costs(GRAMS, growth=torch.full((8,), torch.nan)), "growth holds a factor that is negative"),
        (lambda: segment_costs(GRAMS, growth=-torch.ones(8)), "growth holds a factor that is negative"),
        (lambda: segment_costs(GRAMS, ridge=-1.0), "ridge is -1.0; use 0"),
        (lambda: segment_costs(GRAMS, boundaries=[-1, 3, 8]), "boundaries [-1, 8] are no steps of a run of T=7"),
        (lambda: segment_costs(GRAMS, boundaries=[7]), "boundaries [7] are no steps of a run of T=7; use 1 to 6"),
        (lambda: segment_costs(GRAMS, max_gap=0), "max_gap is 0; use 1 or more, or None for gaps of any length"),
    ],
)  # fmt: skip
def test_refusals(build, message: str):
    with pytest.raises(InvalidArgument, match=re.escape(message)):
        build()
