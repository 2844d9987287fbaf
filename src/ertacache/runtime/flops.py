"""Floating-point operations that really run, counted by torch's formulas below every cache."""

from typing import Any, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count


class FlopCounter(TorchDispatchMode):
    """Counts matrix products, convolutions and attention inside its `with` block, in floating-point operations.

    The formulas are those of `torch.utils.flop_counter`. Its own mode also keeps the sum of every module and tries to
    take every operation apart, which makes a small model four to five times slower; this one two and a half times. And
    it has no formula for the attention kernel of the CPU, so that attention there would be free.

    Attributes:
        total: operations so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self._whole: set[Any] = set()

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        named = kwargs or {}
        packet = func._overloadpacket
        if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
            self.total += sdpa_flop_count(*(part.shape for part in args[:3]))
        elif packet in flop_registry:
            result = func(*args, **named)
            self.total += flop_registry[packet](*args, **named, out_val=result)
            return result
        elif func not in self._whole:
            # Inside inference mode an operation may arrive that consists of others, which are what has formulas.
            with self:
                result = func.decompose(*args, **named)
            if result is not NotImplemented:
                return result
            self._whole.add(func)
        return func(*args, **named)
