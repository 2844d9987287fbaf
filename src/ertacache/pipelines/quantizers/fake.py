"""Linear layers that compute with what a quantiser would keep, in the arithmetic of the model."""

import torch.nn.functional as F
from torch import Tensor, nn

from ertacache.core.group_rounding import EXACT_BITS, rounded
from ertacache.pipelines.quantizers.grids import Turn, shifts


class FakeQuantLinear(nn.Linear):
    """A linear layer with rounded weights, whose inputs are rounded in each call: per token, in groups.

    It is saved and loaded as the layer that it was made from, by the same names. A single grid's weights are rounded
    once, and saved so. For several grids they stay as they are and are rounded in each call, so that what is saved,
    loaded or fused into them (a LoRA) is on every grid.

    Args:
        linear: gives shape, weight and bias; the bias is shared and not rounded.
        bits: of weights and activations; see `core.group_rounding.rounded`.
        group: entries along the input axis that share a scale.
        round_weights: False where those of a single grid are rounded already, as in a saved model.
        turn: tells which of several grids serves a call; None for a single one.
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
        self.weight, self.bias = linear.weight, linear.bias
        if turn is None and round_weights and bits[0] != EXACT_BITS:
            weight = rounded(linear.weight.detach(), bits[0], group)
            self.weight = nn.Parameter(weight, requires_grad=linear.weight.requires_grad)
        self.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]; activations that are not finite give NaN."""
        shift, weight = 0.0, self.weight
        if self.turn is not None:
            shift = self.shifts[self.turn.grid]
            weight = rounded(weight, self.bits[0], self.group, shift)
        return F.linear(rounded(input, self.bits[1], self.group, shift), weight, self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits={self.bits}, group={self.group}, grids={len(self.shifts)}"
