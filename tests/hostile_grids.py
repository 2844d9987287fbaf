"""Every way in which the time grids of a profile file can be wrong, and what the message must say."""

from collections.abc import Callable

from profile_maker import make, with_tensors

GRID = make().sigmas
BASE = make().base_sigmas

GRIDS: dict[str, tuple[Callable[[], bytes], str]] = {
    "grid not falling": (
        lambda: with_tensors(sigmas=GRID[[0, 1, 2, 2, 4, 5]]),
        r"sigmas goes from 0.8125 to 0.8125 at step 2; it must fall",
    ),
    "base grid not falling": (
        lambda: with_tensors(base_sigmas=BASE[[0, 2, 1, 3, 4, 5]]),
        r"base_sigmas goes from 0.75 to 0.875 at step 1; it must fall",
    ),
    "grid not rising": (
        lambda: with_tensors(base_sigmas=GRID.flip(0)[[0, 2, 1, 3, 4, 5]]),
        r"base_sigmas goes from 0.5625 to 0.3125 at step 1; it must rise at every step",
    ),
    "grids end apart": (
        lambda: with_tensors(sigmas=GRID + (GRID == 0) / 8),
        r"sigmas\[-1\] is 0.125 where base",
    ),
    "grid below zero": (
        lambda: with_tensors(base_sigmas=BASE - 0.125, sigmas=BASE - 0.125),
        r"base_sigmas reaches from -0.125 to 0.875; noise levels lie between 0 and 1e\+06",
    ),
    "grid beyond any noise": (
        lambda: with_tensors(base_sigmas=BASE * 1e7, sigmas=BASE * 1e7),
        r"base_sigmas reaches from 0 to 1e\+07; noise levels lie between",
    ),
    "grids start apart": (
        lambda: with_tensors(sigmas=GRID + (GRID == 1) / 8),
        r"sigmas\[0\] is 1.125 where base",
    ),
}
