"""MS-SSIM, against its definition written out with scipy's Gaussian filter, and in closed form."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ertacache.errors import InvalidArgument
from ertacache.metrics import ms_ssim, ms_ssim_fits

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def blurred(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([gaussian_filter(channel, sigma=1.5, truncate=3.5, mode="mirror") for channel in x])


def by_definition(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    value, c1, c2 = 1.0, 0.01**2, 0.03**2
    for scale, weight in enumerate(WEIGHTS):
        mean_a, mean_b = blurred(a), blurred(b)
        variances = blurred(a * a) - mean_a**2 + blurred(b * b) - mean_b**2
        contrast = (2 * (blurred(a * b) - mean_a * mean_b) + c2) / (variances + c2)
        luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
        # Borders as torchmetrics has them: the contrast of whole windows only, the last scale with mirrored borders.
        term = (luminance * contrast).mean() if scale == 4 else contrast[:, 5:-5, 5:-5].mean()
        value *= max(term, 0.0) ** weight
        a, b = (x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2] for x in (a, b))
        a, b = (x.reshape(3, x.shape[1] // 2, 2, x.shape[2] // 2, 2).mean((2, 4)) for x in (a, b))
    return value


def test_ms_ssim_is_its_definition() -> None:
    generator = torch.Generator().manual_seed(3)
    reference = torch.rand(2, 3, 176, 193, generator=generator, dtype=torch.float64)
    noise = torch.randn(reference.shape, generator=generator, dtype=torch.float64)
    image = (reference + torch.tensor([0.05, 0.3]).view(2, 1, 1, 1) * noise).clamp(0, 1)
    expected = [by_definition(a.numpy(), b.numpy()) for a, b in zip(image, reference, strict=True)]
    assert expected[0] - expected[1] > 0.1
    assert ms_ssim(image, reference).tolist() == pytest.approx(expected, abs=1e-7)
    assert ms_ssim(image.float(), reference.float()).tolist() == pytest.approx(expected, abs=1e-5)


def test_constant_images_leave_the_luminance_of_the_last_scale() -> None:
    a, b = torch.full((1, 3, 176, 176), 0.8).double(), torch.full((1, 3, 176, 176), 0.4).double()
    luminance = (2 * 0.32 + 1e-4) / (0.64 + 0.16 + 1e-4)
    assert ms_ssim(a, b).item() == pytest.approx(luminance**0.1333, abs=1e-7)
    assert ms_ssim(a, a).item() == pytest.approx(1.0, abs=1e-12)


def test_an_inverted_image_gives_0_and_not_nan() -> None:
    reference = torch.rand(1, 3, 176, 176, generator=torch.Generator().manual_seed(0))
    assert ms_ssim(1 - reference, reference).tolist() == [0.0]


@pytest.mark.parametrize(("height", "width"), [(175, 176), (300, 161)])
def test_small_images_are_refused_with_both_sizes(height: int, width: int) -> None:
    image = torch.full((1, 3, height, width), 0.5)
    assert not ms_ssim_fits(height, width)
    with pytest.raises(InvalidArgument, match=rf"{height} x {width} pixels are too small.*at least 176 x 176"):
        ms_ssim(image, image)


def test_the_smallest_size_is_the_smallest() -> None:
    assert ms_ssim_fits(176, 176)
    image = torch.full((1, 3, 176, 176), 0.5)
    assert ms_ssim(image, image).tolist() == [1.0]


def test_bad_images_are_refused() -> None:
    image = torch.full((1, 3, 176, 176), 0.5)
    with pytest.raises(InvalidArgument, match=r"reference has dtype torch.uint8"):
        ms_ssim(image, image.to(torch.uint8))
