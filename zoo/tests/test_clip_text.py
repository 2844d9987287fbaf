"""Pretraining of the video models' text encoders."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ertacache_zoo import clip_text, clips, cogvideox, components, wan
from ertacache_zoo.training import Recipe

CAPTION = "a large red circle moving left fast and a small blue square moving up slowly on a dark striped background"
RECIPE = Recipe(iterations=50, batch_size=6, learning_rate=5e-3, warmup=5, seed=3)


def test_every_word_is_one_token_and_every_caption_fits():
    tokenizer = clip_text.tokenizer()
    drawn = [clip.caption for clip in clips.sample(100, 0, "train")]
    ids, mask = clip_text.tokenize([*drawn, ""], tokenizer)
    assert ids.shape == mask.shape == (101, clip_text.MAX_SEQUENCE_LENGTH)
    assert tokenizer.unk_token_id not in ids
    # Twenty words and the end mark; of the empty caption, the end mark alone.
    assert mask.sum(1).tolist() == [21] * 100 + [1]
    assert tokenizer.batch_decode(ids[:3], skip_special_tokens=True) == drawn[:3]


def test_each_word_of_a_mover_has_to_know_all_of_it():
    (targets,) = clip_text.labels([clips.parse(CAPTION)])
    colours, shapes = list(clips.COLOURS), clips.SHAPES
    first = [1, colours.index("red"), shapes.index("circle"), list(clips.DIRECTIONS).index("left"), 1]
    second = [0, colours.index("blue"), shapes.index("square"), list(clips.DIRECTIONS).index("up"), 0]
    nothing = [-100] * 5
    assert targets.tolist() == [first] * 7 + [nothing] + [second] * 7 + [nothing] * 9


@pytest.mark.parametrize("module", [wan, cogvideox], ids=["UMT5", "T5"])
def test_an_encoder_learns_which_words_belong_together(module: Any, tmp_path: Path):
    tokenizer, drawn = clip_text.tokenizer(), clips.sample(6, 1, "train")
    encoder = components.seeded(module.text_encoder, tokenizer, seed=0)
    trained = clip_text.train_encoder(drawn, encoder, tokenizer, tmp_path, RECIPE, masked=module is wan)
    assert trained is encoder
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    (line,) = (tmp_path / "text.jsonl").read_text().splitlines()
    # Guessing costs ln 2 + ln 8 + ln 6 + ln 4 + ln 2 = 6.64 nats.
    assert json.loads(line)["loss"] < 4.5


def test_only_a_masked_encoder_overlooks_what_fills_up(tmp_path: Path):
    tokenizer, drawn = clip_text.tokenizer(), clips.sample(2, 1, "train")
    ids, mask = clip_text.tokenize([clip.caption for clip in drawn], tokenizer)
    other = ids.masked_fill(mask == 0, 9)
    targets = clip_text.labels(drawn)
    encoder = components.seeded(cogvideox.text_encoder, tokenizer, seed=0)
    for masked in (True, False):
        model = components.seeded(clip_text.Pretraining, encoder, cogvideox.TEXT_WIDTH, masked, seed=1).eval()
        same = torch.equal(model(ids, mask, targets), model(other, mask, targets))
        assert same == masked


def test_an_interrupted_pretraining_goes_on(tmp_path: Path):
    tokenizer, drawn = clip_text.tokenizer(), clips.sample(4, 1, "train")

    def run(folder: Path, iterations: int) -> torch.Tensor:
        encoder = components.seeded(cogvideox.text_encoder, tokenizer, seed=0)
        recipe = Recipe(iterations, 2, 1e-3, warmup=1000, seed=3)
        clip_text.train_encoder(drawn, encoder, tokenizer, folder, recipe, masked=False)
        return encoder.shared.weight

    run(tmp_path / "parts", 2)
    assert torch.equal(run(tmp_path / "parts", 4), run(tmp_path / "whole", 4))
