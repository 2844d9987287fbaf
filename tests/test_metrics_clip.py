"""CLIP cosines, against the whole model called on tensors that are prepared here."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPModel

import tiny_clip
from ertacache.errors import InvalidArgument, MissingExtra
from ertacache.metrics import ClipSimilarity
from ertacache.metrics.clip import clip_problem
from ertacache_zoo import components

TEXTS = ["a small red ring", "a large cyan triangle at the top right"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip.saved(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(folder: Path) -> ClipSimilarity:
    return ClipSimilarity(folder)


def pictures(seed: int, height: int = 32, width: int = 32) -> Tensor:
    """Two images that 8 bit hold exactly."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (2, 3, height, width), generator=generator) / 255


def embedded(folder: Path, images: Tensor) -> tuple[Tensor, Tensor]:
    """Unit embeddings of images at the model's own size, and of TEXTS, by the model's own forward."""
    model: Any = CLIPModel.from_pretrained(folder)
    tokens = components.clip_tokenizer()(TEXTS, padding=True, return_tensors="pt")
    pixels = (images - torch.tensor(tiny_clip.MEAN).view(3, 1, 1)) / torch.tensor(tiny_clip.STD).view(3, 1, 1)
    with torch.no_grad():
        output = model(**tokens, pixel_values=pixels)
    return output.image_embeds, output.text_embeds


def test_identical_images_have_cosine_1(clip: ClipSimilarity) -> None:
    images = pictures(0, 40, 56)
    torch.testing.assert_close(clip.image_image(images, images), torch.ones(2), atol=1e-6, rtol=0)


def test_cosines_are_those_of_the_model_itself(clip: ClipSimilarity, folder: Path) -> None:
    images, references = pictures(1), pictures(2)
    (a, text), (b, _) = embedded(folder, images), embedded(folder, references)
    expected = (a * b).sum(1)
    assert expected.max() < 0.999
    torch.testing.assert_close(clip.image_image(images, references), expected, atol=1e-6, rtol=0)
    expected = (a * text).sum(1)
    assert (expected[0] - expected[1]).abs() > 1e-3
    torch.testing.assert_close(clip.text_image(images, TEXTS), expected, atol=1e-6, rtol=0)
    # Padding to the longest text of a batch changes nothing.
    torch.testing.assert_close(clip.text_image(images[:1], TEXTS[:1]), expected[:1], atol=1e-6, rtol=0)


def test_images_are_resized_by_pil_and_cropped_in_the_middle(clip: ClipSimilarity, folder: Path) -> None:
    images = pictures(3, 48, 72)
    resized = [
        Image.fromarray((x.movedim(0, -1) * 255).round().to(torch.uint8).numpy()).resize(
            (48, 32), Image.Resampling.BICUBIC
        )
        for x in images
    ]
    prepared = torch.stack([torch.from_numpy(np.array(x)[:, 8:40]).movedim(-1, 0) / 255 for x in resized])
    embeds, _ = embedded(folder, prepared)
    expected = (embeds * embeds.flip(0)).sum(1)
    assert expected.max() < 0.999
    torch.testing.assert_close(clip.image_image(images, images.flip(0)), expected, atol=1e-6, rtol=0)


def test_values_between_8_bit_levels_are_rounded(clip: ClipSimilarity) -> None:
    images, references = pictures(5).clamp(0.1, 0.9), pictures(6)
    moved = images + 0.4 / 255
    assert torch.equal(clip.image_image(moved, references), clip.image_image(images, references))


def test_a_long_text_is_cut_at_the_context_of_the_model(clip: ClipSimilarity) -> None:
    long = " ".join(["red"] * 75)
    values = clip.text_image(pictures(7), [long, f"{long} small cyan ring"])
    same = clip.text_image(pictures(7), [long, long])
    assert torch.equal(values, same)


def test_bad_calls_are_refused(clip: ClipSimilarity) -> None:
    images = pictures(0)
    with pytest.raises(InvalidArgument, match=r"2 image\(s\) and one text given; pass a list"):
        clip.text_image(images, "red")
    with pytest.raises(InvalidArgument, match=r"2 image\(s\) and 1 texts given"):
        clip.text_image(images, ["red"])
    with pytest.raises(InvalidArgument, match=r"image has dtype torch\.uint8"):
        clip.text_image(images.to(torch.uint8), TEXTS)
    with pytest.raises(InvalidArgument, match="equal shape"):
        clip.image_image(images, images[:1])


def test_a_clip_that_cannot_be_loaded_is_named_with_the_remedy(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(MissingExtra, match=r"cannot load CLIP from '.*nowhere'.*give a folder that holds a CLIPModel"):
        ClipSimilarity(tmp_path / "nowhere")
    part = tmp_path / "part"
    shutil.copytree(folder, part)
    (part / "preprocessor_config.json").unlink()
    with pytest.raises(MissingExtra, match=r"cannot load CLIP from '.*part'"):
        ClipSimilarity(part)
    assert "has no preprocessor_config.json in" in str(clip_problem(part))


def test_the_hub_cache_is_looked_at_without_a_network(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert clip_problem(folder) is None
    problem = clip_problem("org/clip")
    assert problem is not None
    assert "'org/clip' is no folder and not in the Hub's cache; run `hf download org/clip`" in problem
    repository = tmp_path / "models--org--clip"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    shutil.copytree(folder, snapshot)
    assert clip_problem("org/clip") is None
    (snapshot / "model.safetensors").unlink()
    assert "'org/clip' has no model.safetensors in" in str(clip_problem("org/clip"))
