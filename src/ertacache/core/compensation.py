"""What undoes the errors of a quantised denoiser: one affine table over computed steps.

    o'_i = gain_i õ_i + previous_i õ_{i−1} + bias_i

õ_i is the raw output of step i, as the solver would receive it, õ_{i−1} the raw one of the step before.
`compensation_fit.py` estimates it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ertacache.core.precision import widen
from ertacache.core.predictor import check_coefficients
from ertacache.errors import InvalidArgument, PredictorInvalid


@dataclass(frozen=True, eq=False)
class Correction:
    """One step of a `Compensation`, ready to run; None where a term does nothing.

    Attributes:
        gain, previous, bias: a float where all channels share it, else float32 on the output's device, of a shape
            that broadcasts against the output.
    """

    gain: float | Tensor | None
    previous: float | Tensor | None
    bias: float | Tensor | None

    def __call__(self, output: Tensor, previous_output: Tensor | None) -> Tensor:
        """The corrected output [B, *latent]; float32 arithmetic (float64 for float64), the output's dtype returned.

        Args:
            output: õ_i [B, *latent].
            previous_output: õ_{i−1} of the same shape; read only where there is a term for it.

        Raises:
            PredictorInvalid: there is a term for the output before, and it was not kept.
        """
        total = widen(output)
        if self.gain is not None:
            total = total * self.gain
        if self.previous is not None:
            if previous_output is None:
                raise PredictorInvalid(
                    "this correction reads the output of the step before, which was not kept; start at step 0, or "
                    "fit it with previous_weight=0"
                )
            total = total + widen(previous_output) * self.previous
        if self.bias is not None:
            total = total + self.bias
        return total.to(output.dtype)


@dataclass(frozen=True, eq=False)
class Compensation:
    """The corrections of a whole run; all tables float32 on the CPU.

    Args:
        gain, previous, bias: [T, C]; C is 1 where all channels share a coefficient, else the number of channels.

    Raises:
        PredictorInvalid: shapes that disagree, another dtype or device, a value that is not finite or beyond
            `LARGEST_COEFFICIENT`, or a term at step 0 for the step before it.
    """

    gain: Tensor
    previous: Tensor
    bias: Tensor

    def __post_init__(self) -> None:
        if self.gain.ndim != 2 or 0 in self.gain.shape:
            raise PredictorInvalid(f"gain has shape {tuple(self.gain.shape)}; give [T, C]")
        for name in ("gain", "previous", "bias"):
            table: Tensor = getattr(self, name)
            if table.shape != self.gain.shape:
                raise PredictorInvalid(
                    f"{name} has shape {tuple(table.shape)} where {tuple(self.gain.shape)} fits; reshape it"
                )
            if table.dtype != torch.float32 or table.device.type != "cpu":
                raise PredictorInvalid(f"{name} is {table.dtype} on {table.device}; give table.float().cpu()")
            check_coefficients(table, name)
        if self.previous[0].any():
            raise PredictorInvalid("previous has coefficients at step 0, which has no step before it; set its row to 0")

    @property
    def T(self) -> int:
        """Number of steps."""
        return self.gain.shape[0]

    @property
    def channels(self) -> int:
        """Number of channels that have coefficients of their own; 1 where all share one."""
        return self.gain.shape[1]

    @classmethod
    def identity(cls, T: int, channels: int = 1) -> Self:
        """The one that changes nothing.

        Raises:
            PredictorInvalid: no steps or no channels.
        """
        zeros = torch.zeros(T, channels)
        return cls(zeros + 1, zeros, zeros)

    def is_identity(self, i: int) -> bool:
        """Whether step i is left as it is, bit for bit."""
        return bool((self.gain[i] == 1).all()) and not bool(self.previous[i].any() or self.bias[i].any())

    def reads_previous(self, i: int) -> bool:
        """Whether step i reads the output of the step before."""
        return bool(self.previous[i].any())

    def correction(
        self, i: int, shape: Sequence[int], channel_axis: int, device: torch.device | str = "cpu"
    ) -> Correction | None:
        """Step i for outputs [B, *latent] of that shape, with its tensors on `device`; None where it does nothing.

        Args:
            channel_axis: axis of the channels, batch included; may be negative.

        Raises:
            PredictorInvalid: the axis has another number of channels.
        """
        if self.is_identity(i):
            return None
        if self.channels > 1 and not (
            -len(shape) <= channel_axis < len(shape) and shape[channel_axis] == self.channels
        ):
            raise PredictorInvalid(
                f"the corrections have {self.channels} channels and axis {channel_axis} of an output {tuple(shape)} "
                "has not; calibrate for this model"
            )
        aligned = [1] * len(shape)
        aligned[channel_axis if self.channels > 1 else -1] = self.channels

        def ready(row: Tensor, neutral: float) -> float | Tensor | None:
            if bool((row == neutral).all()):
                return None
            return row.view(aligned).to(device) if self.channels > 1 else float(row)

        return Correction(ready(self.gain[i], 1.0), ready(self.previous[i], 0.0), ready(self.bias[i], 0.0))

    def apply(self, i: int, output: Tensor, previous_output: Tensor | None, channel_axis: int) -> Tensor:
        """Step i of the run: õ_i and õ_{i−1} [B, *latent] to o'_i; õ_i itself where the step does nothing.

        Raises:
            PredictorInvalid: as `correction` and `Correction`.
        """
        correction = self.correction(i, output.shape, channel_axis, output.device)
        return output if correction is None else correction(output, previous_output)

    def with_previous(self, scales: Sequence[float], slopes: Sequence[float], weight: float) -> Self:
        """With the window m = 1: what step i − 1 got wrong, as the solver carries it into step i.

        Step i−1 errs by C_{i−1} = B_{i−1} (õ − o'), of which the solver makes A_i C_{i−1}. With K = 1 − gain, bias 0:

            C_i = B_i K_i õ_i + w A_i B_{i−1} K_{i−1} õ_{i−1}        o' = õ_i − C_i / B_i

        At weight 1 this counts twice what step i − 1 has already been corrected for.

        Args:
            scales, slopes: A_i and B_i of every step, x_{i+1} = A_i x_i + B_i o_i. Where B_i is 0 no output moves the
                step, and only the current term is kept.
            weight: w, 0 to 1.

        Raises:
            InvalidArgument: another weight, or not one A and B for each step.
            PredictorInvalid: this table has terms for the step before already, or the new one is beyond use.
        """
        check_window(weight)
        if len(scales) != self.T or len(slopes) != self.T:
            raise InvalidArgument(f"{len(scales)} scales and {len(slopes)} slopes for {self.T} steps; give one each")
        if self.previous.any():
            raise PredictorInvalid("this table reads the step before already; start from one with previous = 0")
        carried = torch.zeros(self.T, 1, dtype=torch.float64)
        for i in range(1, self.T):
            if slopes[i] != 0:
                carried[i] = weight * scales[i] * slopes[i - 1] / slopes[i]
        before_gain, before_bias = (table.double().roll(1, 0) for table in (self.gain, self.bias))
        previous = (carried * (before_gain - 1)).float()
        return type(self)(self.gain, previous, (self.bias.double() + carried * before_bias).float())

    def without_previous(self) -> Self:
        """For steps that follow none: what `with_previous` added is taken out again, from the bias too.

        A bias is left as it is where the term for the step before is not of that kind (C_{i−1} carried on, with one
        factor for all channels), and where no such term tells what was carried on.
        """
        gain, previous, own = (table.double() for table in (self.gain, self.previous, self.bias))
        for i in range(1, self.T):
            turned = gain[i - 1] - 1
            if previous[i].any() and turned.any():
                carried = (previous[i] * turned).sum() / turned.square().sum()
                if torch.allclose(previous[i], carried * turned, rtol=1e-5, atol=0):
                    own[i] -= carried * own[i - 1]
        return type(self)(self.gain, torch.zeros_like(self.gain), own.float())


def check_window(weight: float) -> None:
    """Refuse the weight of a previous-step term that is no share.

    Raises:
        InvalidArgument: below 0, above 1 or NaN.
    """
    if not 0 <= weight <= 1:
        raise InvalidArgument(f"the weight of the previous step is {weight}; give 0 (current step only) to 1")
