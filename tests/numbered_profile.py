"""Profiles whose coefficients tell where they come from."""

from typing import Any

import torch
from torch import Tensor

from ertacache.core.predictor import Predictor
from ertacache.core.schedule import Schedule
from ertacache.profile.profile import Profile
from profile_maker import facts


def straight(T: int) -> Tensor:
    return torch.linspace(1, 0, T + 1)


def numbered(mask: str, levels: int = 1, **changes: Any) -> Profile:
    """On a straight grid; the weight of level k at step i is i + k / 10, the constant 100 i."""
    schedule = Schedule.from_mask(mask)
    a, b = torch.zeros(schedule.T, 1, 1, levels), torch.zeros(schedule.T, 1)
    for i in schedule.predicted_steps:
        for level in range(min(levels, schedule.depth(i))):
            a[i, 0, 0, level] = i + level / 10
        b[i] = 100 * i
    predictor = Predictor(("cond",), ("cond",), a, b * 0 + (b != 0), b)
    call = {"num_inference_steps": schedule.T}
    parts: dict[str, Any] = {
        "schedule": schedule,
        "site": "output",
        "predictor": predictor,
        "base_sigmas": straight(schedule.T),
        "sigmas": straight(schedule.T),
        "rectifier": None,
        "provenance": facts(
            num_inference_steps=schedule.T, contexts=("cond",), call=call, boundaries=(), later_weights=()
        ),
    }
    return Profile(**{**parts, **changes})
