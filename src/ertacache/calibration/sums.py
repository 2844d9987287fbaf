"""What a closed loop adds up over prompts at one step."""

from dataclasses import dataclass, field

from torch import Tensor

from ertacache.core.compensation_fit import CompensationSums
from ertacache.core.fit import RidgeSums
from ertacache.core.policy import RelativeL1, l1_per_prompt
from ertacache.core.precision import exact
from ertacache.core.rectify import AffineSums, Granularity

Key = tuple[int, str]
"""A step and what is predicted at it."""


@dataclass
class PhiSums:
    """‖ṽ_i − v_i‖₁ and ‖v_i − v_{i−1}‖₁ over prompts (Eq. 13)."""

    error: float = 0.0
    change: float = 0.0

    def update(self, predicted: Tensor, truth: Tensor, before: Tensor) -> None:
        """Add B prompts: the prediction, the output and the output of the step before, [B, *] each."""
        self.error += float(l1_per_prompt(exact(predicted) - exact(truth)).sum())
        self.change += float(l1_per_prompt(exact(truth) - exact(before)).sum())


@dataclass
class Sums:
    """The sums of every predicted step.

    Attributes:
        granularity, channel_axis: of the rectifier; see `core.rectify.AffineSums`.
        ridge, affine, policy, phi: of the fitted predictor, the rectifier, Algorithm 2 and the timestep adjustment.
        corrections: of the corrections of computed steps.
    """

    granularity: Granularity = "scalar"
    channel_axis: int = -1
    ridge: dict[Key, RidgeSums] = field(default_factory=dict[Key, RidgeSums])
    affine: dict[Key, AffineSums] = field(default_factory=dict[Key, AffineSums])
    policy: dict[int, RelativeL1] = field(default_factory=dict[int, RelativeL1])
    phi: dict[int, PhiSums] = field(default_factory=dict[int, PhiSums])
    corrections: dict[int, CompensationSums] = field(default_factory=dict[int, CompensationSums])

    def ridge_at(self, key: Key, features: int) -> RidgeSums:
        """The sums of the fit at one step, empty at first."""
        return self.ridge.setdefault(key, RidgeSums(features))

    def affine_at(self, key: Key) -> AffineSums:
        """The sums of the rectifier at one step, empty at first."""
        return self.affine.setdefault(key, AffineSums(self.granularity, self.channel_axis))
