"""GCache: the schedule as a shortest path over the errors of every reuse, weighted by what becomes of them."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ertacache.baselines.baseline import Bench
from ertacache.baselines.forecast import recorded
from ertacache.baselines.searched_reuse import Loss, SearchedReuse
from ertacache.calibration.deviation import deviation

#: The exponents of the propagation are searched from 0 to this, as published.
_LARGEST_EXPONENT = 10.0


@dataclass(frozen=True)
class GCache(SearchedReuse):
    """Among all schedules of K steps, the one of least Σ ε(i, j) exp w(i/T), j being the step that i reuses.

    ε(i, j) = ‖r_i − r_j‖₁ is known from one uncached run of each prompt: r is the residual, or what else is reused. w
    is a polynomial in Bernstein's form, whose coefficients are chosen for the quality of what the schedule makes.

    The paper looks for the coefficients by Bayesian optimisation, 500 rounds against LPIPS and SSIM. Here they are the
    first points of a Sobol sequence, judged by the log deviation of the final latents; most lead to a schedule that has
    been run already. Its code is not published: where the reused residual is taken is not said, and TeaCache's place,
    the block stack, is assumed.

    Args:
        degree: of w. tries: how many w are tried; the first is w = 0.
    """

    key: ClassVar[str] = "gcache"
    title: ClassVar[str] = "GCache"
    paper: ClassVar[str] = "arXiv 2608.13043"

    degree: int = 3
    tries: int = 64

    def search(self, bench: Bench, K: int, loss: Loss) -> tuple[int, ...]:
        errors = self._errors(bench)
        sequence = torch.quasirandom.SobolEngine(self.degree + 1, scramble=False, seed=self.seed)
        points = _LARGEST_EXPONENT * sequence.draw(self.tries, dtype=torch.float64)
        paths = [shortest_path(errors * bernstein(point, bench.T).exp()[:, None], K) for point in points]
        return min(dict.fromkeys(paths), key=loss)

    def distance(self, latents: Tensor, reference: Tensor) -> float:
        return deviation(latents, reference)

    def _errors(self, bench: Bench) -> Tensor:
        """ε [T, T] float64, the sum over prompts and streams."""
        total = torch.zeros(bench.T, bench.T, dtype=torch.float64)
        for streams in recorded(bench, self.prompts, self.place):
            for kept in streams:
                reused = torch.stack(kept.values).flatten(1)
                if self.reused != "plain":
                    reused -= torch.stack(kept.inputs).flatten(1)
                total += torch.cdist(reused, reused, p=1)
        return total


def bernstein(coefficients: Tensor, T: int) -> Tensor:
    """[T] float64: the polynomial Σ_k c_k C(d, k) s^k (1 − s)^(d − k) at s = i / T, of degree d."""
    d, s = len(coefficients) - 1, torch.arange(T, dtype=torch.float64) / T
    terms = [float(c) * math.comb(d, k) * s**k * (1 - s) ** (d - k) for k, c in enumerate(coefficients)]
    return torch.stack(terms).sum(0)


def shortest_path(errors: Tensor, K: int) -> tuple[int, ...]:
    """The K of T steps, 0 among them, of least total error where each other step takes the newest of them.

    Args:
        errors: [T, T], of step i when it takes step j.
    """
    T = len(errors)
    # segment[j, k]: steps j + 1 to k − 1 take step j.
    below = torch.tril(errors, -1).T.cumsum(1)
    segment = torch.cat([torch.zeros(T, 1, dtype=errors.dtype), below], 1)
    best, before = segment[:, T], list[Tensor]()
    for left in range(1, K):
        ahead = torch.full((T, T), math.inf, dtype=errors.dtype)
        for j in range(T - left):
            ahead[j, j + 1 :] = segment[j, j + 1 : T] + best[j + 1 :]
        best, chosen = ahead.min(1)
        before.append(chosen)
    path = [0]
    for chosen in reversed(before):
        path.append(int(chosen[path[-1]]))
    return tuple(path)
