"""The profiles that serve a time grid, one for each guidance scale, and which of them serves a run."""

import math
from bisect import bisect
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch

from ertacache.core.predictor import Predictor
from ertacache.errors import ProfileMismatch
from ertacache.profile.guidance_scale import same_guidance, scale_that_differs, weight_at
from ertacache.profile.profile import Profile
from ertacache.profile.scales import between
from ertacache.runtime.coefficients import Coefficients
from ertacache.runtime.matching import depends_on_guidance

#: Scales whose coefficients are kept on the device.
_KEPT = 4


class Scales:
    """What runs on one grid share.

    Args:
        profiles: on that grid, one or more, different in guidance alone.

    Attributes:
        profiles: by rising guidance.
        embedded: whether they differ in the weight that the denoiser is given, and not in that of two branches.
        predictor: the largest weight of all of them: its depths and levels are what any of them needs.
    """

    def __init__(self, profiles: Sequence[Profile]) -> None:
        field = None if len(profiles) < 2 else scale_that_differs(profiles[0].provenance, profiles[1].provenance)
        self.embedded = field == "embedded_guidance"
        rising = sorted(profiles, key=lambda own: getattr(own.provenance, field)) if field is not None else profiles
        self.profiles = tuple(rising)
        self.predictor = _largest([profile.predictor for profile in profiles])
        self._made: dict[float, tuple[Profile, Coefficients]] = {}

    def at(self, place: float) -> tuple[Profile, Coefficients]:
        """The profile at a `place`, and its coefficients: one of `profiles` as it is, or one between two of them."""
        if (made := self._made.get(place)) is None:
            below, share = int(place), place - int(place)
            own = self.profiles[below]
            found = own if share == 0 else between(own, self.profiles[below + 1], share)
            while len(self._made) >= _KEPT:
                self._made.pop(next(iter(self._made)), None)
            self._made[place] = made = found, Coefficients(found)
        return made

    def place(self, step: int, weight: float | None) -> float | None:
        """Where a guidance weight lies among those of `profiles`: the index of one within 1 %, or between two indices.

        Args:
            step: at which it was found. weight: None where it is unknown; NaN where no weight explains the run.

        Returns:
            None where the weight of the run or of a profile is unknown at that step.

        Raises:
            ProfileMismatch: a weight outside of what was calibrated, or none where the denoiser is to be given one.
        """
        if not any(map(depends_on_guidance, self.profiles)):
            return 0.0
        facts = [profile.provenance for profile in self.profiles]
        known = [own.embedded_guidance if self.embedded else weight_at(own, step) for own in facts]
        values = [value for value in known if value is not None]
        rising = all(low < high for low, high in pairwise(values))
        if len(values) < len(known) or not rising or (weight is None and not self.embedded):
            return None
        if weight is None:
            raise ProfileMismatch(self._refusal(step, values, "gives the denoiser none"))
        weight = float(f"{weight:.5g}")  # as calibration writes it: what follows is the rounding of one run
        nearest = min(range(len(values)), key=lambda n: abs(values[n] - weight))
        if same_guidance(weight, values[nearest]):
            return float(nearest)
        if not values[0] < weight < values[-1]:
            other_kind = math.isnan(weight)
            found = "mixes its outputs in another way" if other_kind else f"runs at {weight:.4g}"
            raise ProfileMismatch(self._refusal(step, values, found))
        above = bisect(values, weight)
        low, high = values[above - 1], values[above]
        return above - 1 + (weight - low) / (high - low)

    def _refusal(self, step: int, values: list[float], found: str) -> str:
        field = "embedded guidance:" if self.embedded else f"guidance weight: at step {step}"
        return (
            f"{field} the profile was calibrated at {values[0]:.4g} to {values[-1]:.4g}, this call {found}; use "
            "guidance within that range, or calibrate with guidance_scales that reach this one"
        )


def _largest(predictors: Sequence[Predictor]) -> Predictor:
    if len(predictors) == 1:
        return predictors[0]
    tables = {name: torch.stack([getattr(p, name).abs() for p in predictors]).amax(0) for name in "adb"}
    return replace(predictors[0], **tables)
