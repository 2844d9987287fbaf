"""One sample by names, what is available here, and the page about it."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

import alexnet
import tiny_clip
from ertacache.errors import InvalidArgument, MissingExtra
from ertacache.metrics import (
    METRICS,
    ClipSimilarity,
    Lpips,
    SampleMetrics,
    available_metrics,
    ms_ssim,
    per_frame,
    psnr,
    sample,
    ssim,
    temporal_flicker,
)

PROMPT = "a small red ring"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip.saved(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return alexnet.saved(tmp_path_factory.mktemp("alexnet") / "trunk.pth")


def pair(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    reference = torch.rand(*shape, generator=generator)
    return (reference + 0.2 * torch.randn(*shape, generator=generator)).clamp(0, 1), reference


def test_a_video_is_measured_frame_by_frame(clip: Path, trunk: Path) -> None:
    video, reference = pair(2, 3, 176, 180)
    metrics = SampleMetrics(METRICS, alexnet=trunk, clip=clip, lpips_spatial=True)
    values = metrics.measure(video, reference, PROMPT)
    assert tuple(values) == METRICS and {type(value) for value in values.values()} == {float}
    model, spatial = ClipSimilarity(clip), Lpips(trunk, spatial=True)
    expected = {
        "psnr": psnr(video, reference).mean(),
        "ssim": ssim(video, reference).mean(),
        "ms_ssim": ms_ssim(video, reference).mean(),
        "lpips": per_frame(spatial, video[None], reference[None])[0],
        "clip_image": model.image_image(video, reference).mean(),
        "clip_text": model.text_image(video, [PROMPT, PROMPT]).mean(),
        "flicker": temporal_flicker(video[None], reference[None])[0],
    }
    assert values == pytest.approx({name: float(value) for name, value in expected.items()}, abs=1e-5)


def test_an_image_is_one_frame(clip: Path, trunk: Path) -> None:
    image, reference = pair(3, 40, 48)
    names = ("clip_text", "lpips", "psnr", "clip_image", "ssim")
    values = SampleMetrics(names, alexnet=trunk, clip=clip).measure(image, reference, PROMPT)
    assert tuple(values) == names
    assert values["psnr"] == psnr(image[None], reference[None]).item()
    assert values["lpips"] == pytest.approx(Lpips(trunk)(image[None], reference[None]).item(), abs=1e-6)
    assert values == SampleMetrics(names, alexnet=trunk, clip=clip).measure(image[None], reference[None], PROMPT)


def test_networks_are_loaded_when_needed_and_once(clip: Path, trunk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []

    def counted_lpips(*args: object, **options: object) -> Lpips:
        loads.append("lpips")
        return Lpips(trunk)

    def counted_clip(*args: object, **options: object) -> ClipSimilarity:
        loads.append("clip")
        return ClipSimilarity(clip)

    monkeypatch.setattr(sample, "Lpips", counted_lpips)
    monkeypatch.setattr(sample, "ClipSimilarity", counted_clip)
    image, reference = pair(3, 40, 40)
    SampleMetrics(["psnr"]).measure(image, reference, PROMPT)
    metrics = SampleMetrics(["psnr", "lpips", "clip_image", "clip_text"])
    assert loads == []
    for _ in range(2):
        metrics.measure(image, reference, PROMPT)
    assert sorted(loads) == ["clip", "lpips"]


def test_values_add_up_over_ranks() -> None:
    pairs = [tuple(x[n] for x in pair(3, 3, 16, 16)) for n in range(3)]
    whole, first, second = (SampleMetrics(["psnr", "ssim"]) for _ in range(3))
    with pytest.raises(InvalidArgument, match="call update"):
        whole.compute()
    rows = [whole.update(*images, PROMPT) for images in pairs]
    assert rows == [whole.measure(*images, PROMPT) for images in pairs]
    first.update(*pairs[0], PROMPT)
    for images in pairs[1:]:
        second.update(*images, PROMPT)
    first.merge(second.state())
    assert first.compute() == whole.compute()
    assert first.compute()["ssim"]["values"] == [row["ssim"] for row in rows]
    with pytest.raises(InvalidArgument, match="the state holds psnr, not psnr, ssim; merge states of the same metrics"):
        first.merge({"psnr": [1.0]})
    with pytest.raises(InvalidArgument, match="unequal numbers of samples"):
        first.merge({"psnr": [1.0], "ssim": []})
    assert first.compute() == whole.compute()


def test_bad_names_and_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="'fid' is no metric; choose from psnr, ssim, ms_ssim"):
        SampleMetrics(["psnr", "fid"])
    image, reference = pair(3, 16, 16)
    metrics = SampleMetrics(["psnr", "psnr"])
    assert metrics.names == ("psnr",)
    for bad in ((image, reference[None]), (image[0], reference[0]), (image[None, None], reference[None, None])):
        with pytest.raises(InvalidArgument, match=r"pass one sample, \[3, H, W\] or \[F, 3, H, W\]"):
            metrics.measure(*bad, PROMPT)
    with pytest.raises(InvalidArgument, match="cannot flicker"):
        SampleMetrics(["flicker"]).measure(image, reference, PROMPT)
    with pytest.raises(MissingExtra, match="the path given"):
        SampleMetrics(["lpips"], alexnet=tmp_path / "nowhere").measure(image, reference, PROMPT)
    with pytest.raises(MissingExtra, match="cannot load CLIP"):
        SampleMetrics(["clip_text"], clip=tmp_path / "nowhere").measure(image, reference, PROMPT)


def test_what_is_available_and_why_not(clip: Path, trunk: Path, tmp_path: Path) -> None:
    here = {"alexnet": trunk, "clip": clip}
    assert available_metrics(176, 176, 2, **here) == dict.fromkeys(METRICS)
    small = available_metrics(31, 400, **here)
    assert [name for name in METRICS if small[name] is None] == ["psnr", "ssim", "clip_image", "clip_text"]
    assert small["ms_ssim"] == "needs images of at least 176 x 176 pixels, not 31 x 400"
    assert small["lpips"] == "needs images of at least 32 x 32 pixels, not 31 x 400"
    assert small["flicker"] == "needs a video of at least 2 frames, not 1"
    assert available_metrics(11, 10, **here)["ssim"] == "needs images of at least 11 x 11 pixels, not 11 x 10"
    without = available_metrics(64, 64, alexnet=tmp_path / "nowhere", clip=tmp_path / "neither")
    assert without["lpips"] == "needs AlexNet's weights (alexnet-owt-7be5be79.pth); see docs/metrics.md"
    assert without["clip_image"] == without["clip_text"] and "neither' is no folder" in str(without["clip_text"])


@pytest.mark.parametrize("size", [(176, 175), (176, 176), (32, 31), (32, 32), (11, 10), (11, 11)])
def test_available_means_that_it_can_be_measured(clip: Path, trunk: Path, size: tuple[int, int]) -> None:
    image, reference = pair(2, 3, *size)
    for name, reason in available_metrics(*size, 2, alexnet=trunk, clip=clip).items():
        metrics = SampleMetrics([name], alexnet=trunk, clip=clip)
        if reason is None:
            assert metrics.measure(image, reference, PROMPT).keys() == {name}
        else:
            with pytest.raises(InvalidArgument):
                metrics.measure(image, reference, PROMPT)


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("ERTACACHE_ALEXNET", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parent.parent / "docs" / "metrics.md").read_text()
    scope: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        exec(compile(block, "docs/metrics.md", "exec"), scope)
    assert "lpips: needs AlexNet's weights" in capsys.readouterr().out
