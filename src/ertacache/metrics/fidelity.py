"""Fidelity to the uncached run, pixel by pixel: PSNR, SSIM and MS-SSIM, one value per image."""

from torch import Tensor

from ertacache.errors import InvalidArgument
from ertacache.metrics.checks import checked_pair

IDENTICAL_PSNR = 100.0
SSIM_SMALLEST = 11
#: The coarsest of five scales holds one window of 11 pixels: 11 · 2⁴.
MS_SSIM_SMALLEST = 176


def psnr(image: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, in dB, for a data range of 1.

    `image` and `reference` are float tensors [B, 3, H, W] with values in [0, 1]; the result is [B], float32
    (float64 when an input is). Half precision is widened first. Values are capped at 100 dB, so identical
    images give 100 and not infinity: the evaluation scripts of this field do the same (they return 100 below
    a mean squared error of 1e-10), and a mean over images stays finite.

    Raises `InvalidArgument` for integer images, values that are NaN or outside [0, 1], and unequal shapes.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    image, reference = checked_pair(image, reference)
    values = peak_signal_noise_ratio(image, reference, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return values.clamp(max=IDENTICAL_PSNR)


def ssim(image: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity of each image (Wang et al. 2004): 11x11 Gaussian window, sigma 1.5, data range 1.

    `image` and `reference` are float tensors [B, 3, H, W] with values in [0, 1] and H, W >= 11; the result is
    [B], float32 (float64 when an input is), the mean over pixels and channels.

    Borders: the images are continued by mirroring and every pixel counts. scikit-image
    (`gaussian_weights=True, sigma=1.5, use_sample_covariance=False`) has the same map inside, but averages it
    without the outer 5 pixels, which moves the mean in about the fourth decimal; on images mirrored by 5
    pixels beforehand the two agree.

    Raises `InvalidArgument` as `psnr` does, and for images smaller than the window.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    image, reference = checked_pair(image, reference)
    if min(image.shape[-2:]) < SSIM_SMALLEST:
        raise InvalidArgument(
            f"images of {image.shape[-2]} x {image.shape[-1]} pixels are smaller than the {SSIM_SMALLEST} x "
            f"{SSIM_SMALLEST} window of SSIM; compare larger images, or use psnr alone"
        )
    values = structural_similarity_index_measure(
        image, reference, gaussian_kernel=True, sigma=1.5, reduction="none", data_range=1.0
    )
    if not isinstance(values, Tensor):
        raise TypeError(f"torchmetrics returned {type(values).__name__} instead of one tensor of SSIM values")
    return values


def ms_ssim(image: Tensor, reference: Tensor) -> Tensor:
    """Multi-scale SSIM of each image (Wang et al. 2003): five scales, weights .0448, .2856, .3001, .2363, .1333.

    Arguments and result as of `ssim`; H, W >= 176. Each scale halves the images by 2x2 means. The value is the
    product over scales of the mean contrast-structure term to the power of its weight; the coarsest scale takes
    the whole SSIM. A mean below 0 counts as 0, for a power of it does not exist.

    Raises `InvalidArgument` as `psnr` does, and for images below 176 pixels: fewer scales would be another
    metric. `ms_ssim_fits` tells beforehand.
    """
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    image, reference = checked_pair(image, reference)
    height, width = image.shape[-2:]
    if not ms_ssim_fits(height, width):
        raise InvalidArgument(
            f"images of {height} x {width} pixels are too small for the five scales of MS-SSIM; compare images of at "
            f"least {MS_SSIM_SMALLEST} x {MS_SSIM_SMALLEST}, or use ssim"
        )
    return multiscale_structural_similarity_index_measure(
        image, reference, gaussian_kernel=True, sigma=1.5, reduction="none", data_range=1.0, normalize="relu"
    )


def ms_ssim_fits(height: int, width: int) -> bool:
    """Whether images of this size, in pixels, have room for the five scales of `ms_ssim`."""
    return min(height, width) >= MS_SSIM_SMALLEST
