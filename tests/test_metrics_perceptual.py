"""LPIPS, against torchmetrics' arithmetic on the same random trunk and the same published heads."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import lpips as theirs

import alexnet
from ertacache.errors import InvalidArgument, MissingExtra
from ertacache.metrics import Lpips


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return alexnet.saved(tmp_path / "trunk.pth")


def pair(height: int, width: int) -> tuple[Tensor, Tensor]:
    """They differ in the upper third, so that it matters over which pixels a layer is averaged."""
    reference, image = torch.rand(2, 3, 3, height, width, generator=torch.Generator().manual_seed(1))
    image[:, :, height // 3 :] = reference[:, :, height // 3 :]
    return image, reference


@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (96, 70), (32, 32)])
def test_lpips_is_that_of_torchmetrics(
    weights: Path, monkeypatch: pytest.MonkeyPatch, spatial: bool, size: tuple[int, int]
) -> None:
    def trunk(net: str, pretrained: bool) -> Any:
        return alexnet.features()

    monkeypatch.setattr(theirs, "_get_tv_model_features", trunk)
    reference_metric = theirs._LPIPS(net="alex", spatial=spatial, pnet_rand=True)
    image, reference = pair(*size)
    expected = reference_metric(image, reference, normalize=True).mean((1, 2, 3))
    values = Lpips(weights, spatial=spatial)(image, reference)
    assert expected.min() > 0.02
    assert values.shape == (3,) and values.dtype == torch.float32
    torch.testing.assert_close(values, expected, atol=2e-7, rtol=0)


def test_the_two_reductions_differ_and_equal_images_are_at_0(weights: Path) -> None:
    image, reference = pair(70, 64)
    plain, spatial = Lpips(weights), Lpips(weights, spatial=True)
    difference = (plain(image, reference) - spatial(image, reference)).abs()
    # Ten times the tolerance of the comparison with torchmetrics, and below 3%: upsampling weights pixels nearly alike.
    assert 2e-6 < difference.min() and difference.max() < 0.03 * plain(image, reference).min()
    assert plain(image, image).tolist() == spatial(image, image).tolist() == [0.0, 0.0, 0.0]


def test_half_precision_and_float64_are_measured_in_float32(weights: Path) -> None:
    metric, (image, reference) = Lpips(weights), pair(32, 32)
    assert torch.equal(metric(image.double(), reference.double()), metric(image, reference))
    half = image.half()
    assert torch.equal(metric(half, reference), metric(half.float(), reference))


def test_small_and_bad_images_are_refused(weights: Path) -> None:
    metric = Lpips(weights)
    image, reference = pair(31, 64)
    with pytest.raises(InvalidArgument, match=r"31 x 64 pixels are pooled away inside AlexNet.*at least 32 x 32"):
        metric(image, reference)
    with pytest.raises(InvalidArgument, match=r"reference has dtype torch\.uint8"):
        metric(image, reference.to(torch.uint8))


def test_the_trunk_is_looked_for_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ERTACACHE_ALEXNET", raising=False)
    cached = tmp_path / "home" / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    with pytest.raises(MissingExtra) as missing:
        Lpips()
    for part in ("ERTACACHE_ALEXNET not set", f"hub cache: {cached}", "torchvision's alexnet(", "7be5be79.pth"):
        assert part in str(missing.value)

    def loaded(path: Path | None = None) -> Tensor:
        return Lpips(path).features[0].bias

    alexnet.saved(cached, seed=1)
    assert torch.equal(loaded(), alexnet.state(1)["features.0.bias"])
    monkeypatch.setenv("ERTACACHE_ALEXNET", str(alexnet.saved(tmp_path / "variable.pth", seed=2)))
    assert torch.equal(loaded(), alexnet.state(2)["features.0.bias"])
    explicit = alexnet.saved(tmp_path / "explicit.pth", seed=3)
    assert torch.equal(loaded(explicit), alexnet.state(3)["features.0.bias"])


def test_a_named_file_that_is_missing_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    alexnet.saved(tmp_path / "home" / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth")
    with pytest.raises(MissingExtra, match=r"the path given: .*nowhere\.pth\)"):
        Lpips(tmp_path / "nowhere.pth")
    monkeypatch.setenv("ERTACACHE_ALEXNET", str(tmp_path / "empty.pth"))
    with pytest.raises(MissingExtra, match=r"no path given, ERTACACHE_ALEXNET: .*empty\.pth\)"):
        Lpips()


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trunk.pth"
    state = alexnet.state()
    cut = {name: value for name, value in state.items() if name != "features.10.bias"}
    wide = {**state, "features.3.weight": torch.zeros(192, 64, 3, 3)}
    for content, reason in ((cut, r"features\.10\.bias"), (wide, "loading state_dict"), ([1, 2], "indices")):
        torch.save(content, path)
        with pytest.raises(InvalidArgument, match=rf"does not hold AlexNet's weights \(.*{reason}.*again"):
            Lpips(path)
    for content in (b"", b"no weights at all"):
        path.write_bytes(content)
        with pytest.raises(InvalidArgument, match="does not hold AlexNet's weights"):
            Lpips(path)
