"""Cosines of CLIP embeddings (Radford et al. 2021): image against image, and text against image."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ertacache.errors import InvalidArgument, MissingExtra
from ertacache.metrics.checks import checked_images, checked_pair, eight_bit

CLIP = "openai/clip-vit-large-patch14"

#: What a CLIP folder holds, each under one of these names.
_FILES = (
    ("config.json",),
    ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"),
    ("preprocessor_config.json", "processor_config.json"),
    ("tokenizer_config.json",),
)


class ClipSimilarity:
    """Cosines between embeddings, in [-1, 1]; not multiplied by 100 and not clipped at 0, as some CLIP scores are.

    Images go to 8 bit and through the model's own preprocessing by PIL (resize, centre crop, normalise), so that
    the figures are those of saved pictures and the same whether or not torchvision is there.

    Args:
        source: folder or Hub id of a CLIPModel with its image processor and tokenizer. Say which one was used:
            cosines of different CLIP models do not compare.
        device: where the model runs.

    Raises:
        MissingExtra: it cannot be loaded.
    """

    def __init__(self, source: str | Path = CLIP, *, device: str = "cpu") -> None:
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

        try:
            model: Any = CLIPModel.from_pretrained(source, dtype=torch.float32)
            # Without a named backend the default depends on what is installed.
            self._processor: Any = AutoImageProcessor.from_pretrained(source, backend="pil")
            self._tokenizer: Any = AutoTokenizer.from_pretrained(source)
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            first = str(error).strip().splitlines()[0]
            raise MissingExtra(f"cannot load CLIP from {str(source)!r} ({first}); {_remedy(source)}") from error
        self._device = torch.device(device)
        self._model: Any = model.to(self._device).eval()

    def image_image(self, images: Tensor, references: Tensor) -> Tensor:
        """Cosine between the embeddings of each pair of images.

        Args:
            images, references: [B, 3, H, W] float in [0, 1].

        Returns:
            [B] float32 on the CPU.

        Raises:
            InvalidArgument: as `psnr`.
        """
        images, references = checked_pair(images, references)
        return F.cosine_similarity(self._embedded_images(images), self._embedded_images(references))

    def text_image(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """Cosine between each image and its text; a text longer than CLIP's context (77 tokens) is cut off there.

        Args:
            images: [B, 3, H, W] float in [0, 1].
            texts: B texts.

        Returns:
            [B] float32 on the CPU.

        Raises:
            InvalidArgument: as `psnr`, or another number of texts.
        """
        images = checked_images(images)
        if isinstance(texts, str) or len(texts) != len(images):
            given = "one text" if isinstance(texts, str) else f"{len(texts)} texts"
            raise InvalidArgument(f"{len(images)} image(s) and {given} given; pass a list of one text per image")
        return F.cosine_similarity(self._embedded_images(images), self._embedded_texts(texts))

    @torch.no_grad()
    def _embedded_images(self, images: Tensor) -> Tensor:
        pictures = list(eight_bit(images).movedim(1, -1).numpy())
        pixels = self._processor(images=pictures, input_data_format="channels_last", return_tensors="pt").pixel_values
        # Not get_image_features: what it returns has changed between versions.
        pooled = self._model.vision_model(pixel_values=pixels.to(self._device)).pooler_output
        return self._model.visual_projection(pooled).cpu()

    @torch.no_grad()
    def _embedded_texts(self, texts: Sequence[str]) -> Tensor:
        length: int = self._model.config.text_config.max_position_embeddings
        tokens = self._tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
        tokens = tokens.to(self._device)
        pooled = self._model.text_model(tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
        return self._model.text_projection(pooled).cpu()


def clip_problem(source: str | Path = CLIP) -> str | None:
    """Why CLIP cannot be loaded from a folder or the Hub's cache, or None. Nothing is loaded or downloaded."""
    from huggingface_hub import snapshot_download

    folder = Path(source)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(str(source), local_files_only=True))
        except (OSError, ValueError):
            return f"CLIP {str(source)!r} is no folder and not in the Hub's cache; {_remedy(source)}"
    absent = [names[0] for names in _FILES if not any((folder / name).is_file() for name in names)]
    return f"CLIP {str(source)!r} has no {', '.join(absent)} in {folder}; {_remedy(source)}" if absent else None


def _remedy(source: str | Path) -> str:
    """Hub ids can be downloaded; a folder must be another one."""
    if Path(source).is_absolute() or Path(source).exists():
        return "give a folder that holds a CLIPModel, its image processor and tokenizer, or a Hub id"
    return f"run `hf download {source}` where there is a network, or give a folder that holds it"
