import pytest
import torch
from torch import Tensor

from ertacache.errors import InvalidArgument
from ertacache.metrics import PairedMetrics, frame_psnr, per_frame, psnr, ssim, temporal_flicker


def videos() -> tuple[Tensor, Tensor]:
    """Two videos of three frames on a grid of 1/64, so that sums and differences are exact."""
    generator = torch.Generator().manual_seed(0)
    reference = torch.randint(8, 56, (2, 3, 3, 12, 16), generator=generator) / 64
    return reference.clone(), reference


def test_per_frame_is_the_mean_over_frames() -> None:
    _, reference = videos()
    reference = reference.clamp(0.2, 0.8)
    offsets = torch.tensor([[0.1, 0.01, 0.1], [0.01, 0.01, 0.01]]).view(2, 3, 1, 1, 1)
    # 20, 40 and 20 dB: the mean of frames, not the PSNR of the mean error.
    values = per_frame(psnr, reference + offsets, reference)
    torch.testing.assert_close(values, torch.tensor([80 / 3, 40.0]), atol=1e-3, rtol=0)


def test_per_frame_gives_the_metric_one_frame_of_each_video() -> None:
    video, reference = videos()
    seen: list[Tensor] = []

    def metric(image: Tensor, true: Tensor) -> Tensor:
        assert torch.equal(image, true)
        seen.append(image)
        return image.new_tensor([1.0, 2.0]) * len(seen)

    assert per_frame(metric, video, reference).tolist() == [2.0, 4.0]
    assert torch.equal(torch.stack(seen, 1), video)


def test_a_clip_counts_once_with_the_mean_of_its_frames() -> None:
    _, reference = videos()
    reference = reference.clamp(0.2, 0.8)
    noise = torch.rand(reference.shape, generator=torch.Generator().manual_seed(2)) / 8
    metrics = PairedMetrics()
    metrics.update(reference + noise, reference)
    frames = frame_psnr(reference + noise, reference)
    assert frames.shape == (2, 3)
    assert frames[1, 2] == psnr((reference + noise)[1:, 2], reference[1:, 2])[0]
    assert metrics.compute()["psnr"]["values"] == frames.mean(1).tolist()
    each = [ssim((reference + noise)[:, f], reference[:, f]) for f in range(3)]
    assert metrics.compute()["ssim"]["values"] == torch.stack(each, 1).mean(1).tolist()
    with pytest.raises(InvalidArgument, match="pass two videos of equal shape"):
        metrics.update(reference[:, :2], reference)
    assert len(metrics.state()["psnr"]) == 2


def test_a_constant_deviation_does_not_flicker() -> None:
    video, reference = videos()
    assert temporal_flicker(video + 1 / 8, reference).tolist() == [0.0, 0.0]
    pattern = torch.randint(-8, 9, (2, 1, 3, 12, 16), generator=torch.Generator().manual_seed(1)) / 64
    assert temporal_flicker(video + pattern, reference).tolist() == [0.0, 0.0]


def test_flicker_is_the_mean_step_of_the_deviation() -> None:
    video, reference = videos()
    # First video: 0, +1/8, -1/8: steps 1/8 and 1/4. Second: one channel of the last frame moves by 1/8.
    video[0, 1] += 1 / 8
    video[0, 2] -= 1 / 8
    video[1, 2, 1] -= 1 / 8
    assert temporal_flicker(video, reference).tolist() == [3 / 16, 1 / 8 / 3 / 2]
    assert temporal_flicker(reference, video).tolist() == [3 / 16, 1 / 8 / 3 / 2]


def test_bad_videos_are_refused() -> None:
    video, reference = videos()
    with pytest.raises(InvalidArgument, match=r"a video of 1 frame\(s\) cannot flicker; pass at least 2"):
        temporal_flicker(video[:, :1], reference[:, :1])
    for call in (temporal_flicker, lambda a, b: per_frame(psnr, a, b)):
        with pytest.raises(InvalidArgument, match=r"video has shape \(2, 3, .* and reference \(2, 2, .*equal shape"):
            call(video, reference[:, :2])
        with pytest.raises(
            InvalidArgument, match=r"\(3, 3, 12, 16\); pass \[B, F, 3, H, W\] \(one video: video\[None\]"
        ):
            call(video[0], reference[0])
        with pytest.raises(InvalidArgument, match=r"image has dtype torch\.uint8"):
            call(video.to(torch.uint8), reference)
        with pytest.raises(InvalidArgument, match=r"outside \[0, 1\]"):
            call(video + 1, reference)
