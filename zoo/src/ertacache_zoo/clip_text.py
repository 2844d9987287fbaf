"""Pretraining of the video models' text encoders: which mover a word belongs to, and what that mover does.

As with the image models (see `text`), an encoder trained together with a small transformer learns which words occur
long before it learns which belong together. So it learns that first, from captions alone, and is frozen afterwards.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ertacache_zoo import clips, components
from ertacache_zoo.training import Recipe, train

RECIPE = Recipe(iterations=1000, batch_size=96, learning_rate=2e-3, seed=141)

#: Tokens of a caption, in training and in every call: every caption has 21, end mark included.
MAX_SEQUENCE_LENGTH = 24

#: Token positions of the two movers in every caption, and what each token has to know of its mover.
_SPANS = (range(7), range(8, 15))
_ATTRIBUTES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("size", tuple(clips.SIZES)),
    ("colour", tuple(clips.COLOURS)),
    ("shape", clips.SHAPES),
    ("direction", tuple(clips.DIRECTIONS)),
    ("speed", tuple(clips.SPEEDS)),
)
#: Cross-entropy ignores this target.
_NONE = -100


class Pretraining(nn.Module):
    """An encoder with the linear heads that are thrown away afterwards."""

    def __init__(self, encoder: nn.Module, width: int, masked: bool) -> None:
        super().__init__()
        self.encoder, self.masked = encoder, masked
        self.heads = nn.ModuleList([nn.Linear(width, len(values)) for _, values in _ATTRIBUTES])

    def forward(self, ids: Tensor, mask: Tensor, targets: Tensor) -> Tensor:
        """Sum over attributes of the mean cross-entropy in nats; all arguments are rows of [N, 24] or [N, 24, 5]."""
        states = self.encoder(ids, attention_mask=mask if self.masked else None)[0]
        losses = [
            nn.functional.cross_entropy(head(states).flatten(0, 1), targets[..., n].flatten(), ignore_index=_NONE)
            for n, head in enumerate(self.heads)
        ]
        return torch.stack(losses).sum()


def tokenizer() -> Any:
    """One token a word, for every word of a clip's caption."""
    return components.t5_tokenizer(clips.words())


def tokenize(texts: list[str], tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both int64 [N, 24], as WanPipeline and CogVideoXPipeline make them."""
    tokens = tokenizer(
        texts, padding="max_length", max_length=MAX_SEQUENCE_LENGTH, truncation=True, return_tensors="pt"
    )
    return tokens.input_ids, tokens.attention_mask


def labels(drawn: list[clips.Clip]) -> Tensor:
    """Targets int64 [N, 24, 5]: what each token has to know; -100 for tokens of neither mover."""
    targets = torch.full((len(drawn), MAX_SEQUENCE_LENGTH, len(_ATTRIBUTES)), _NONE)
    for row, clip in enumerate(drawn):
        for mover, span in zip(clip.movers, _SPANS, strict=True):
            facts = [values.index(getattr(mover, name)) for name, values in _ATTRIBUTES]
            targets[row, list(span)] = torch.tensor(facts)
    return targets


def pretrained(build: Callable[[Any], Any], drawn: list[clips.Clip], folder: Path, *, masked: bool) -> tuple[Any, Any]:
    """The tokenizer of both models, and the encoder that `build` makes for it, trained as `train_encoder` says."""
    words = tokenizer()
    encoder = components.seeded(build, words, seed=RECIPE.seed + 1)
    return words, train_encoder(drawn, encoder, words, folder, masked=masked)


def train_encoder(
    drawn: list[clips.Clip],
    encoder: Any,
    tokenizer: Any,
    folder: Path,
    recipe: Recipe | None = None,
    *,
    masked: bool,
) -> Any:
    """Pretrain a T5 or UMT5 encoder in place on the captions of `drawn`, and freeze it.

    Args:
        drawn: clips, of which only the captions are used.
        encoder: a T5EncoderModel or UMT5EncoderModel.
        tokenizer: what `tokenizer` gives.
        folder: keeps `text.pt` and `text.jsonl`; training resumes from them.
        recipe: how long and how fast; `RECIPE` by default.
        masked: whether the pipeline gives the attention mask to the encoder: WanPipeline does, CogVideoXPipeline not.

    Returns:
        The encoder.
    """
    recipe = recipe or RECIPE
    model = components.seeded(Pretraining, encoder, encoder.config.d_model, masked, seed=recipe.seed)
    ids, mask = tokenize([clip.caption for clip in drawn], tokenizer)
    targets = labels(drawn)

    def loss(generator: torch.Generator) -> Tensor:
        index = torch.randint(len(drawn), (recipe.batch_size,), generator=generator)
        return model(ids[index], mask[index], targets[index])

    train("text", model, loss, recipe, folder)
    return encoder.eval().requires_grad_(False)
