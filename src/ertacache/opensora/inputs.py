"""What a call of the pipeline is given, checked before the work."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ertacache.errors import InvalidArgument
from ertacache.opensora.frame_conditioning import Generators

_OUTPUTS = ("pil", "np", "pt", "latent")


@dataclass(frozen=True)
class Prompts:
    """The prompts of a call: texts, or embeddings with their mask.

    Args:
        embeds: [B, L, caption_channels].
        mask: [B, L], nonzero where there is a token.
    """

    texts: str | list[str] | None
    embeds: Tensor | None
    mask: Tensor | None

    @property
    def count(self) -> int:
        """How many there are."""
        if self.embeds is not None:
            return len(self.embeds)
        return 1 if self.texts is None or isinstance(self.texts, str) else len(self.texts)

    def check(self, pipe: Any) -> None:
        """Refuse what cannot be encoded, or does not fit the transformer.

        Raises:
            InvalidArgument: both kinds or none, no text, embeddings without mask or of another shape.
        """
        if (self.texts is None) == (self.embeds is None):
            given = "both prompt and prompt_embeds are" if self.embeds is not None else "neither of them is"
            raise InvalidArgument(f"give prompt, or prompt_embeds with prompt_attention_mask: {given} given")
        if self.embeds is None:
            self._check_texts()
            return
        config, shape = pipe.transformer.config, tuple(self.embeds.shape)
        longest, channels = config.model_max_length, config.caption_channels
        if len(shape) != 3 or shape[0] < 1 or not 0 < shape[1] <= longest or shape[2] != channels:
            raise InvalidArgument(
                f"prompt_embeds has shape {list(shape)}; give [prompts, tokens, {channels}] with up to {longest} tokens"
            )
        if self.mask is None:
            raise InvalidArgument("prompt_embeds has no prompt_attention_mask; give both, as of encode_prompt")
        if tuple(self.mask.shape) != shape[:2]:
            raise InvalidArgument(
                f"prompt_attention_mask has shape {list(self.mask.shape)} and prompt_embeds {list(shape)}; give "
                f"{list(shape[:2])}"
            )
        if bool((self.mask != 0).sum(1).min() == 0):
            raise InvalidArgument("prompt_attention_mask leaves a prompt without any token; keep one of each at least")

    def _check_texts(self) -> None:
        texts = [self.texts] if isinstance(self.texts, str) else self.texts
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidArgument(f"prompt is {self.texts!r}; give a text, or a list of one text or more")
        if self.mask is not None:
            raise InvalidArgument("prompt_attention_mask belongs to prompt_embeds, and prompt is a text; leave it out")


def check_encoder(pipe: Any) -> None:
    """Refuse a pipeline that cannot encode a text.

    Raises:
        InvalidArgument: it has no text encoder or tokenizer.
    """
    if pipe.text_encoder is None or pipe.tokenizer is None:
        raise InvalidArgument(
            "prompt is a text, and the pipeline has no text encoder or tokenizer; give prompt_embeds with "
            "prompt_attention_mask"
        )


def check_counts(**counts: object) -> None:
    """Refuse what is no whole number from 1 on.

    Raises:
        InvalidArgument: naming the first.
    """
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InvalidArgument(f"{name} is {value!r}; give 1 or more")


def check_numbers(guidance_scale: object, fps: object, strength: object) -> None:
    """Refuse numbers that no run can have.

    Raises:
        InvalidArgument: naming the first, with what it may be.
    """
    ranges: tuple[tuple[str, Any, float, float, str], ...] = (
        ("guidance_scale", guidance_scale, 0.0, float("inf"), "a number from 0 on; up to 1 is without guidance"),
        ("fps", fps, 1e-9, float("inf"), "frames per second above 0"),
        ("strength", strength, 0.0, 1 - 1e-9, "a number from 0 (given frames stay as they are) to below 1"),
    )
    for name, value, least, most, remedy in ranges:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
        if not fits or value == float("inf"):
            raise InvalidArgument(f"{name} is {value!r}; give {remedy}")


def check_output(output_type: str, tensor_inputs: Sequence[str], known: Sequence[str]) -> None:
    """Refuse an unknown form of the result, or tensors that a callback cannot be given.

    Raises:
        InvalidArgument: naming it.
    """
    if output_type not in _OUTPUTS:
        raise InvalidArgument(f"output_type is {output_type!r}; choose one of {', '.join(_OUTPUTS)}")
    if unknown := [name for name in tensor_inputs if name not in known]:
        raise InvalidArgument(
            f"callback_on_step_end_tensor_inputs has {', '.join(map(repr, unknown))}; choose among {', '.join(known)}"
        )


def check_noise(latents: Tensor | None, shape: tuple[int, ...], generator: Generators) -> None:
    """Refuse noise of another shape, or another number of generators than clips.

    Raises:
        InvalidArgument: with the shape that is needed.
    """
    if latents is not None and tuple(latents.shape) != shape:
        raise InvalidArgument(
            f"latents has shape {list(latents.shape)}; this call needs {list(shape)}, which are clips, channels, "
            "latent frames, height and width"
        )
    if generator is not None and not isinstance(generator, torch.Generator) and len(generator) != shape[0]:
        raise InvalidArgument(f"generator is a list of {len(generator)} for {shape[0]} clip(s); give one for each")
