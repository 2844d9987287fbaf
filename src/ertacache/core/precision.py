"""In which precision the arithmetic is done."""

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """x as the run-time computes with it: float32, or float64 where x already has it; on x's device."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def exact(x: Tensor) -> Tensor:
    """x as calibration sums it: float64 on the CPU, the one place where every machine has float64."""
    return x.detach().cpu().double()
