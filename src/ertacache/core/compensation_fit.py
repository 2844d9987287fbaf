"""The estimators of a `Compensation`, from sums in one streaming pass.

They differ in what they regress on what. With o the output in full precision, õ the quantised one, e = õ − o its error:

    bias        mean error                                          o' = õ − ē
    gain        K = Σ e õ / Σ õ², on the quantised output (TCEC)     o' = (1 − K) õ
    ptqd-gain   k = Σ e o / Σ o² ≥ 0, on the exact output            o' = õ / (1 + k)
    ptqd        the same with an intercept b (PTQD)                 o' = (õ − b) / (1 + k)
    affine      least squares of e on õ with an intercept           o' = (1 − κ) õ − β

`gain` and `affine` divide by the energy of the noisy output: an error that has nothing to do with the signal still
pulls them toward 0. The PTQD forms divide by that of the exact output, and do not mistake it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Self, get_args

import torch
from torch import Tensor

from ertacache.core.channels import channels_at
from ertacache.core.compensation import Compensation
from ertacache.core.precision import exact
from ertacache.core.rectify import AffineSums
from ertacache.errors import CalibrationError, InvalidArgument

#: What is regressed on what; see the top of this file.
Estimator = Literal["bias", "gain", "ptqd-gain", "ptqd", "affine"]
#: What shares one coefficient: the whole latent, or a channel.
Sharing = Literal["scalar", "channel"]


class CompensationSums:
    """Sums over the prompts of one step, per channel, float64; memory does not grow with the number of prompts.

    Args:
        channel_axis: axis of the channels in [B, *latent], batch included; may be negative.
    """

    def __init__(self, channel_axis: int) -> None:
        self.channel_axis = channel_axis
        self._sums: dict[str, Tensor] = {}

    def update(self, exact_output: Tensor, output: Tensor, weights: Tensor | None = None) -> None:
        """Add B prompts.

        Args:
            exact_output: o [B, *latent], in full precision.
            output: õ [B, *latent], quantised.
            weights: [B], one per prompt; ones if None.

        Raises:
            InvalidArgument: two shapes, a channel axis that the latent lacks, weights that are not one per prompt, or
                another number of channels than before.
            CalibrationError: an output that holds NaN or infinity.
        """
        if exact_output.shape != output.shape:
            raise InvalidArgument(
                f"outputs {tuple(output.shape)} and exact ones {tuple(exact_output.shape)}; give the same prompts"
            )
        o, q = (self._rows(exact(one)) for one in (exact_output, output))
        if not (o.isfinite().all() and q.isfinite().all()):
            raise CalibrationError("a quantised or an exact output holds NaN or infinity; quantise less or use float32")
        w = torch.ones(len(o), dtype=torch.float64) if weights is None else exact(weights)
        if w.shape != (len(o),):
            raise InvalidArgument(f"weights have shape {tuple(w.shape)}; give [{len(o)}], one per prompt")
        products = {"o": o, "q": q, "oo": o * o, "qq": q * q, "oq": o * q}
        sums = {name: torch.einsum("b,bcn->c", w, one) for name, one in products.items()}
        self._add({"n": w.sum() * o.shape[2], **sums})

    def merge(self, other: "CompensationSums") -> None:
        """Add the prompts that `other` has seen.

        Raises:
            InvalidArgument: another number of channels.
        """
        if other._sums:
            self._add(other._sums)

    def state(self) -> dict[str, Tensor]:
        """The sums n (a number) and o, q, oo, qq, oq ([C]), float64; empty before the first prompt."""
        return dict(self._sums)

    @classmethod
    def from_state(cls, channel_axis: int, state: Mapping[str, Tensor]) -> Self:
        """Continue from what `state` returned."""
        sums = cls(channel_axis)
        sums._sums = dict(state)
        return sums

    def solve(self, estimator: Estimator, sharing: Sharing = "channel", ridge: float = 0.0) -> tuple[Tensor, Tensor]:
        """Gain and bias of o' = gain õ + bias, [C] float64 each; [1] for "scalar".

        PTQD shares its slope and keeps a bias for each channel: "scalar" is that, [C], for "ptqd".

        Args:
            ridge: shrinks slopes toward the identity, in units of the energy that they stand on; 0 for none.

        Raises:
            InvalidArgument: an unknown estimator or sharing, or a ridge that is negative or NaN.
            CalibrationError: no prompts.
        """
        if estimator not in get_args(Estimator) or sharing not in get_args(Sharing):
            raise InvalidArgument(
                f"estimator {estimator!r} with sharing {sharing!r}; choose one of {', '.join(get_args(Estimator))}, "
                f"and one of {', '.join(get_args(Sharing))}"
            )
        if not ridge >= 0:
            raise InvalidArgument(f"ridge is {ridge}; use 0 for plain least squares, more to shrink")
        if not self._sums or not float(self._sums["n"]):
            raise CalibrationError("the corrections have seen no prompts; calibrate with at least one")
        channels, shared = self._sums, _shared(self._sums)
        if estimator == "ptqd":
            return _ptqd(channels, shared if sharing == "scalar" else channels, ridge)
        return _ESTIMATORS[estimator](shared if sharing == "scalar" else channels, ridge)

    def _rows(self, x: Tensor) -> Tensor:
        """[B, C, positions] of [B, *latent]."""
        axis = channels_at(x, self.channel_axis)
        return x.movedim(axis, 1).reshape(x.shape[0], x.shape[axis], -1)

    def _add(self, sums: Mapping[str, Tensor]) -> None:
        if not self._sums:
            self._sums = dict(sums)
            return
        held, given = len(self._sums["o"]), len(sums["o"])
        if held != given:
            raise InvalidArgument(f"outputs of {given} channels after {held}; calibrate all prompts on one model")
        self._sums = {name: x + sums[name] for name, x in self._sums.items()}


def compensation(
    sums: Sequence[CompensationSums], estimator: Estimator, sharing: Sharing = "channel", ridge: float = 0.0
) -> Compensation:
    """The table of a run, one `CompensationSums` per step; without a term for the step before.

    Raises:
        InvalidArgument, CalibrationError: as `CompensationSums.solve`.
        PredictorInvalid: as `Compensation`.
    """
    solved = [one.solve(estimator, sharing, ridge) for one in sums]
    gain, bias = (torch.stack(column).float() for column in zip(*solved, strict=True))
    return Compensation(gain, torch.zeros_like(gain), bias)


def _shared(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The sums over all channels, [1]."""
    channels = len(sums["o"])
    return {name: x * channels if name == "n" else x.sum(0, keepdim=True) for name, x in sums.items()}


def _slope(moment: Tensor, energy: Tensor, ridge: float) -> Tensor:
    return torch.where(energy > 0, moment / (energy * (1 + ridge)), 0.0)


def _bias(sums: Mapping[str, Tensor], ridge: float) -> tuple[Tensor, Tensor]:
    return torch.ones_like(sums["o"]), (sums["o"] - sums["q"]) / sums["n"]


def _gain(sums: Mapping[str, Tensor], ridge: float) -> tuple[Tensor, Tensor]:
    K = _slope(sums["qq"] - sums["oq"], sums["qq"], ridge)
    return 1 - K, torch.zeros_like(K)


def _ptqd_gain(sums: Mapping[str, Tensor], ridge: float) -> tuple[Tensor, Tensor]:
    k = _slope(sums["oq"] - sums["oo"], sums["oo"], ridge).clamp_min(0)
    return 1 / (1 + k), torch.zeros_like(k)


def _ptqd(channels: Mapping[str, Tensor], sloped: Mapping[str, Tensor], ridge: float) -> tuple[Tensor, Tensor]:
    """The slope from `sloped` (shared or not), and for each channel the bias that it leaves."""
    n, o, oo = (sloped[name] for name in ("n", "o", "oo"))
    variance = oo - o * o / n
    covariance = sloped["oq"] - o * sloped["q"] / n - variance
    # A variance this small is what rounding leaves of a constant.
    k = _slope(covariance, torch.where(variance <= 1e-12 * oo, 0.0, variance), ridge).clamp_min(0)
    gain = (1 / (1 + k)).expand_as(channels["o"])
    return gain, (channels["o"] - gain * channels["q"]) / channels["n"]


def _affine(sums: Mapping[str, Tensor], ridge: float) -> tuple[Tensor, Tensor]:
    error = {"v": sums["q"], "e": sums["q"] - sums["o"], "vv": sums["qq"], "ve": sums["qq"] - sums["oq"]}
    line = AffineSums.from_state("channel", 1, {"n": sums["n"], **error}).solve(ridge)
    return 1 - line.kappa, -line.beta


_ESTIMATORS: Mapping[str, Callable[[Mapping[str, Tensor], float], tuple[Tensor, Tensor]]] = {
    "bias": _bias,
    "gain": _gain,
    "ptqd-gain": _ptqd_gain,
    "affine": _affine,
}
