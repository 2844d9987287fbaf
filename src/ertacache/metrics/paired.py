"""PSNR and SSIM against the uncached run, over batches of images."""

from collections.abc import Mapping, Sequence
from typing import TypedDict

from torch import Tensor

from ertacache.metrics.fidelity import psnr, ssim
from ertacache.metrics.summary import PerSample, Summary


class Quality(TypedDict):
    """What `PairedMetrics.compute` returns: PSNR in dB and SSIM."""

    psnr: Summary
    ssim: Summary


class PairedMetrics:
    """PSNR and SSIM over any number of batches. The result does not depend on how the images were batched.

        metrics = PairedMetrics()
        for images, references in batches:
            metrics.update(images, references)
        metrics.compute()["psnr"]["mean"]

    It keeps two floats per image, never an image.
    """

    def __init__(self) -> None:
        self._values = PerSample(("psnr", "ssim"))

    def update(self, images: Tensor, references: Tensor) -> None:
        """Add one batch: float tensors [B, 3, H, W] in [0, 1]. Raises `InvalidArgument` as `ssim` does."""
        # Both first, then both lists: a refused batch must not leave one list longer than the other.
        values = {"psnr": psnr(images, references).tolist(), "ssim": ssim(images, references).tolist()}
        self._values.merge(values)

    def state(self) -> dict[str, list[float]]:
        """The values of every image, by metric."""
        return self._values.state()

    def merge(self, state: Mapping[str, Sequence[float]]) -> None:
        """Add the images of another rank's `state`. Raises `InvalidArgument` for a state of other metrics."""
        self._values.merge(state)

    def compute(self) -> Quality:
        """Summaries of all images so far. Raises `InvalidArgument` before the first update."""
        summaries = self._values.compute()
        return {"psnr": summaries["psnr"], "ssim": summaries["ssim"]}
