import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from ertacache.errors import InvalidArgument
from ertacache.metrics import PairedMetrics, psnr, ssim


def noisy_pair(batch: int, size: int = 24) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    reference = torch.rand(batch, 3, size, size, generator=generator, dtype=torch.float64)
    levels = torch.linspace(0.02, 0.3, batch, dtype=torch.float64).view(-1, 1, 1, 1)
    noise = torch.randn(reference.shape, generator=generator, dtype=torch.float64)
    return (reference + levels * noise).clamp(0, 1), reference


def test_psnr_of_constant_differences_is_exact() -> None:
    reference = torch.full((3, 3, 16, 16), 0.25, dtype=torch.float64)
    image = reference + torch.tensor([0.1, 0.01, -0.05], dtype=torch.float64).view(3, 1, 1, 1)
    expected = torch.tensor([20.0, 40.0, 20 * np.log10(20)], dtype=torch.float64)
    torch.testing.assert_close(psnr(image, reference), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(psnr(image.float(), reference.float()), expected.float(), atol=1e-4, rtol=0)


def test_psnr_uses_a_data_range_of_one_whatever_the_contents() -> None:
    # One pixel of 256 in each channel differs by 0.5: mse = 0.25 / 256.
    reference = torch.full((1, 3, 16, 16), 0.25, dtype=torch.float64)
    image = reference.clone()
    image[:, :, 3, 4] += 0.5
    assert psnr(image, reference).item() == pytest.approx(-10 * np.log10(0.25 / 256), abs=1e-5)


def test_identical_images_give_100_db_and_ssim_1() -> None:
    image, _ = noisy_pair(2)
    assert psnr(image, image).tolist() == [100.0, 100.0]
    torch.testing.assert_close(ssim(image, image), torch.ones(2, dtype=torch.float64), atol=1e-12, rtol=0)
    # Closer than the cap is the cap, so it is continuous: mse 1e-12 would be 120 dB.
    assert psnr(image.clamp(max=0.9) + 1e-6, image.clamp(max=0.9)).tolist() == [100.0, 100.0]


def test_a_pair_whose_8_bit_difference_wraps() -> None:
    reference = torch.full((1, 3, 16, 16), 200, dtype=torch.uint8)
    image = torch.full((1, 3, 16, 16), 10, dtype=torch.uint8)
    squared = (reference - image) ** 2  # 190^2 = 36100 = 4 modulo 256
    assert squared.unique().tolist() == [4]
    wrapped = 20 * np.log10(255) - 10 * np.log10(squared.float().mean().item())
    true = 20 * np.log10(255 / 190)
    assert wrapped - true > 39
    assert psnr(image.float() / 255, reference.float() / 255).item() == pytest.approx(true, abs=1e-4)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_integer_images_are_refused_with_the_remedy(metric) -> None:
    image = torch.zeros(1, 3, 16, 16)
    with pytest.raises(InvalidArgument, match=r"reference has dtype torch.uint8.*reference\.float\(\)/255"):
        metric(image, image.to(torch.uint8))
    with pytest.raises(InvalidArgument, match=r"image has dtype torch.int64.*image\.float\(\)/255"):
        metric(image.long(), image.long())


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_bad_values_and_shapes_are_refused(metric) -> None:
    image = torch.full((2, 3, 16, 16), 0.5)
    broken = image.clone()
    broken[1, 2, 3, 4] = torch.nan
    with pytest.raises(InvalidArgument, match="image contains NaN"):
        metric(broken, image)
    with pytest.raises(InvalidArgument, match="reference contains NaN"):
        metric(image, broken)
    with pytest.raises(InvalidArgument, match=r"reference has values from -1 to -1, outside \[0, 1\]"):
        metric(image, image - 1.5)
    with pytest.raises(InvalidArgument, match=r"from 127\.5 to 127\.5.*image/255"):
        metric(image * 255, image)
    with pytest.raises(InvalidArgument, match=r"\(2, 3, 16, 16\) and reference \(1, 3, 16, 16\)"):
        metric(image, image[:1])  # would broadcast
    with pytest.raises(InvalidArgument, match=r"\(2, 16, 16, 3\); pass \[B, 3, H, W\]"):
        metric(image.movedim(1, -1), image.movedim(1, -1))
    with pytest.raises(InvalidArgument, match=r"\(3, 16, 16\).*image\[None\]"):
        metric(image[0], image[0])


def test_ssim_refuses_images_smaller_than_its_window() -> None:
    image = torch.full((1, 3, 10, 16), 0.5)
    with pytest.raises(InvalidArgument, match="10 x 16 pixels are smaller than the 11 x 11 window"):
        ssim(image, image)


def test_ssim_of_constant_images_is_the_luminance_term() -> None:
    # No variance: ssim = (2ab + c1) / (a^2 + b^2 + c1), c1 = 0.01^2.
    a, b = torch.full((1, 3, 16, 16), 0.8).double(), torch.full((1, 3, 16, 16), 0.4).double()
    assert ssim(a, b).item() == pytest.approx((2 * 0.32 + 1e-4) / (0.64 + 0.16 + 1e-4), abs=1e-9)


def test_ssim_agrees_with_scikit_image() -> None:
    images, references = noisy_pair(3)
    # scikit-image drops the 5 outer pixels, so mirroring 5 more leaves exactly the pixels that ours counts.
    expected = [
        structural_similarity(
            *(np.pad(x.numpy(), ((0, 0), (5, 5), (5, 5)), mode="reflect") for x in pair),
            channel_axis=0,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for pair in zip(images, references, strict=True)
    ]
    assert max(expected) - min(expected) > 0.2
    assert ssim(images, references).tolist() == pytest.approx(expected, abs=1e-12)
    assert ssim(images.float(), references.float()).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_before_any_arithmetic(dtype: torch.dtype) -> None:
    images, references = (x.to(dtype) for x in noisy_pair(2))
    for metric in (psnr, ssim):
        assert torch.equal(metric(images, references), metric(images.float(), references.float()))
        assert metric(images, references).dtype == torch.float32


def test_the_accumulator_does_not_depend_on_the_batch_split() -> None:
    images, references = noisy_pair(6)
    results = []
    for sizes in ([6], [1, 1, 1, 1, 1, 1], [4, 2]):
        metrics = PairedMetrics()
        for image, reference in zip(images.split(sizes), references.split(sizes), strict=True):
            metrics.update(image, reference)
        results.append(metrics.compute())
    for name, metric in (("psnr", psnr), ("ssim", ssim)):
        values = metric(images, references)
        for result in results:
            assert result[name]["values"] == pytest.approx(values.tolist(), abs=1e-12)
            assert result[name]["mean"] == pytest.approx(values.mean().item(), abs=1e-12)
            assert result[name]["std"] == pytest.approx(values.std(correction=1).item(), abs=1e-12)


def test_the_accumulator_survives_a_refused_batch_and_needs_one() -> None:
    metrics = PairedMetrics()
    with pytest.raises(InvalidArgument, match="call update"):
        metrics.compute()
    small = torch.full((1, 3, 8, 8), 0.5)
    with pytest.raises(InvalidArgument, match="smaller than"):
        metrics.update(small, small)
    reference = torch.full((1, 3, 16, 16), 0.5)
    metrics.update(reference + 0.1, reference)
    result = metrics.compute()
    assert len(result["psnr"]["values"]) == len(result["ssim"]["values"]) == 1
    assert result["psnr"]["mean"] == pytest.approx(20.0, abs=1e-4)
    assert result["psnr"]["std"] == 0.0


def test_the_accumulators_of_two_ranks_merge() -> None:
    images, references = noisy_pair(5)
    whole, first, second = PairedMetrics(), PairedMetrics(), PairedMetrics()
    whole.update(images, references)
    first.update(images[:2], references[:2])
    second.update(images[2:], references[2:])
    state = second.state()
    first.merge(state)
    assert first.compute() == whole.compute()
    state["psnr"].clear()
    assert len(second.compute()["psnr"]["values"]) == 3
    with pytest.raises(InvalidArgument, match="the state holds lpips, not psnr, ssim"):
        first.merge({"lpips": [0.1]})
