"""The metrics of one sample, image or video, by name; and which of them can be computed here."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from torch import Tensor

from ertacache.errors import InvalidArgument, MissingExtra
from ertacache.metrics.clip import CLIP, ClipSimilarity, clip_problem
from ertacache.metrics.fidelity import MS_SSIM_SMALLEST, SSIM_SMALLEST, ms_ssim, psnr, ssim
from ertacache.metrics.perceptual import FILE_NAME, LPIPS_SMALLEST, Lpips, alexnet_path
from ertacache.metrics.summary import PerSample, Summary
from ertacache.metrics.video import per_frame, temporal_flicker

METRICS = ("psnr", "ssim", "ms_ssim", "lpips", "clip_image", "clip_text", "flicker")


class SampleMetrics:
    """Chosen metrics of one sample at a time. Networks are loaded when first needed, and once.

    Args:
        names: any of `METRICS`: psnr (dB), ssim, ms_ssim, lpips, clip_image (cosine with the reference), clip_text
            (cosine with the prompt), flicker (videos only).
        alexnet: file of LPIPS's trunk; None looks where `alexnet_path` does.
        clip: folder or Hub id of the CLIP model.
        lpips_spatial: the reduction of `Lpips`.
        device: where the networks run.

    Raises:
        InvalidArgument: a name that is no metric.
    """

    def __init__(
        self,
        names: Iterable[str],
        *,
        alexnet: str | Path | None = None,
        clip: str | Path = CLIP,
        lpips_spatial: bool = False,
        device: str = "cpu",
    ) -> None:
        self.names = tuple(dict.fromkeys(names))
        if unknown := [name for name in self.names if name not in METRICS]:
            raise InvalidArgument(f"{unknown[0]!r} is no metric; choose from {', '.join(METRICS)}")
        self._alexnet, self._clip_source = alexnet, clip
        self._spatial, self._device = lpips_spatial, device
        self._values = PerSample(self.names)

    @cached_property
    def _lpips(self) -> Lpips:
        return Lpips(self._alexnet, spatial=self._spatial).to(self._device)

    @cached_property
    def _clip(self) -> ClipSimilarity:
        return ClipSimilarity(self._clip_source, device=self._device)

    def measure(self, images: Tensor, references: Tensor, prompt: str) -> dict[str, float]:
        """The chosen metrics of one sample; those of images are averaged over the frames of a video.

        Args:
            images: [3, H, W] for an image, [F, 3, H, W] for a video; float in [0, 1].
            references: the uncached run's, of the same shape.
            prompt: that both were made from.

        Returns:
            A float for every name, in the order of `names`.

        Raises:
            InvalidArgument: images that a metric refuses; flicker of fewer than two frames.
            MissingExtra: weights that a metric needs are not there.
        """
        if images.ndim not in (3, 4) or images.shape != references.shape:
            raise InvalidArgument(
                f"images have shape {tuple(images.shape)} and references {tuple(references.shape)}; pass one sample, "
                "[3, H, W] or [F, 3, H, W], and its reference of the same shape"
            )
        video, reference = (x[None, None] if x.ndim == 3 else x[None] for x in (images, references))
        return {name: float(self._value(name, video, reference, prompt)) for name in self.names}

    def _value(self, name: str, video: Tensor, reference: Tensor, prompt: str) -> Tensor:
        match name:
            case "flicker":
                return temporal_flicker(video, reference)
            case "lpips":
                return per_frame(self._lpips, video, reference)
            case "clip_image":
                return per_frame(self._clip.image_image, video, reference)
            case "clip_text":
                clip = self._clip
                return per_frame(lambda frame, _: clip.text_image(frame, [prompt]), video, reference)
            case _:
                return per_frame({"psnr": psnr, "ssim": ssim, "ms_ssim": ms_ssim}[name], video, reference)

    def update(self, images: Tensor, references: Tensor, prompt: str) -> dict[str, float]:
        """`measure`, and keep the values for `compute`."""
        values = self.measure(images, references, prompt)
        self._values.merge({name: [value] for name, value in values.items()})
        return values

    def state(self) -> dict[str, list[float]]:
        """The values of every sample of `update`, by metric."""
        return self._values.state()

    def merge(self, state: Mapping[str, Sequence[float]]) -> None:
        """Add the samples of another rank's `state`. Raises `InvalidArgument` for a state of other metrics."""
        self._values.merge(state)

    def compute(self) -> dict[str, Summary]:
        """A summary per metric. Raises `InvalidArgument` before the first sample."""
        return self._values.compute()


def available_metrics(
    height: int, width: int, frames: int = 1, *, alexnet: str | Path | None = None, clip: str | Path = CLIP
) -> dict[str, str | None]:
    """Every metric, with None where it can be computed here and the reason where it cannot.

    Args:
        height, width: of the images, in pixels.
        frames: of a video; 1 for an image.
        alexnet, clip: as given to `SampleMetrics`.

    Returns:
        Reasons by name, in the order of `METRICS`. Files are looked for, not read, and nothing is downloaded: a CLIP
        that is not in the Hub's cache counts as missing.
    """
    reasons: dict[str, str | None] = dict.fromkeys(METRICS)

    def needs(smallest: int) -> str | None:
        fits = min(height, width) >= smallest
        return None if fits else f"needs images of at least {smallest} x {smallest} pixels, not {height} x {width}"

    reasons["ssim"] = needs(SSIM_SMALLEST)
    reasons["ms_ssim"] = needs(MS_SSIM_SMALLEST)
    reasons["lpips"] = needs(LPIPS_SMALLEST) or _alexnet_problem(alexnet)
    reasons["clip_image"] = reasons["clip_text"] = clip_problem(clip)
    reasons["flicker"] = None if frames >= 2 else f"needs a video of at least 2 frames, not {frames}"
    return reasons


def _alexnet_problem(weights: str | Path | None) -> str | None:
    try:
        alexnet_path(weights)
    except MissingExtra:
        # Without the places that were looked at: reasons go into result files, which say nothing of a machine.
        return f"needs AlexNet's weights ({FILE_NAME}); see docs/metrics.md"
    return None
