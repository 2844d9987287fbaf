"""Quality against the uncached run: values per sample, and a distance between sets of images.

All arithmetic is floating point, on images with values in [0, 1].
"""

from ertacache.metrics.clip import ClipSimilarity
from ertacache.metrics.fidelity import IDENTICAL_PSNR, ms_ssim, ms_ssim_fits, psnr, ssim
from ertacache.metrics.frechet import FrechetDistance, Inception, read_pictures
from ertacache.metrics.paired import PairedMetrics, Quality
from ertacache.metrics.perceptual import Lpips
from ertacache.metrics.sample import METRICS, SampleMetrics, available_metrics
from ertacache.metrics.summary import Summary
from ertacache.metrics.video import frame_psnr, per_frame, temporal_flicker

__all__ = [
    "IDENTICAL_PSNR",
    "METRICS",
    "ClipSimilarity",
    "FrechetDistance",
    "Inception",
    "Lpips",
    "PairedMetrics",
    "Quality",
    "SampleMetrics",
    "Summary",
    "available_metrics",
    "frame_psnr",
    "ms_ssim",
    "ms_ssim_fits",
    "per_frame",
    "psnr",
    "read_pictures",
    "ssim",
    "temporal_flicker",
]
