"""Inner products of all that one uncached run leaves: enough to price any schedule without calling the model.

A plan's latents are sums of recorded vectors as far as the record tells, so every distance that a search asks for
is a quadratic form in these products.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ertacache.core.fit import RidgeSums
from ertacache.core.precision import exact
from ertacache.errors import InvalidArgument

# Bytes of the vectors' pieces held in float64 at once.
_PIECE = 2**26


def gram_of(latents: Tensor, outputs: Tensor, directions: Tensor | None = None) -> Tensor:
    """The Gram matrix [M, M] float64 on the CPU of one run's vectors: latents, outputs, directions, in that order.

    Every vector is read once, piece by piece, so that files mapped into memory may be larger than it: about
    64 MiB are held in float64 at a time, whatever the size of a latent.

    Args:
        latents: [T+1, *] x_0 to x_T, the last being the end of the trajectory; any dtype and device.
        outputs: [T, *] what the solver received.
        directions: [T, *] guidance directions c − u, where the run had two branches.

    Raises:
        InvalidArgument: lengths or shapes that do not belong together.
    """
    given = [latents, outputs] if directions is None else [latents, outputs, directions]
    if any(len(x) != len(latents) - 1 or x.shape[1:] != latents.shape[1:] for x in given[1:]):
        shapes = ", ".join(str(list(x.shape)) for x in given)
        raise InvalidArgument(f"latents, outputs and directions are {shapes}; give [T+1, *], [T, *] and [T, *]")
    return inner_products([x.reshape(len(x), -1) for x in given])


def inner_products(rows: Sequence[Tensor]) -> Tensor:
    """The Gram matrix [M, M] float64 on the CPU of vectors [*, D] that together are M, see `gram_of`."""
    vectors, size = sum(map(len, rows)), rows[0].shape[1]
    gram = torch.zeros(vectors, vectors, dtype=torch.float64)
    piece = max(1, _PIECE // (8 * vectors))
    for start in range(0, size, piece):
        part = torch.cat([exact(x[:, start : start + piece]) for x in rows])
        gram += part @ part.T
    return gram


@dataclass(frozen=True, eq=False)
class RunGrams:
    """The Gram matrices of N prompts' uncached runs.

    Args:
        T: number of steps of a run.
        stack: [N, M, M] float64, one `gram_of` each; M is 2T+1, or 3T+1 with guidance directions.

    Raises:
        InvalidArgument: no prompts, another shape or dtype, or NaN or infinity in one of the runs.
    """

    T: int
    stack: Tensor

    def __post_init__(self) -> None:
        shape = tuple(self.stack.shape)
        if len(shape) != 3 or shape[0] < 1 or shape[1] != shape[2] or shape[1] not in (2 * self.T + 1, 3 * self.T + 1):
            expected = f"[N, M, M] with M = {2 * self.T + 1} or {3 * self.T + 1}"
            raise InvalidArgument(f"Gram matrices of T={self.T} steps have shape {list(shape)}; stack {expected}")
        if self.stack.dtype != torch.float64:
            raise InvalidArgument(f"Gram matrices are {self.stack.dtype}; sum them in float64, as gram_of does")
        for prompt, gram in enumerate(self.stack):
            if not bool(gram.isfinite().all()):
                raise InvalidArgument(f"the run of prompt {prompt} holds NaN or infinity; leave it out")

    @classmethod
    def of(cls, grams: Iterable[Tensor], T: int) -> Self:
        """From one Gram matrix per prompt.

        Raises:
            InvalidArgument: as above.
        """
        given = list(grams)
        return cls(T, torch.stack(given) if given else torch.zeros(0, 2 * T + 1, 2 * T + 1, dtype=torch.float64))

    @property
    def has_directions(self) -> bool:
        """Whether the guidance directions are among the vectors."""
        return self.stack.shape[1] == 3 * self.T + 1

    def latent(self, i: int) -> int:
        """Index of x_i, i from 0 to T."""
        return i

    def output(self, i: int) -> int:
        """Index of g_i, i from 0 to T−1."""
        return self.T + 1 + i

    def direction(self, i: int) -> int:
        """Index of d_i, i from 0 to T−1; only where `has_directions`."""
        return 2 * self.T + 1 + i

    def energies(self, combination: Tensor) -> Tensor:
        """[N, *] float64: |Σ_m a_m v_m|² of each prompt for combinations a [*, M]."""
        products = torch.einsum("nab,...b->n...a", self.stack, combination)
        return (products * combination).sum(-1).clamp(min=0)  # rounding may leave less than nothing


def held(grams: RunGrams) -> tuple[Tensor, Tensor]:
    """What the solver makes of an output that is held: A and B, [T+1, T+1] float64 each.

    From x_i, with g_i given to every step from i to j−1, the solver comes to A[i, j] x_i + B[i, j] g_i. Under Euler A
    is 1 and B the length of the interval. The solver's share of latent and outputs is read from the runs themselves,
    by least squares of x_{i+1} on x_i, g_i and the two outputs before it over all prompts: exact for one-step
    solvers that step to a x + b g, near for multistep ones.
    """
    T = grams.T
    A, B = torch.eye(T + 1, dtype=torch.float64), torch.zeros(T + 1, T + 1, dtype=torch.float64)
    total = grams.stack.sum(0)
    for i in range(T):
        features = [grams.latent(i), *(grams.output(j) for j in range(i, max(i - 3, -1), -1))]
        sums = RidgeSums(len(features))
        sums.gram += total[features][:, features]
        sums.moment += total[features, grams.latent(i + 1)]
        share = sums.solve()
        A[: i + 1, i + 1] = share[0] * A[: i + 1, i]
        B[: i + 1, i + 1] = share[0] * B[: i + 1, i] + share[1:].sum()
    return A, B


def left_by_reuse(grams: RunGrams, i: int, ends: list[int], A: Tensor, B: Tensor) -> Tensor:
    """Combinations [E, M] of the recorded vectors: x_j minus where holding g_i from step i leads, for each end j.

    Args:
        A, B: from `held`.
    """
    left = torch.zeros(len(ends), grams.stack.shape[1], dtype=torch.float64)
    left[range(len(ends)), [grams.latent(j) for j in ends]] = 1.0
    left[:, grams.latent(i)] -= A[i, ends]
    left[:, grams.output(i)] -= B[i, ends]
    return left
