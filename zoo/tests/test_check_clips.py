"""The judge of clips, and the pictures of them."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from ertacache.errors import InvalidArgument
from ertacache_zoo import clip_sheet, clips
from ertacache_zoo.check_clips import Judge

CAPTION = "a large red circle moving left fast and a small blue square moving up slowly on a dark striped background"


@pytest.fixture(scope="module")
def own() -> tuple[torch.Tensor, list[str]]:
    drawn = clips.sample(24, 9, "heldout")
    return clips.render(drawn, 9), [clip.caption for clip in drawn]


def test_the_judge_is_right_on_the_generators_own_clips(own: tuple[torch.Tensor, list[str]]):
    verdict = Judge().judge(*own)
    assert verdict.objects == 48
    assert verdict.colour == 1
    assert min(verdict.direction, verdict.speed, verdict.shape) >= 0.95


def test_the_judge_refuses_other_clips(own: tuple[torch.Tensor, list[str]]):
    videos, captions = own
    verdict = Judge().judge(videos, captions[1:] + captions[:1])
    assert verdict.colour < 0.5
    assert max(verdict.direction, verdict.speed, verdict.shape) < 0.3


def test_a_clip_played_backwards_goes_the_other_way_as_fast(own: tuple[torch.Tensor, list[str]]):
    videos, captions = own
    there, back = Judge().judge(videos, captions), Judge().judge(videos.flip(1), captions)
    assert back.direction == 0
    assert (back.colour, back.speed) == (there.colour, there.speed)


@pytest.mark.parametrize(
    ("said", "drawn", "expected"),
    [
        ("", "", (1, 1, 1, 1)),
        ("red", "green", (0.5, 0.5, 0.5, 0.5)),
        ("moving left", "moving down", (1, 0.5, 1, 1)),
        ("fast", "slowly", (1, 1, 0.5, 1)),
        ("circle", "cross", (1, 1, 1, 0.5)),
    ],
)
def test_each_share_counts_its_own_fault(said: str, drawn: str, expected: tuple[float, ...]):
    clip = clips.parse(CAPTION.replace(said, drawn) if said else CAPTION)
    verdict = Judge().judge(clips.render([clip], 3), [CAPTION])
    assert (verdict.colour, verdict.direction, verdict.speed, verdict.shape) == expected


def test_what_stands_still_moves_in_no_direction():
    videos = clips.render([clips.parse(CAPTION)], 3)[:, :1].expand(-1, 9, -1, -1, -1)
    verdict = Judge().judge(videos, [CAPTION])
    assert (verdict.colour, verdict.direction, verdict.speed) == (1, 0, 0.5)


@pytest.mark.parametrize(("hidden", "share"), [(1, 1), (2, 0)])
def test_a_mover_may_be_hidden_in_one_frame(hidden: int, share: int):
    videos = clips.render([clips.parse(CAPTION)], 3)
    videos[:, 4 : 4 + hidden] = 0.3
    # The path is measured at the frames that show it, so that a gap changes neither direction nor speed.
    verdict = Judge().judge(videos, [CAPTION])
    assert (verdict.colour, verdict.direction, verdict.speed) == (share, share, share)


def test_other_text_is_refused():
    with pytest.raises(InvalidArgument, match="not a caption of this generator: 'a cat'"):
        Judge().judge(torch.zeros(1, 9, 3, 48, 48), ["a cat"])


def test_a_sheet_shows_clips_frame_by_frame(tmp_path: Path, own: tuple[torch.Tensor, list[str]]):
    clip_sheet.write(own[0], own[1], tmp_path / "new" / "sheet.png")
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        # Nine frames of 96 pixels in a row, eight rows.
        assert sheet.size == (9 * 100, 8 * 120)
        frame = own[0][1, 2]
        expected = tuple((frame[:, 10, 20] * 255).round().int().tolist())
        assert sheet.getpixel((2 * 100 + 20 * 2, 120 + 10 * 2)) == expected


def test_an_animation_has_a_frame_for_each(tmp_path: Path, own: tuple[torch.Tensor, list[str]]):
    clip_sheet.write(own[0][:2], own[1][:2], tmp_path / "sheet.gif")
    with Image.open(tmp_path / "sheet.gif") as animation:
        assert animation.n_frames == 9
        assert animation.info["loop"] == 0
