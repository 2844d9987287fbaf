import re

import pytest
import torch
from torch import Tensor

from ertacache.core import run_gram
from ertacache.core.run_gram import RunGrams, gram_of, held, left_by_reuse
from ertacache.errors import InvalidArgument


def vectors(T: int, *, seed: int = 0, shape: tuple[int, ...] = (2, 3, 4)) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, *shape, generator=generator, dtype=torch.float64) for n in (T + 1, T, T))  # type: ignore[return-value]


def solved(T: int, carry: list[float], take: list[float], *, seed: int = 0, size: int = 40) -> tuple[Tensor, Tensor]:
    """A run of a solver that steps to carry · x + take · g."""
    generator = torch.Generator().manual_seed(seed)
    g = torch.randn(T, size, generator=generator, dtype=torch.float64)
    x = [torch.randn(size, generator=generator, dtype=torch.float64)]
    for i in range(T):
        x.append(carry[i] * x[i] + take[i] * g[i])
    return torch.stack(x), g


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_inner_products_of_all_vectors_in_order(dtype: torch.dtype):
    x, g, d = (v.to(dtype) for v in vectors(3))
    every = torch.cat([x, g, d]).flatten(1).double()
    torch.testing.assert_close(gram_of(x, g, d), every @ every.T, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(gram_of(x, g), (every @ every.T)[:7, :7], rtol=1e-13, atol=1e-13)
    grams = RunGrams.of([gram_of(x, g, d)], 3)
    assert [grams.latent(3), grams.output(0), grams.output(2), grams.direction(0), grams.direction(2)] == [
        3,
        4,
        6,
        7,
        9,
    ]
    assert grams.has_directions and not RunGrams.of([gram_of(x, g)], 3).has_directions


def test_pieces_make_the_same_sum_and_each_is_read_once(monkeypatch: pytest.MonkeyPatch):
    x, g, d = vectors(3)
    whole, read = gram_of(x, g, d), []
    monkeypatch.setattr(run_gram, "_PIECE", 8 * 10 * 7)  # seven of a latent's 24 elements
    plain = run_gram.exact
    monkeypatch.setattr(run_gram, "exact", lambda part: read.append(tuple(part.shape)) or plain(part))
    torch.testing.assert_close(gram_of(x, g, d), whole, rtol=1e-13, atol=1e-13)
    assert read == [(n, size) for size in (7, 7, 7, 3) for n in (4, 3, 3)]


def test_energies_are_those_of_the_combined_vectors():
    runs = [vectors(3, seed=seed) for seed in range(2)]
    grams = RunGrams.of([gram_of(*run) for run in runs], 3)
    a = torch.randn(5, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = torch.stack([(a @ torch.cat(run).flatten(1)).square().sum(1) for run in runs])
    torch.testing.assert_close(grams.energies(a), expected)
    torch.testing.assert_close(grams.energies(a[0]), expected[:, 0])


def test_held_outputs_under_euler_and_under_a_solver_that_shrinks_the_latent():
    T, take = 5, [-0.1, -0.2, -0.3, -0.15, -0.25]
    runs = [solved(T, [1.0] * T, take, seed=seed) for seed in range(3)]
    A, B = held(RunGrams.of([gram_of(*run) for run in runs], T))
    sigmas = torch.tensor([0.0, *take], dtype=torch.float64).cumsum(0)
    torch.testing.assert_close(A, torch.ones(T + 1, T + 1).double().triu(), rtol=0, atol=1e-11)
    torch.testing.assert_close(B, (sigmas[None, :] - sigmas[:, None]).triu(), rtol=0, atol=1e-11)
    carry = [0.9, 1.1, 0.8, 1.0, 0.7]
    runs = [solved(T, carry, take, seed=seed) for seed in range(3)]
    grams = RunGrams.of([gram_of(*run) for run in runs], T)
    A, B = held(grams)
    assert A[1, 4].item() == pytest.approx(1.1 * 0.8 * 1.0)
    assert B[1, 4].item() == pytest.approx((-0.2 * 0.8 + -0.3) * 1.0 + -0.15)
    left = left_by_reuse(grams, 1, [2, 4], A, B) @ torch.cat(runs[2])
    x, g = runs[2]
    reached = x[1]
    for i in range(1, 4):
        reached = carry[i] * reached + take[i] * g[1]
    torch.testing.assert_close(left, torch.stack([torch.zeros(40).double(), x[4] - reached]), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: gram_of(torch.zeros(4, 2), torch.zeros(4, 2)), r"[4, 2], [4, 2]; give [T+1, *], [T, *] and [T, *]"),
        (lambda: gram_of(torch.zeros(4, 2), torch.zeros(3, 5)), "[4, 2], [3, 5]; give"),
        (lambda: gram_of(torch.zeros(4, 2), torch.zeros(3, 2), torch.zeros(2, 2)), "[4, 2], [3, 2], [2, 2]; give"),
        (lambda: RunGrams(3, torch.zeros(2, 8, 8)), "T=3 steps have shape [2, 8, 8]; stack [N, M, M] with M = 7 or 10"),
        (lambda: RunGrams(3, torch.zeros(7, 7)), "have shape [7, 7]; stack"),
        (lambda: RunGrams.of([], 3), "have shape [0, 7, 7]; stack"),
        (lambda: RunGrams.of([torch.zeros(7, 7)], 3), "Gram matrices are torch.float32; sum them in float64"),
        (lambda: RunGrams.of([torch.eye(7).double(), torch.full((7, 7), torch.nan).double()], 3), "prompt 1 holds NaN"),
    ],
)  # fmt: skip
def test_refusals(build, message: str):
    with pytest.raises(InvalidArgument, match=re.escape(message)):
        build()
