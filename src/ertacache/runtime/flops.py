"""Floating-point operations that really run, counted by torch below every cache."""

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def flop_counter() -> FlopCounterMode:
    """A counter of matrix products, convolutions and attention; `get_total_flops()` after its `with` block.

    torch's own has no formula for the attention kernel of the CPU and would count attention there as free.
    """
    kernel: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={kernel: _attention})


def _attention(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)
