"""Linear layers that compute with what a quantiser would keep, in the arithmetic of the model."""

import torch.nn.functional as F
from torch import Tensor, nn

from ertacache.core.group_rounding import rounded
from ertacache.pipelines.quantizers.grids import Turn, shifts


class FakeQuantLinear(nn.Linear):
    """A linear layer with rounded weights, whose inputs are rounded in each call: per token, in groups.

    It is saved and loaded as the layer that it was made from: the same names, the rounded weights (of the first grid).

    Args:
        linear: gives shape, weight and bias; the bias is shared and not rounded.
        bits: of weights and activations; see `core.group_rounding.rounded`.
        group: entries along the input axis that share a scale.
        round_weights: False where they are rounded already, as in a saved model.
        turn: tells which of several grids serves a call; None for a single one. Each has rounded weights of its own.
    """

    def __init__(
        self,
        linear: nn.Linear,
        bits: tuple[int, int],
        group: int,
        round_weights: bool = True,
        turn: Turn | None = None,
    ) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would allocate a weight
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bits, self.group, self.turn = bits, group, turn
        self.shifts = shifts(1 if turn is None else turn.grids)
        exact = linear.weight.detach()
        weights = [rounded(exact, bits[0], group, shift) if round_weights else exact for shift in self.shifts]
        same = weights[0].data_ptr() == exact.data_ptr()
        self.weight = linear.weight if same else nn.Parameter(weights[0], requires_grad=linear.weight.requires_grad)
        for k, weight in enumerate(weights[1:], 1):
            self.register_buffer(f"weight_{k}", weight, persistent=False)
        self.bias = linear.bias
        self.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]; activations that are not finite give NaN."""
        k = 0 if self.turn is None else self.turn.grid
        weight = self.get_buffer(f"weight_{k}") if k else self.weight
        return F.linear(rounded(input, self.bits[1], self.group, self.shifts[k]), weight, self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits={self.bits}, group={self.group}, grids={len(self.shifts)}"
