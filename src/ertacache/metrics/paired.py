"""PSNR and SSIM against the uncached run, over batches of images or videos."""

from collections.abc import Mapping, Sequence
from typing import TypedDict

from torch import Tensor

from ertacache.metrics.fidelity import psnr, ssim
from ertacache.metrics.summary import PerSample, Summary
from ertacache.metrics.video import per_frame


class Quality(TypedDict):
    """What `PairedMetrics.compute` returns: PSNR in dB and SSIM."""

    psnr: Summary
    ssim: Summary


class PairedMetrics:
    """PSNR and SSIM over any number of batches. The result does not depend on how the images were batched.
    A video has one value of each: the mean over its frames.

        metrics = PairedMetrics()
        for images, references in batches:
            metrics.update(images, references)
        metrics.compute()["psnr"]["mean"]

    It keeps two floats per image or video, never an image.
    """

    def __init__(self) -> None:
        self._values = PerSample(("psnr", "ssim"))

    def update(self, images: Tensor, references: Tensor) -> None:
        """Add one batch: float tensors [B, 3, H, W] or [B, F, 3, H, W] in [0, 1].

        Raises:
            InvalidArgument: as `ssim` and `per_frame` do.
        """
        # Both first, then both lists: a refused batch must not leave one list longer than the other.
        video = images.ndim == 5
        values = {
            name: (per_frame(metric, images, references) if video else metric(images, references)).tolist()
            for name, metric in (("psnr", psnr), ("ssim", ssim))
        }
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
