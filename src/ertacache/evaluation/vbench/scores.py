"""What VBench 0.1.5 measures: its dimensions, the names of its videos, and the arithmetic of its aggregate scores."""

import math
from collections.abc import Mapping
from typing import TypedDict

from ertacache.errors import InvalidArgument

#: (min, max) of each dimension's min-max normalisation, from the constants of VBench's leaderboard.
QUALITY: dict[str, tuple[float, float]] = {
    "subject_consistency": (0.1462, 1.0),
    "background_consistency": (0.2615, 1.0),
    "temporal_flickering": (0.6293, 1.0),
    "motion_smoothness": (0.706, 0.9975),
    "dynamic_degree": (0.0, 1.0),
    "aesthetic_quality": (0.0, 1.0),
    "imaging_quality": (0.0, 1.0),
}
SEMANTIC: dict[str, tuple[float, float]] = {
    "object_class": (0.0, 1.0),
    "multiple_objects": (0.0, 1.0),
    "human_action": (0.0, 1.0),
    "color": (0.0, 1.0),
    "spatial_relationship": (0.0, 1.0),
    "scene": (0.0, 0.8222),
    "appearance_style": (0.0009, 0.2855),
    "temporal_style": (0.0, 0.364),
    "overall_consistency": (0.0, 0.364),
}
#: Dimensions of each mode; those of custom videos are the ones that VBench documents for them.
MODES = {
    "standard": (*QUALITY, *SEMANTIC),
    "custom": tuple(name for name in QUALITY if name != "temporal_flickering"),
}
VIDEOS_PER_PROMPT = 5

_WEIGHTS = {"dynamic_degree": 0.5}


class Totals(TypedDict):
    """What `total_score` returns; a mean is None where one of its dimensions is missing."""

    normalised: dict[str, float]
    quality: float | None
    semantic: float | None
    total: float | None


def total_score(scores: Mapping[str, float]) -> Totals:
    """VBench's aggregate scores from raw scores by dimension, all as fractions (papers print percents).

    n_d = (score_d − min_d) / (max_d − min_d); Quality and Semantic are means of n_d, where dynamic_degree has weight
    0.5 and the others 1; Total = (4 Quality + Semantic) / 5. Nothing is clipped, as on VBench's leaderboard.

    Raises:
        InvalidArgument: an unknown dimension, or a score that is not finite.
    """
    ranges = {**QUALITY, **SEMANTIC}
    normalised: dict[str, float] = {}
    for name, score in scores.items():
        if name not in ranges:
            raise InvalidArgument(f"dimension {name!r} is unknown; VBench has {', '.join(ranges)}")
        if not math.isfinite(score):
            raise InvalidArgument(f"the score of {name} is {score}; score that dimension again")
        low, high = ranges[name]
        normalised[name] = (score - low) / (high - low)
    quality, semantic = _mean(normalised, QUALITY), _mean(normalised, SEMANTIC)
    total = (4 * quality + semantic) / 5 if quality is not None and semantic is not None else None
    return {"normalised": normalised, "quality": quality, "semantic": semantic, "total": total}


def video_name(prompt: str, index: int) -> str:
    """File name of video `index` (0 to 4) of a prompt in the standard protocol: `"{prompt}-{index}.mp4"`.

    Raises:
        InvalidArgument: another index, or a prompt that cannot be a file name.
    """
    if index not in range(VIDEOS_PER_PROMPT):
        raise InvalidArgument(f"index is {index}; VBench reads videos 0 to {VIDEOS_PER_PROMPT - 1} of each prompt")
    if not prompt or "/" in prompt or "\0" in prompt:
        raise InvalidArgument(f"prompt {prompt!r} cannot be a file name; take it unchanged from VBench's prompt list")
    return f"{prompt}-{index}.mp4"


def _mean(normalised: Mapping[str, float], names: Mapping[str, object]) -> float | None:
    if not names.keys() <= normalised.keys():
        return None
    weights = {name: _WEIGHTS.get(name, 1.0) for name in names}
    return sum(weights[name] * normalised[name] for name in names) / sum(weights.values())
