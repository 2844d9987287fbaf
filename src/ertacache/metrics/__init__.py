"""Quality against the uncached run: values per sample, a distance between sets of images, and what the values of many
prompts say of a plan.

All arithmetic is floating point, on images with values in [0, 1].
"""

from ertacache.metrics.clip import ClipSimilarity
from ertacache.metrics.fidelity import IDENTICAL_PSNR, ms_ssim, ms_ssim_fits, psnr, ssim
from ertacache.metrics.frechet import FrechetDistance, Inception, read_pictures
from ertacache.metrics.paired import PairedMetrics, Quality
from ertacache.metrics.per_prompt import Figures, Gain, Paired, differences, figures, lower_bound, paired_gain
from ertacache.metrics.perceptual import Lpips
from ertacache.metrics.sample import METRICS, SampleMetrics, available_metrics
from ertacache.metrics.student_t import t_probability, t_quantile
from ertacache.metrics.summary import Summary
from ertacache.metrics.video import frame_psnr, per_frame, temporal_flicker

__all__ = [
    "IDENTICAL_PSNR",
    "METRICS",
    "ClipSimilarity",
    "Figures",
    "FrechetDistance",
    "Gain",
    "Inception",
    "Lpips",
    "Paired",
    "PairedMetrics",
    "Quality",
    "SampleMetrics",
    "Summary",
    "available_metrics",
    "differences",
    "figures",
    "frame_psnr",
    "lower_bound",
    "ms_ssim",
    "ms_ssim_fits",
    "paired_gain",
    "per_frame",
    "psnr",
    "read_pictures",
    "ssim",
    "t_probability",
    "t_quantile",
    "temporal_flicker",
]
