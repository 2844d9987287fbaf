"""Metrics of videos [B, F, 3, H, W]: any metric of images averaged over the frames, and flicker between frames."""

from collections.abc import Callable

import torch
from torch import Tensor

from ertacache.errors import InvalidArgument
from ertacache.metrics.checks import checked_pair
from ertacache.metrics.fidelity import psnr


def per_frame(metric: Callable[[Tensor, Tensor], Tensor], video: Tensor, reference: Tensor) -> Tensor:
    """The mean over frames of a metric of images, as the video papers report PSNR, SSIM and LPIPS.

    Args:
        metric: takes two batches [B, 3, H, W] and gives [B]; `psnr`, an `Lpips`, ...
        video: [B, F, 3, H, W] float in [0, 1].
        reference: the uncached run's, of the same shape.

    Returns:
        [B]. The metric sees one frame of each video at a time, so memory does not grow with F.

    Raises:
        InvalidArgument: shapes that are unequal or no video; and whatever the metric refuses.
    """
    return _of_frames(metric, video, reference).mean(1)


def frame_psnr(video: Tensor, reference: Tensor) -> Tensor:
    """PSNR of every frame, in dB: [B, F], whose mean over F is `per_frame(psnr, ...)`. Arguments as there."""
    return _of_frames(psnr, video, reference)


def _of_frames(metric: Callable[[Tensor, Tensor], Tensor], video: Tensor, reference: Tensor) -> Tensor:
    _check_shapes(video, reference)
    return torch.stack([metric(video[:, f], reference[:, f]) for f in range(video.shape[1])], 1)


def temporal_flicker(video: Tensor, reference: Tensor) -> Tensor:
    """Change of the deviation from frame to frame: mean of |d_{f+1} − d_f| with d = video − reference.

    Args:
        video: [B, F, 3, H, W] float in [0, 1], F >= 2.
        reference: the uncached run's, of the same shape.

    Returns:
        [B] float64 on the CPU, in units of the pixel range: 0 where the deviation is the same in all frames, however
        large. The mean is over pairs of consecutive frames, channels and pixels.

    Raises:
        InvalidArgument: fewer than two frames, shapes that are unequal or no video, and what `psnr` refuses.
    """
    _check_shapes(video, reference)
    frames = video.shape[1]
    if frames < 2:
        raise InvalidArgument(f"a video of {frames} frame(s) cannot flicker; pass at least 2 frames, or leave it out")
    total = torch.zeros(video.shape[0], dtype=torch.float64)
    before: Tensor | None = None
    for f in range(frames):
        frame, true_frame = checked_pair(video[:, f], reference[:, f])
        deviation = frame - true_frame
        if before is not None:
            total += (deviation - before).abs().double().mean((1, 2, 3)).cpu()
        before = deviation
    return total / (frames - 1)


def _check_shapes(video: Tensor, reference: Tensor) -> None:
    if video.shape != reference.shape:
        raise InvalidArgument(
            f"video has shape {tuple(video.shape)} and reference {tuple(reference.shape)}; "
            "pass two videos of equal shape [B, F, 3, H, W]"
        )
    if video.ndim != 5 or video.shape[2] != 3 or video.numel() == 0:
        raise InvalidArgument(f"videos have shape {tuple(video.shape)}; pass [B, F, 3, H, W] (one video: video[None])")
