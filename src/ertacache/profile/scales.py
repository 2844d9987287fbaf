"""Profiles of several guidance scales in one, and the profile of a scale between two of them."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ertacache.core.compensation import Compensation
from ertacache.core.predictor import Predictor
from ertacache.errors import InvalidArgument
from ertacache.profile.profile import Profile
from ertacache.profile.provenance import Provenance


def with_scales(profiles: Sequence[Profile]) -> Profile:
    """One profile of several that differ in guidance; the first leads, and those of each grid stand side by side.

    Args:
        profiles: one for each guidance scale, two or more. They may have others (of several sizes): all of them on the
            same grids, in the same order.

    Raises:
        InvalidArgument: fewer than two, other grids, or profiles that differ in more than guidance or not in that.
    """
    if len(profiles) < 2:
        raise InvalidArgument(f"profiles has {len(profiles)}; give one for each of two or more guidance scales")
    grids = [[own.base_sigmas for own in (profile, *profile.others)] for profile in profiles]
    for n, found in enumerate(grids):
        same = len(found) == len(grids[0]) and all(map(torch.equal, found, grids[0]))
        if not same:
            raise InvalidArgument(
                f"profiles[{n}] is on other time grids than profiles[0]; calibrate at the same sizes and step count at "
                "each guidance scale"
            )
    every = [replace(own, others=()) for profile in profiles for own in (profile, *profile.others)]
    return replace(every[0], others=tuple(every[1:]))


def between(low: Profile, high: Profile, share: float) -> Profile:
    """The profile of a guidance scale between those of two: coefficients and expected weights on a line.

    Args:
        low, high: without rectifier, alike in all but guidance, as `Content` checks it of those on one grid.
        share: of `high`, from 0 to 1.
    """
    tables = (_line(getattr(low.predictor, name), getattr(high.predictor, name), share) for name in "adb")
    predictor = Predictor(low.predictor.targets, low.predictor.sources, *tables)
    return replace(
        low,
        predictor=predictor,
        provenance=_facts(low.provenance, high.provenance, share),
        others=(),
        compensation=_corrections(low, high, share),
    )


def _corrections(low: Profile, high: Profile, share: float) -> Compensation | None:
    """On the line between two, of which one may correct nothing, or all channels alike."""
    if low.compensation is None and high.compensation is None:
        return None
    ends = [own.compensation or Compensation.identity(own.schedule.T) for own in (low, high)]
    channels = max(end.channels for end in ends)
    tables = {
        name: _line(getattr(ends[0], name).expand(-1, channels), getattr(ends[1], name).expand(-1, channels), share)
        for name in ("gain", "previous", "bias")
    }
    return Compensation(**tables)


def _line(low: Tensor, high: Tensor, share: float) -> Tensor:
    return torch.lerp(low.double(), high.double(), share).float()


def _facts(low: Provenance, high: Provenance, share: float) -> Provenance:
    def number(a: float | None, b: float | None) -> float | None:
        return None if a is None or b is None else a + share * (b - a)

    def numbers(a: tuple[float | None, ...], b: tuple[float | None, ...]) -> tuple[float | None, ...]:
        return tuple(map(number, a, b)) if len(a) == len(b) else ()

    return replace(
        low,
        guidance_weight=number(low.guidance_weight, high.guidance_weight),
        embedded_guidance=number(low.embedded_guidance, high.embedded_guidance),
        later_weights=numbers(low.later_weights, high.later_weights),
        step_weights=numbers(low.step_weights, high.step_weights),
        heldout={},  # what was measured was measured at a scale that was fitted
        measured={},
    )
