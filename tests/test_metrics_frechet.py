"""The Fréchet distance, in closed form, against torchmetrics, and from folders of pictures."""

import itertools
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from ertacache.errors import InvalidArgument, MissingExtra
from ertacache.metrics import FrechetDistance, Inception, read_pictures


class Colours(nn.Module):
    """The mean of each channel; with `return_features`, in float64."""

    num_features = 3

    def forward(self, images: Tensor, return_features: bool = True) -> Tensor:
        if images.dtype != torch.uint8:
            raise TypeError("the network is called with uint8 images")
        if not return_features:
            return torch.zeros(len(images), 1008)
        return images.double().mean((2, 3))


class Grid(nn.Module):
    """Means of the four quarters, 12 features."""

    num_features = 12

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images.double(), 2).flatten(1)


def corners(centre: tuple[int, int, int], spread: tuple[int, int, int]) -> Tensor:
    """Eight plain images, centre ± spread in every combination: covariance diag(spread²) · 8/7."""
    colours = [
        [c + s * d for c, s, d in zip(centre, signs, spread, strict=True)]
        for signs in itertools.product(*[(-1, 1)] * 3)
    ]
    return (torch.tensor(colours) / 255).view(8, 3, 1, 1).expand(8, 3, 4, 4)


def noise(count: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randint(0, 256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(seed)) / 255


GENERATED, REFERENCE = corners((100, 80, 60), (7, 14, 21)), corners((90, 100, 63), (14, 14, 7))
#: Diagonal covariances: |Δμ|² + Σ (σ − σ₀)².
EXPECTED = (10**2 + 20**2 + 3**2) + (7**2 + 0**2 + 14**2) * 8 / 7


def filled(generated: Tensor, reference: Tensor, features: nn.Module | None = None) -> FrechetDistance:
    fid = FrechetDistance(features or Colours())
    fid.update(generated, reference=False)
    fid.update(reference, reference=True)
    return fid


def test_diagonal_covariances_have_a_closed_form() -> None:
    assert filled(GENERATED, REFERENCE).compute() == pytest.approx(EXPECTED, rel=1e-9)
    assert filled(GENERATED, GENERATED).compute() == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("count", [40, 6])  # more images than features, and fewer: singular covariances
def test_it_is_that_of_torchmetrics(count: int) -> None:
    generated, reference = noise(count, 0, 0.5), noise(count + 3, 1)
    theirs = FrechetInceptionDistance(feature=Grid())
    theirs.update((generated * 255).round().byte(), real=False)
    theirs.update((reference * 255).round().byte(), real=True)
    expected = theirs.compute().item()
    assert expected > 100
    assert filled(generated, reference, Grid()).compute() == pytest.approx(expected, rel=1e-6)


def test_batches_and_ranks_add_up() -> None:
    generated, reference = noise(30, 2, 0.7), noise(20, 3)
    whole = filled(generated, reference, Grid())
    ranks = [FrechetDistance(Grid()) for _ in range(3)]
    for rank, part in zip(ranks, generated.split(10), strict=True):
        rank.update(part, reference=False)
    for part in reference.split(7):
        ranks[2].update(part, reference=True)  # two of the ranks have no references
    total = FrechetDistance(Grid())
    for rank in ranks:
        total.merge(rank.state())
    assert total.state()["generated"]["count"] == 30 and total.state()["reference"]["count"] == 20
    assert total.compute() == pytest.approx(whole.compute(), rel=1e-9)


def test_a_state_is_a_copy() -> None:
    fid = filled(GENERATED, REFERENCE)
    fid.state()["generated"]["total"].zero_()
    assert fid.compute() == pytest.approx(EXPECTED, rel=1e-9)


def test_too_few_images_and_bad_features_are_refused() -> None:
    fid = FrechetDistance(Colours())
    fid.update(GENERATED, reference=False)
    fid.update(REFERENCE[:1], reference=True)
    with pytest.raises(InvalidArgument, match=r"8 generated and 1 reference image\(s\).*at least 2 of each"):
        fid.compute()
    with pytest.raises(InvalidArgument, match=r"features of shape \(8, 3, 4, 4\) for 8 image.*gives \[B, D\]"):
        FrechetDistance(nn.Identity()).update(GENERATED, reference=False)
    with pytest.raises(InvalidArgument, match="outside"):
        fid.update(GENERATED * 255, reference=False)


def test_features_of_two_networks_do_not_mix() -> None:
    fid, other = FrechetDistance(Colours()), filled(noise(4, 0), noise(4, 1), Grid())
    fid.update(REFERENCE, reference=True)
    before = fid.state()
    with pytest.raises(InvalidArgument, match=r"\[3, 12\] features per image; use one network"):
        fid.merge(other.state())
    assert fid.state()["generated"]["count"] == before["generated"]["count"] == 0


def test_the_published_inception_is_asked_for_features(tmp_path: Path) -> None:
    path = tmp_path / "inception-2015-12-05.pt"
    with pytest.raises(MissingExtra, match=r"no Inception at .*inception-2015-12-05\.pt from https://nvlabs"):
        Inception(path)
    path.write_bytes(b"no network")
    with pytest.raises(InvalidArgument, match="is no TorchScript"):
        Inception(path)
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        torch.jit.script(Colours()).save(path)
    assert filled(GENERATED, REFERENCE, Inception(path)).compute() == pytest.approx(EXPECTED, rel=1e-9)


def test_folders_of_pictures(tmp_path: Path) -> None:
    images = noise(5, 4)
    for n, image in enumerate(images):
        picture = Image.fromarray((image * 255).round().byte().movedim(0, -1).numpy())
        (picture.resize((8, 4)) if n == 3 else picture).save(tmp_path / f"{n}.PNG")
    Image.new("L", (8, 8), 51).save(tmp_path / "grey.jpg")
    (tmp_path / "notes.txt").write_text("no picture")
    batches = list(read_pictures(tmp_path, batch_size=2))
    assert [tuple(batch.shape) for batch in batches] == [(2, 3, 8, 8), (1, 3, 8, 8), (1, 3, 4, 8), (2, 3, 8, 8)]
    torch.testing.assert_close(torch.cat(batches[:2]), images[:3], atol=1e-7, rtol=0)
    torch.testing.assert_close(batches[3][0], images[4], atol=1e-7, rtol=0)
    torch.testing.assert_close(batches[3][1], torch.full((3, 8, 8), 0.2), atol=1e-7, rtol=0)


def test_bad_folders_are_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InvalidArgument, match="holds no png or jpg files"):
            list(read_pictures(folder))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(InvalidArgument, match=r"cannot read the picture .*broken\.png"):
        list(read_pictures(tmp_path))
