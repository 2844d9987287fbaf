"""In which precision the arithmetic is done."""

import torch
from torch import Tensor


def wide(dtype: torch.dtype) -> torch.dtype:
    """What the run-time computes with for a dtype: float32, or float64 for itself."""
    return torch.promote_types(dtype, torch.float32)


def widen(x: Tensor) -> Tensor:
    """x as the run-time computes with it, on x's device."""
    return x.to(wide(x.dtype))


def exact(x: Tensor) -> Tensor:
    """x as calibration sums it: float64 on the CPU, the one place where every machine has float64."""
    return x.detach().cpu().double()
