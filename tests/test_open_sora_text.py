"""What Open-Sora's text encoder is given: scores behind the prompt, cleaned twice; sizes by name; the shift."""

import math
import sys

import pytest

from ertacache.errors import InvalidArgument, MissingExtra
from ertacache.opensora import sizes
from ertacache.opensora.text import check_cleaning, check_scores, prepared
from ertacache.opensora.time_shift import noise_levels, time_shift


@pytest.mark.parametrize(
    ("prompt", "scores", "text"),
    [
        ("a ring", {}, "a ring"),
        ("a ring", {"aesthetic_score": 6.5}, "a ring aesthetic score: 6.5."),
        ("A ring.", {"aesthetic_score": 6.54, "motion_score": 5}, "a ring. aesthetic score: 6.5. motion score: 5.0."),
        ("a ring", {"camera_motion": "pan right"}, "a ring camera motion: pan right."),
        ("a ring aesthetic score: 4.0.", {"aesthetic_score": 6.5}, "a ring aesthetic score: 4.0."),
        (
            "a ring aesthetic score: 4.0.",
            {"aesthetic_score": 6.5, "motion_score": 1},
            "a ring aesthetic score: 4.0. motion score: 1.0.",
        ),
        ("a ring motion score: 2.0.", {"motion_score": 5}, "a ring motion score: 2.0."),
        ("See https://example.com <b>a</b> ring, jc6640", {}, "see a ring"),
    ],
)
def test_scores_stand_behind_the_prompt_and_all_is_cleaned(prompt: str, scores: dict[str, float], text: str):
    assert prepared(prompt, **scores) == text


def test_cleaning_is_done_twice():
    """A word that is only there once another was taken out of it."""
    assert prepared("a downdownloadload ring") == "a ring"


def test_without_cleaning_the_text_is_lowered_and_stripped():
    assert prepared("  A <b>Ring</b> ", 6.5, clean=False) == "a <b>ring</b>  aesthetic score: 6.5."


@pytest.mark.parametrize(("module", "name"), [("bs4", "beautifulsoup4"), ("ftfy", "ftfy")])
def test_what_cleaning_needs_is_named(module: str, name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=rf"needs {name}; .*'ertacache\[opensora\]', or pass clean_caption=False"):
        check_cleaning()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "6.5", True])
@pytest.mark.parametrize("name", ["aesthetic_score", "motion_score"])
def test_a_score_is_a_finite_number(name: str, value: object):
    with pytest.raises(InvalidArgument, match=rf"^{name} is .*; give a finite number, or None"):
        check_scores(**{name: value})


@pytest.mark.parametrize("value", ["", " ", 3])
def test_camera_motion_is_a_text(value: object):
    with pytest.raises(InvalidArgument, match=r"^camera_motion is .*; give a text such as 'pan right', or None"):
        check_scores(aesthetic_score=6, motion_score=None, camera_motion=value)


def test_every_size_of_the_table_has_about_the_pixels_of_its_resolution():
    pixels = {"144p": 36_864, "240p": 102_240, "360p": 230_400, "480p": 409_920, "720p": 921_600}
    assert {name: sizes.SIZES[name]["9:16"][0] * sizes.SIZES[name]["9:16"][1] for name in sizes.SIZES} == pixels
    for name, ratios in sizes.SIZES.items():
        for ratio, (height, width) in ratios.items():
            across, down = (int(n) for n in ratio.split(":"))
            assert abs(height * width / pixels[name] - 1) < 0.02
            assert abs(height / width / (across / down) - 1) < 0.025


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ((None, None), (480, 854)),
        ((None, None, "720p"), (720, 1280)),
        ((None, None, None, "16:9"), (854, 480)),
        ((None, None, "144p", "9:21"), (125, 291)),
        ((16, 1111), (16, 1111)),
    ],
)
def test_sizes_by_name_and_in_pixels(given: tuple[object, ...], size: tuple[int, int]):
    assert sizes.size_of(*given) == size


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            (None, None, "481p"),
            r"resolution is '481p'; choose one of 144p, .*720p; did you mean 480p\?, or",
        ),
        ((None, None, "480p", "2:1"), "aspect_ratio is '2:1', height : width; choose one of 9:16, .*9:21, or give"),
        ((480, 854, "480p"), "height=480 and width=854 exclude resolution='480p' and aspect_ratio=None; give one"),
        ((480, None), "width is None; give height and width in whole pixels, 16 or more"),
        ((None, 480), "height is None; give height and width"),
        ((15, 480), "height is 15; give height and width"),
        ((480.0, 480), r"height is 480\.0; give height and width"),
        ((True, 480), "height is True; give height and width"),
    ],
)
def test_sizes_that_cannot_be_are_refused(given: tuple[object, ...], message: str):
    with pytest.raises(InvalidArgument, match=f"^{message}"):
        sizes.size_of(*given)


def test_lengths_by_name():
    """Of 51 frames and their multiples, whole chunks of 17."""
    assert sizes.FRAMES == {"image": 1, **{f"{n}s": 51 * n // 2 for n in (2, 4, 8, 16, 32)}}


@pytest.mark.parametrize(
    ("size", "frames", "r"),
    [
        ((480, 854), 51, 4.84375), ((480, 854), 102, 6.84375), ((480, 854), 204, 9.6875), ((720, 1280), 51, 7.25),
        ((720, 1280), 102, 10.25), ((720, 1280), 204, 14.5), ((360, 640), 51, 3.625), ((240, 426), 51, 2.421875),
        ((144, 256), 51, 1.453125), ((480, 854), 1, 1.25),
    ],
)  # fmt: skip
def test_the_shift_is_that_of_the_reference_in_bfloat16(size: tuple[int, int], frames: int, r: float):
    assert time_shift(*size, frames) == r


def test_the_exact_shift():
    assert math.isclose(time_shift(480, 854, 51, rounded=False), math.sqrt(480 * 854 * 15) / 512, rel_tol=1e-15)
    assert abs(time_shift(480, 854, 51, rounded=False) - 4.84312) < 5e-6
    assert time_shift(512, 512, 1, rounded=False) == time_shift(48, 48, 1, base=48) == 1.0
    # The remainder of a chunk does not count, but where there is no whole one.
    assert time_shift(512, 512, 33, rounded=False) == time_shift(512, 512, 17, rounded=False) == math.sqrt(5)
    assert time_shift(512, 512, 16, rounded=False) == 2.0


def test_noise_levels_begin_at_one_and_end_a_step_above_zero():
    assert noise_levels(4) == [1.0, 0.75, 0.5, 0.25]
