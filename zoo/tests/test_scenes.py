"""The generator of captioned images and the judge that knows it."""

import pytest
import torch

from ertacache.errors import InvalidArgument
from ertacache_zoo import scenes
from ertacache_zoo.check import Judge


def test_the_same_seed_draws_the_same_scenes_and_pixels():
    first, second = scenes.sample(5, 3, "train"), scenes.sample(5, 3, "train")
    assert first == second != scenes.sample(5, 4, "train")
    assert torch.equal(scenes.render(first, 8), scenes.render(second, 8))
    assert not torch.equal(scenes.render(first, 8), scenes.render(first, 9))


def test_there_are_more_than_a_hundred_thousand_captions():
    assert scenes.count() == (2 * 8 * 6) ** 2 * 4 * 3 * 2 * 4


def test_a_caption_is_read_back():
    for scene in scenes.sample(20, 0, "heldout"):
        assert scenes.parse(scene.caption) == scene


def test_text_that_is_no_caption_is_refused():
    with pytest.raises(InvalidArgument, match=r"'a photo of a cat'; draw one with scenes\.sample"):
        scenes.parse("a photo of a cat")


def test_the_splits_share_no_caption_and_hold_out_a_tenth():
    train = {scene.caption for scene in scenes.sample(400, 1, "train")}
    heldout = {scene.caption for scene in scenes.sample(400, 1, "heldout")}
    assert not train & heldout
    # Without regard to the split, 26 of 256 hash values are held out.
    captions = [scene.caption for scene in (*scenes.sample(900, 5, "train"), *scenes.sample(100, 5, "heldout"))]
    assert sum(scenes.split_of(caption) == "heldout" for caption in captions) == 100


def test_words_hold_every_word_of_every_caption():
    used = {word for scene in scenes.sample(300, 2, "train") for word in scene.caption.split()}
    assert used == set(scenes.words())


def test_images_are_in_range_and_hold_the_objects_colours():
    scene = scenes.parse(
        "a large red circle at the top left and a small blue square at the bottom right on a dark cloudy background"
    )
    image = scenes.render([scene], 0)[0]
    assert image.shape == (3, 64, 64)
    assert 0 <= image.min() and image.max() <= 1
    assert torch.allclose(image[:, 16, 16], torch.tensor(scenes.COLOURS["red"]), atol=0.05)
    assert torch.allclose(image[:, 48, 48], torch.tensor(scenes.COLOURS["blue"]), atol=0.05)


@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_the_shapes_are_negative_inside_and_fit_their_radius(shape: str):
    axis = torch.arange(-20.0, 21.0)
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    inside = scenes.distance(shape, u, v, 10.0) < 0
    reach = torch.maximum(u.abs(), v.abs())[inside].max()
    assert 8 <= reach <= 11
    assert bool(inside[20, 20]) == (shape != "ring")


def test_the_judge_is_right_on_the_generators_own_images():
    drawn = scenes.sample(60, 9, "heldout")
    captions = [scene.caption for scene in drawn]
    images = scenes.render(drawn, 9)
    verdict = Judge().judge(images, captions)
    assert verdict.objects == 120
    assert verdict.colour_and_place >= 0.95
    assert verdict.shape >= 0.95
    wrong = Judge().judge(images, captions[1:] + captions[:1])
    assert wrong.colour_and_place < 0.2
