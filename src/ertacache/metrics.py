"""Image quality against the uncached run: PSNR and SSIM, one value per image.

All arithmetic is floating point. On 8-bit images `a - b` and its square wrap modulo 256, which lifts the PSNR
of a bad pair by many dB without any error; therefore integer images are refused rather than converted.
"""

import statistics
from typing import TypedDict

import torch
from torch import Tensor

from ertacache.errors import InvalidArgument

IDENTICAL_PSNR = 100.0
_SSIM_WINDOW = 11


class Summary(TypedDict):
    """Mean, sample standard deviation (n - 1; 0 for one image) and the value of every image, in order."""

    mean: float
    std: float
    values: list[float]


class Quality(TypedDict):
    """What `PairedMetrics.compute` returns: PSNR in dB and SSIM."""

    psnr: Summary
    ssim: Summary


def psnr(image: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, in dB, for a data range of 1.

    `image` and `reference` are float tensors [B, 3, H, W] with values in [0, 1]; the result is [B], float32
    (float64 when an input is). Half precision is widened first. Values are capped at 100 dB, so identical
    images give 100 and not infinity: the evaluation scripts of this field do the same (they return 100 below
    a mean squared error of 1e-10), and a mean over images stays finite.

    Raises `InvalidArgument` for integer images, values that are NaN or outside [0, 1], and unequal shapes.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    image, reference = _checked_pair(image, reference)
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

    image, reference = _checked_pair(image, reference)
    if min(image.shape[-2:]) < _SSIM_WINDOW:
        raise InvalidArgument(
            f"images of {image.shape[-2]} x {image.shape[-1]} pixels are smaller than the {_SSIM_WINDOW} x "
            f"{_SSIM_WINDOW} window of SSIM; compare larger images, or use psnr alone"
        )
    values = structural_similarity_index_measure(
        image, reference, gaussian_kernel=True, sigma=1.5, reduction="none", data_range=1.0
    )
    if not isinstance(values, Tensor):
        raise TypeError(f"torchmetrics returned {type(values).__name__} instead of one tensor of SSIM values")
    return values


class PairedMetrics:
    """PSNR and SSIM over any number of batches. The result does not depend on how the images were batched.

        metrics = PairedMetrics()
        for images, references in batches:
            metrics.update(images, references)
        metrics.compute()["psnr"]["mean"]

    It keeps two floats per image, never an image.
    """

    def __init__(self) -> None:
        self._psnr: list[float] = []
        self._ssim: list[float] = []

    def update(self, images: Tensor, references: Tensor) -> None:
        """Add one batch: float tensors [B, 3, H, W] in [0, 1]. Raises `InvalidArgument` as `ssim` does."""
        ratios = psnr(images, references)
        similarities = ssim(images, references)
        # Both first, then both lists: a refused batch must not leave one list longer than the other.
        self._psnr += [float(value) for value in ratios.cpu()]
        self._ssim += [float(value) for value in similarities.cpu()]

    def compute(self) -> Quality:
        """Summaries of all images so far. Raises `InvalidArgument` before the first update."""
        if not self._psnr:
            raise InvalidArgument("no images to summarise; call update(images, references) before compute()")
        return {"psnr": _summary(self._psnr), "ssim": _summary(self._ssim)}


def _summary(values: list[float]) -> Summary:
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": std, "values": list(values)}


def _checked_pair(image: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    if image.shape != reference.shape:
        raise InvalidArgument(
            f"image has shape {tuple(image.shape)} and reference {tuple(reference.shape)}; "
            "pass two batches of equal shape [B, 3, H, W]"
        )
    if image.ndim != 4 or image.shape[1] != 3 or image.numel() == 0:
        raise InvalidArgument(
            f"images have shape {tuple(image.shape)}; pass [B, 3, H, W] (one image: image[None]; "
            "channels last: image.movedim(-1, -3))"
        )
    _check_values("image", image)
    _check_values("reference", reference)
    dtype = torch.promote_types(torch.promote_types(image.dtype, reference.dtype), torch.float32)
    return image.to(dtype), reference.to(dtype)


def _check_values(name: str, images: Tensor) -> None:
    if not images.is_floating_point():
        raise InvalidArgument(
            f"{name} has dtype {images.dtype}, whose differences wrap or truncate; pass {name}.float()/255"
        )
    low, high = (float(bound) for bound in images.aminmax())
    if low != low or high != high:  # aminmax propagates NaN
        raise InvalidArgument(f"{name} contains NaN; look for an overflow in the decoder, e.g. decode in float32")
    if low < 0.0 or high > 1.0:
        raise InvalidArgument(
            f"{name} has values from {low:g} to {high:g}, outside [0, 1]; "
            f"rescale it ({name}/2 + 0.5 from [-1, 1], {name}/255 from 8 bit), then clamp(0, 1)"
        )
