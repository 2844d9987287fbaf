"""How much a deviation of the latent at a step has become at the end of the run."""

import torch
from torch import Tensor

from ertacache.core.precision import exact
from ertacache.errors import InvalidArgument

# One perturbed run measures one direction: beyond this factor it says "much", not how much.
_BOUND = 100.0


def growth_of(deviation: Tensor) -> Tensor:
    """Factors [T+1] float64 from a deviation at each step to the end of the run, 1 at the end itself.

    The factor is the deviation at the end over that at the step, kept between 1/100 and 100. Where the deviation is
    0 nothing was measured (a run perturbed at step 3 says nothing of the steps before it): the first measured step
    after it stands in, because what deviates there has still to pass that step. A run that does not deviate
    at its end tells nothing, and every factor is 1. Perturb as a plan does, by holding an early output once: noise also
    excites directions in which predictions do not err, and those may neither grow nor shrink alike.

    Args:
        deviation: [T+1] RMS of the perturbed latents minus those of the uncached run, x_0 to x_T; one that shrinks
            on its way is as good as one that grows.

    Raises:
        InvalidArgument: not one entry per latent, or one that is negative, NaN or infinite.
    """
    measured = exact(deviation).clone()
    if measured.ndim != 1 or len(measured) < 2:
        raise InvalidArgument(f"deviations have shape {list(measured.shape)}; give [T+1], one per latent of a run")
    bad = ~(measured.isfinite() & (measured >= 0))
    if bool(bad.any()):
        i = int(bad.nonzero()[0])
        raise InvalidArgument(f"the deviation of latent {i} is {float(measured[i])}; give root mean squares")
    if measured[-1] == 0:
        return torch.ones_like(measured)
    for i in range(len(measured) - 2, -1, -1):
        if measured[i] == 0:
            measured[i] = measured[i + 1]
    return (measured[-1] / measured).clamp(1 / _BOUND, _BOUND)
