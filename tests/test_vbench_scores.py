"""VBench's arithmetic and file names."""

import math

import pytest

from ertacache.errors import InvalidArgument
from ertacache.evaluation.vbench.scores import QUALITY, SEMANTIC, total_score, video_name

# By hand: Quality = (6 · 0.5 + 0.5 · 1) / 6.5 = 7/13; Semantic = (3 · 0.9 + 5 · 0.5 + 0.25) / 9 = 5.45/9.
RAW = {
    "subject_consistency": 0.5731, "background_consistency": 0.63075, "temporal_flickering": 0.81465,
    "motion_smoothness": 0.85175, "dynamic_degree": 1.0, "aesthetic_quality": 0.5, "imaging_quality": 0.5,
    "object_class": 0.9, "multiple_objects": 0.5, "human_action": 0.9, "color": 0.9, "spatial_relationship": 0.5,
    "scene": 0.4111, "appearance_style": 0.1432, "temporal_style": 0.182, "overall_consistency": 0.091,
}  # fmt: skip
NORMALISED = [0.5, 0.5, 0.5, 0.5, 1.0, 0.5, 0.5, 0.9, 0.5, 0.9, 0.9, 0.5, 0.5, 0.5, 0.5, 0.25]


def test_total_score_on_values_worked_out_by_hand():
    totals = total_score(RAW)
    assert list(totals["normalised"]) == list(RAW)
    assert list(totals["normalised"].values()) == pytest.approx(NORMALISED, abs=1e-12)
    assert totals["quality"] == pytest.approx(7 / 13, abs=1e-12)
    assert totals["semantic"] == pytest.approx(5.45 / 9, abs=1e-12)
    assert totals["total"] == pytest.approx((4 * 7 / 13 + 5.45 / 9) / 5, abs=1e-12)


def test_the_ends_of_the_ranges_give_zero_and_one_and_nothing_is_clipped():
    ranges = {**QUALITY, **SEMANTIC}
    assert total_score({name: low for name, (low, _) in ranges.items()})["total"] == 0.0
    assert total_score({name: high for name, (_, high) in ranges.items()})["total"] == pytest.approx(1.0, abs=1e-12)
    assert total_score({"scene": 0.8222 * 1.5})["normalised"]["scene"] == pytest.approx(1.5)


def test_a_mean_needs_all_of_its_dimensions():
    quality = total_score({name: RAW[name] for name in QUALITY})
    assert quality["quality"] == pytest.approx(7 / 13) and (quality["semantic"], quality["total"]) == (None, None)
    semantic = total_score({name: RAW[name] for name in SEMANTIC})
    assert semantic["semantic"] == pytest.approx(5.45 / 9) and (semantic["quality"], semantic["total"]) == (None, None)
    for name in RAW:
        assert total_score({other: RAW[other] for other in RAW if other != name})["total"] is None


def test_scores_that_are_none_are_refused():
    with pytest.raises(InvalidArgument, match="dimension 'colour' is unknown; VBench has subject_consistency,"):
        total_score({"colour": 0.5})
    with pytest.raises(InvalidArgument, match="the score of color is nan; score that dimension again"):
        total_score({"color": math.nan})


def test_video_name():
    assert video_name("a cat, 4-legged", 4) == "a cat, 4-legged-4.mp4"
    with pytest.raises(InvalidArgument, match="index is 5; VBench reads videos 0 to 4 of each prompt"):
        video_name("a cat", 5)
    for prompt in ("", "a/b", "a\0b"):
        with pytest.raises(InvalidArgument, match="cannot be a file name; take it unchanged"):
            video_name(prompt, 0)
