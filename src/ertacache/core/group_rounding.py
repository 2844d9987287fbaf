"""Symmetric round-to-nearest in groups: what a quantiser keeps of a tensor, as numbers of the tensor's own dtype."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ertacache.core.precision import widen
from ertacache.errors import InvalidArgument

#: Bits at which nothing is rounded.
EXACT_BITS = 16


def check_rounding(bits: int, group: int) -> None:
    """Refuse what is no grid of numbers.

    Raises:
        InvalidArgument: bits other than 2 to 8 or 16, or a group without entries.
    """
    if not (2 <= bits <= 8 or bits == EXACT_BITS):
        raise InvalidArgument(f"bits is {bits}; use 2 to 8, or {EXACT_BITS} for no rounding")
    if group < 1:
        raise InvalidArgument(f"group is {group}; use 1 or more entries, such as 64")


def rounded(x: Tensor, bits: int, group: int, shift: float = 0.0) -> Tensor:
    """x [..., N] on grids of 2^bits − 1 numbers around 0, one for each `group` entries along the last axis.

        scale = max |x| / top,  top = 2^(bits − 1) − 1        x̂ = scale · (round(x / scale − shift) + shift)

    Halves go to even. The last group is shorter where N is no multiple; a group of zeros stays zero. At 16 bits x
    itself is returned. A group with NaN or infinity becomes NaN.

    Args:
        x: floating point; the arithmetic is float32 (float64 for float64), x's dtype is returned.
        shift: of the grid, in scales; less than .5 to either side. A shifted grid has no 0.

    Raises:
        InvalidArgument: as `check_rounding`.
    """
    check_rounding(bits, group)
    if bits == EXACT_BITS or not x.numel():
        return x
    N, top = x.shape[-1], 2 ** (bits - 1) - 1
    padded = F.pad(widen(x), (0, -N % group))
    groups = padded.reshape(*x.shape[:-1], padded.shape[-1] // group, group)
    scale = groups.abs().amax(-1, keepdim=True) / top
    # Where the scale is 0 every entry is, up to numbers too small to divide by.
    numbers = (torch.where(scale == 0, 0.0, groups / scale) - shift).round().clamp(-top, top) + shift
    return (numbers * scale).reshape(padded.shape)[..., :N].to(x.dtype)
