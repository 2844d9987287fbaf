"""Linear layers that compute with what a quantiser would keep, in the arithmetic of the model."""

import torch.nn.functional as F
from torch import Tensor, nn

from ertacache.core.group_rounding import rounded


class FakeQuantLinear(nn.Linear):
    """A linear layer with rounded weights, whose inputs are rounded in each call: per token, in groups.

    It is saved and loaded as the layer that it was made from: the same names, the rounded weights.

    Args:
        linear: gives shape, weight and bias; the bias is shared and not rounded.
        bits: of weights and activations; see `core.group_rounding.rounded`.
        group: entries along the input axis that share a scale.
        round_weights: False where they are rounded already, as in a saved model.
    """

    def __init__(self, linear: nn.Linear, bits: tuple[int, int], group: int, round_weights: bool = True) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would allocate a weight
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bits, self.group = bits, group
        weight = rounded(linear.weight.detach(), bits[0], group) if round_weights else linear.weight.detach()
        exact = weight.data_ptr() == linear.weight.data_ptr()
        self.weight = linear.weight if exact else nn.Parameter(weight, requires_grad=linear.weight.requires_grad)
        self.bias = linear.bias
        self.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]; activations that are not finite give NaN."""
        return F.linear(rounded(input, self.bits[1], self.group), self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits={self.bits}, group={self.group}"
