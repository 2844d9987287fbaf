"""The rectifier: an affine model of a prediction's error, fitted in one streaming pass (Eq. 15-21, A.3).

With ṽ the prediction and ε = ṽ − v its error, least squares gives ε ≈ κ ṽ + β:

    κ = S_vε / S_vv        β = ε̄ − κ v̄

The paper fits the tangent of a sigmoid, (K ṽ + B)/4 + 1/2. The same line is therefore K = 4κ and
B = 4(ε̄ − 1/2) − K v̄; the printed B subtracts 4K v̄, although K already holds the 4.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from ertacache.core.channels import channels_at
from ertacache.core.precision import exact, widen
from ertacache.errors import CalibrationError, InvalidArgument

Granularity = Literal["scalar", "channel", "element"]

# A variance this small beside the mean square is a constant's rounding error, not a spread to divide by.
_CONSTANT = 1e-12


@dataclass(frozen=True, eq=False)
class Affine:
    """The error model ε ≈ κ ṽ + β of one step.

    Args:
        kappa, beta: float64, each of a shape that broadcasts against one latent without its batch axis.
    """

    kappa: Tensor
    beta: Tensor

    def apply(self, v: Tensor) -> Tensor:
        """v − (κ v + β) for v [B, *latent]; float32 arithmetic (float64 for float64), v's dtype returned."""
        wide = widen(v)
        return (wide - (self.kappa.to(wide) * wide + self.beta.to(wide))).to(v.dtype)

    def paper(self) -> tuple[Tensor, Tensor]:
        """The paper's (K, B) of this line: (4κ, 4β − 2)."""
        return 4 * self.kappa, 4 * self.beta - 2

    def apply_sigmoid(self, v: Tensor) -> Tensor:
        """v − sigmoid(K v + B), Algorithm 1 line 17 to the letter; dtypes as in `apply`.

        For reproduction only: the sigmoid is positive and, where the error is 0, still subtracts
        sigmoid(−2) = 0.119.
        """
        wide = widen(v)
        K, B = (coefficient.to(wide) for coefficient in self.paper())
        return (wide - torch.sigmoid(K * wide + B)).to(v.dtype)


class AffineSums:
    """Streaming sums of a prediction ṽ and its error ε; memory does not grow with the number of prompts.

    Args:
        granularity: what shares one (κ, β): the whole latent, a channel, or nothing (one per element, fitted
            over prompts).
        channel_axis: axis of the channels in [B, *latent], batch included; may be negative.
    """

    def __init__(self, granularity: Granularity, channel_axis: int) -> None:
        self.granularity: Granularity = granularity
        self.channel_axis = channel_axis
        self._sums: dict[str, Tensor] = {}

    def update(self, predicted: Tensor, error: Tensor) -> None:
        """Add B prompts: ṽ [B, *latent] and ε = ṽ − v [B, *latent].

        Raises:
            InvalidArgument: a channel axis that the latent lacks, or a latent whose coefficients have another
                shape than those so far.
        """
        v, e = exact(predicted), exact(error)
        shared = self._shared_axes(v)
        pairs = {"v": v, "e": e, "vv": v * v, "ve": v * e}
        sums = {name: x.sum(shared, keepdim=True)[0] for name, x in pairs.items()}
        if self.granularity == "scalar":
            sums = {name: x.reshape(()) for name, x in sums.items()}
        count = v.numel() // sums["v"].numel()
        self._add({"n": torch.tensor(float(count), dtype=torch.float64), **sums})

    def merge(self, other: "AffineSums") -> None:
        """Add the prompts that `other` has seen.

        Raises:
            InvalidArgument: coefficients of another shape.
        """
        if other._sums:
            self._add(other._sums)

    def state(self) -> dict[str, Tensor]:
        """The sums n, v, e, vv, ve (float64), empty before the first prompt; `from_state` reads them back."""
        return dict(self._sums)

    @classmethod
    def from_state(cls, granularity: Granularity, channel_axis: int, state: Mapping[str, Tensor]) -> Self:
        """Continue from what `state` returned."""
        sums = cls(granularity, channel_axis)
        sums._sums = dict(state)
        return sums

    def solve(self, ridge: float = 0.0) -> Affine:
        """The least-squares line; where ṽ does not vary, κ = 0 and β is the mean error.

        Args:
            ridge: shrinks κ toward 0, in units of the mean variance: κ = S_vε / (S_vv + ridge · mean S_vv).

        Raises:
            InvalidArgument: a ridge that is negative or NaN.
            CalibrationError: no prompts, or one prompt per element and no ridge.
        """
        if not ridge >= 0:
            raise InvalidArgument(f"ridge is {ridge}; use 0 for plain least squares, more to shrink")
        if not self._sums:
            raise CalibrationError("the rectifier has seen no prompts; calibrate with at least one")
        n, v, e, vv, ve = (self._sums[name] for name in ("n", "v", "e", "vv", "ve"))
        if self.granularity == "element" and n < 2 and ridge == 0:
            raise CalibrationError(
                "one prompt has no variance per element; calibrate with 2 prompts or more, give a ridge, "
                "or use granularity 'channel'"
            )
        variance, covariance = vv - v * v / n, ve - v * e / n
        constant = variance <= _CONSTANT * vv
        variance = torch.where(constant, 0.0, variance)
        slope = covariance / (variance + ridge * variance.mean())
        kappa = torch.where(constant, 0.0, slope)
        return Affine(kappa, (e - kappa * v) / n)

    def _shared_axes(self, x: Tensor) -> tuple[int, ...]:
        """The axes of [B, *latent] over which one coefficient is shared."""
        if self.granularity == "element":
            return (0,)
        if self.granularity == "scalar":
            return tuple(range(x.ndim))
        channel = channels_at(x, self.channel_axis)
        return tuple(axis for axis in range(x.ndim) if axis != channel)

    def _add(self, sums: Mapping[str, Tensor]) -> None:
        if not self._sums:
            self._sums = dict(sums)
            return
        held, given = tuple(self._sums["v"].shape), tuple(sums["v"].shape)
        if held != given:
            raise InvalidArgument(
                f"coefficients of shape {given} after {held}; calibrate all prompts at one latent size"
            )
        self._sums = {name: x + sums[name] for name, x in self._sums.items()}
