"""What a pipeline makes of the texts and the size of its call, seen where it makes it."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ertacache.errors import UnsupportedPipeline
from ertacache.pipelines.overrides import Overrides

_TWO = ("prompt_embeds", "negative_prompt_embeds")
_FOUR = (*_TWO, "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
_MASKED = (
    "prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask",
)  # fmt: skip
#: By pipeline, which of its arguments `encode_prompt` returns the values of; a second call is for negative prompts.
ENCODED: dict[str, tuple[str, ...]] = {
    "FluxPipeline": ("prompt_embeds", "pooled_prompt_embeds"),
    "StableDiffusionPipeline": _TWO,
    "StableDiffusionXLPipeline": _FOUR,
    "StableDiffusion3Pipeline": _FOUR,
    "WanPipeline": _TWO,
    "CogVideoXPipeline": _TWO,
    "SanaPipeline": _MASKED,
}
_SIZES = ("height", "width", "num_frames")


def check_encoded(pipe: Any) -> None:
    """Refuse a pipeline whose embeddings cannot be told apart.

    Raises:
        UnsupportedPipeline: it has an `encode_prompt` of its own.
    """
    if type(pipe).__name__ not in ENCODED:
        raise UnsupportedPipeline(
            f"the order in which {type(pipe).__name__}.encode_prompt returns embeddings is not known, only that of "
            f"{', '.join(ENCODED)}; use texts='prompt'"
        )


class Encoded:
    """Notes what one call of a pipeline encodes and how large it makes its latent.

    Args:
        overrides: takes the wrappers off again; they go on when it is entered.

    Attributes:
        embeddings: by argument, [B, *] on the CPU, one for each sample.
        sizes: pixels and frames, by argument.
    """

    def __init__(self, overrides: Overrides, pipe: Any) -> None:
        self.embeddings: dict[str, Tensor] = {}
        self.sizes: dict[str, int] = {}
        self._names, self._calls = ENCODED.get(type(pipe).__name__, ()), 0
        if hasattr(pipe, "encode_prompt"):
            overrides.replace(pipe, "encode_prompt", self._encode)
        if hasattr(pipe, "prepare_latents"):
            overrides.replace(pipe, "prepare_latents", self._prepare)

    def _encode(self, original: Callable[..., Any], _: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        prefix = "negative_" * (self._calls > 0)
        for name, value in zip(self._names, result, strict=False):
            if isinstance(value, Tensor):
                self.embeddings[prefix + name] = value.detach().to("cpu", copy=True)
        self._calls += 1
        return result

    def _prepare(self, original: Callable[..., Any], _: Any, *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(original).bind(*args, **kwargs).arguments
        self.sizes = {name: int(given[name]) for name in _SIZES if type(given.get(name)) is int}
        return original(*args, **kwargs)
