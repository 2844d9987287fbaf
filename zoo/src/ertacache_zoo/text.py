"""Pretraining of the small text encoders: which object a word belongs to, and what stands where.

FLUX takes text encoders that know language already, and its transformer sees the words without their order. Encoders
trained together with a small transformer learn which words occur long before they learn which belong together; these
learn that first, from captions alone, and are frozen afterwards.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ertacache_zoo import components, scenes
from ertacache_zoo.training import Recipe, train

RECIPE = Recipe(iterations=1500, batch_size=96, learning_rate=2e-3, seed=41)

#: Token positions of the two objects in every caption, and what each token has to know of its object.
_SPANS = (range(8), range(9, 17))
_ATTRIBUTES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("size", tuple(scenes.SIZES)),
    ("colour", tuple(scenes.COLOURS)),
    ("shape", scenes.SHAPES),
    ("place", tuple(scenes.PLACES)),
)


class Pretraining(nn.Module):
    """Both encoders with the linear heads that are thrown away afterwards."""

    def __init__(self, t5: nn.Module, clip: nn.Module, width: int, pooled: int) -> None:
        super().__init__()
        self.t5, self.clip = t5, clip
        self.word_heads = nn.ModuleList([nn.Linear(width, len(values)) for _, values in _ATTRIBUTES])
        # For every place: each attribute but the place itself, or nothing there.
        self.pooled_heads = nn.ModuleList(
            [nn.Linear(pooled, len(scenes.PLACES) * (len(values) + 1)) for _, values in _ATTRIBUTES[:3]]
        )

    def forward(self, t5_ids: Tensor, clip_ids: Tensor, words: Tensor, places: Tensor) -> Tensor:
        """Mean cross-entropy; `words` [B, 24, 4] with -100 outside objects, `places` [B, 4, 3] with 0 for nothing."""
        states, pooled = self.t5(t5_ids)[0], self.clip(clip_ids).pooler_output
        loss = torch.zeros(())
        for n, head in enumerate(self.word_heads):
            loss = loss + nn.functional.cross_entropy(head(states).flatten(0, 1), words[..., n].flatten())
        for n, head in enumerate(self.pooled_heads):
            scores = head(pooled).unflatten(1, (len(scenes.PLACES), -1))
            loss = loss + nn.functional.cross_entropy(scores.flatten(0, 1), places[..., n].flatten())
        return loss


def labels(drawn: list[scenes.Scene]) -> tuple[Tensor, Tensor]:
    """Targets of scenes: per token [N, 24, 4] and per place [N, 4, 3]."""
    words = torch.full((len(drawn), components.MAX_SEQUENCE_LENGTH, len(_ATTRIBUTES)), -100)
    places = torch.zeros(len(drawn), len(scenes.PLACES), 3, dtype=torch.long)
    for row, scene in enumerate(drawn):
        for item, span in zip(scene.objects, _SPANS, strict=True):
            facts = [values.index(getattr(item, name)) for name, values in _ATTRIBUTES]
            words[row, list(span)] = torch.tensor(facts)
            places[row, facts[3]] = torch.tensor(facts[:3]) + 1
    return words, places


def train_encoders(
    drawn: list[scenes.Scene], t5_tokenizer: Any, clip_tokenizer: Any, folder: Path, recipe: Recipe = RECIPE
) -> tuple[nn.Module, nn.Module]:
    """The T5 and CLIP encoders, pretrained on the captions of `drawn`."""
    t5 = components.seeded(components.t5_encoder, t5_tokenizer, seed=recipe.seed)
    clip = components.seeded(components.clip_encoder, clip_tokenizer, seed=recipe.seed + 1)
    widths = (t5.config.d_model, clip.config.hidden_size)
    model = components.seeded(Pretraining, t5, clip, *widths, seed=recipe.seed + 2)
    t5_ids, clip_ids = components.tokenize([scene.caption for scene in drawn], t5_tokenizer, clip_tokenizer)
    words, places = labels(drawn)

    def loss(generator: torch.Generator) -> Tensor:
        index = torch.randint(len(drawn), (recipe.batch_size,), generator=generator)
        return model(t5_ids[index], clip_ids[index], words[index], places[index])

    train("text", model, loss, recipe, folder)
    return t5.eval().requires_grad_(False), clip.eval().requires_grad_(False)
