"""The generator of captioned clips."""

import itertools

import pytest
import torch

from ertacache.errors import InvalidArgument
from ertacache_zoo import catalogue, clips, scenes

CAPTION = "a large red circle moving left fast and a small blue square moving up slowly on a dark striped background"


def test_a_caption_is_written_and_read_back():
    movers = (
        clips.Mover("large", "red", "circle", "left", "fast"),
        clips.Mover("small", "blue", "square", "up", "slowly"),
    )
    clip = clips.Clip(movers, "dark", "striped")
    assert clip.caption == CAPTION
    assert clips.parse(CAPTION) == clip
    for other in clips.sample(20, 0, "heldout"):
        assert clips.parse(other.caption) == other


@pytest.mark.parametrize("text", ["a photo of a cat", CAPTION.replace("blue", "red"), CAPTION + "s", CAPTION[:-3]])
def test_text_that_is_no_caption_is_refused(text: str):
    with pytest.raises(InvalidArgument, match=r"not a caption of this generator: '.*'; draw one with clips\.sample"):
        clips.parse(text)


def test_the_same_seed_draws_the_same_clips_and_pixels():
    first, second = clips.sample(3, 3, "train"), clips.sample(3, 3, "train")
    assert first == second != clips.sample(3, 4, "train")
    assert torch.equal(clips.render(first, 8), clips.render(second, 8))
    assert not torch.equal(clips.render(first, 8), clips.render(first, 9))


def test_paths_lead_through_the_movers_of_the_frames():
    drawn = [clip for clip in clips.sample(40, 3, "train") if {m.shape for m in clip.movers} <= {"circle", "square"}]
    frames, paths = clips.render_with_paths(drawn, 8)
    assert torch.equal(frames, clips.render(drawn, 8))
    assert paths.shape == (len(drawn), 2, 9, 2)
    for clip, pictures, movers in zip(drawn, frames, paths, strict=True):
        for mover, path in zip(clip.movers, movers, strict=True):
            for picture, (right, down) in zip(pictures, path.tolist(), strict=True):
                seen = picture[:, int(down), int(right)]
                assert torch.allclose(seen, torch.tensor(clips.COLOURS[mover.colour]), atol=0.04)


def test_there_are_four_million_captions():
    assert clips.count() == (2 * 6 * 4 * 2) ** 2 * 8 * 7 * 2 * 4


def test_the_splits_share_no_caption():
    for split in ("train", "heldout"):
        assert {scenes.split_of(clip.caption) for clip in clips.sample(200, 1, split)} == {split}


def test_words_hold_every_word_of_every_caption_once():
    used = {word for clip in clips.sample(300, 2, "train") for word in clip.caption.split()}
    assert used == set(clips.words())
    assert len(clips.words()) == len(used)


@pytest.mark.parametrize("directions", list(itertools.product(clips.DIRECTIONS, repeat=2)))
@pytest.mark.parametrize("speeds", list(itertools.product(clips.SPEEDS, repeat=2)))
def test_movers_keep_their_step_stay_in_the_frame_and_never_meet(directions, speeds):
    one = clips.Mover("large", "red", "diamond", directions[0], speeds[0])
    clip = clips.Clip((one, clips.Mover("large", "cyan", "circle", directions[1], speeds[1])), "grey", "dotted")
    centres = clips.paths(clip, torch.Generator().manual_seed(5))
    assert centres.shape == (2, 9, 2)
    for mover, path in zip(clip.movers, centres, strict=True):
        assert torch.allclose(path.diff(dim=0), torch.tensor(mover.step).expand(8, 2), atol=1e-5)
        assert (path - mover.extent).min() >= 0
        assert (path + mover.extent).max() <= 48
    # Their boxes are apart along one axis at least, in every frame.
    assert ((centres[0] - centres[1]).abs().amax(-1) >= clip.movers[0].extent + clip.movers[1].extent).all()


def test_the_directions_and_speeds_mean_what_they_say():
    step = clips.parse(CAPTION).movers[0].step
    assert step == (-2.5, 0.0)
    assert clips.parse(CAPTION).movers[1].step == (0.0, -1.0)


def test_the_pixels_show_the_movers_where_their_paths_lead():
    drawn = clips.parse(CAPTION)
    frames = clips.render([drawn], 0)[0]
    assert frames.shape == (9, 3, 48, 48)
    assert frames.dtype == torch.float32
    assert 0 <= frames.min() and frames.max() <= 1
    red, blue = (torch.tensor(clips.COLOURS[name])[:, None, None] for name in ("red", "blue"))
    axis = torch.arange(48) + 0.5
    for colour, step in ((red, (-2.5, 0.0)), (blue, (0.0, -1.0))):
        near = ((frames - colour).square().sum(1).sqrt() < 0.25).float()
        mass = near.sum((1, 2))
        right, down = (near.sum(1) * axis).sum(1) / mass, (near.sum(2) * axis).sum(1) / mass
        # Pixel by pixel the share of the edge that counts as the colour changes: so a third of a pixel of leeway.
        assert torch.allclose(right.diff(), torch.full((8,), step[0]), atol=0.35)
        assert torch.allclose(down.diff(), torch.full((8,), step[1]), atol=0.35)
        assert (right[-1] - right[0]).item() == pytest.approx(8 * step[0], abs=0.35)
        assert (down[-1] - down[0]).item() == pytest.approx(8 * step[1], abs=0.35)


@pytest.mark.parametrize("texture", scenes.TEXTURES)
def test_a_background_can_be_drawn_anywhere_on_its_canvas(texture: str):
    axis = torch.arange(40.0)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    here, moved, between = (
        scenes.background("dark", texture, x + shift, y, torch.Generator().manual_seed(4)) for shift in (0, 1, 0.5)
    )
    assert torch.allclose(here[:, :, 1:], moved[:, :, :-1], atol=1e-4)
    assert not torch.allclose(here, moved, atol=1e-2)
    # Half a pixel on lies about half-way, as far as the texture is smooth.
    assert (between - (here + moved) / 2).abs().mean() < 0.25 * (moved - here).abs().mean()


def test_each_model_has_captions_of_its_own_generator():
    assert catalogue.heldout_prompts(2) == [scene.caption for scene in scenes.sample(2, 202, "heldout")]
    for name in catalogue.VIDEO_NAMES:
        held, calibration = catalogue.heldout_prompts(20, name), catalogue.calibration_prompts(20, name)
        assert {scenes.split_of(clips.parse(text).caption) for text in held} == {"heldout"}
        assert {scenes.split_of(clips.parse(text).caption) for text in calibration} == {"train"}
    with pytest.raises(InvalidArgument, match="no bundled model 'tiny-sora'"):
        catalogue.heldout_prompts(2, "tiny-sora")
    with pytest.raises(InvalidArgument, match="no bundled model 'tiny-sora'"):
        catalogue.calibration_prompts(2, "tiny-sora")
