"""Pictures and clips as files, read back by other means than wrote them."""

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from ertacache.errors import InvalidArgument, MissingExtra
from ertacache.evaluation.report.embedded import open_clip, shown_frames, side_by_side
from ertacache.evaluation.sample_files import (
    check_kind,
    durations,
    makes_clips,
    save_samples,
    trained_fps,
    write_clip,
    write_image,
    write_sample,
)
from pipelines import cogvideox, flux, wan


def clip(frames: int = 9, height: int = 48, width: int = 32) -> Tensor:
    """A bar that moves: frame f is grey, with columns 2 f to 2 f + 7 red."""
    video = torch.full((frames, 3, height, width), 0.5)
    for f in range(frames):
        video[f, :, :, 2 * f : 2 * f + 8] = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)
    return video


def decoded_mp4(path: Path) -> tuple[Tensor, float]:
    """Frames uint8 [F, H, W, 3] of an mp4 and its rate, from ffmpeg."""
    from imageio_ffmpeg import get_ffmpeg_exe

    command = [get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True)
    size = re.search(r"Video: h264.* (\d+)x(\d+).* ([\d.]+) fps", done.stderr.decode())
    assert size is not None
    width, height = int(size[1]), int(size[2])
    return torch.frombuffer(bytearray(done.stdout), dtype=torch.uint8).view(-1, height, width, 3), float(size[3])


@pytest.mark.parametrize("fps", [8, 12.5])
def test_an_mp4_has_every_frame_at_its_size_and_rate(tmp_path: Path, fps: float) -> None:
    write_clip(clip(), tmp_path / "new" / "clip.mp4", fps=fps)
    frames, rate = decoded_mp4(tmp_path / "new" / "clip.mp4")
    assert frames.shape == (9, 48, 32, 3) and rate == fps
    for f in range(9):
        assert frames[f, 20, 2 * f + 4].tolist() == pytest.approx([255, 0, 0], abs=16)
        assert frames[f, 20, (2 * f + 20) % 32].tolist() == pytest.approx([128] * 3, abs=8)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["clip.mp4"]


@pytest.mark.parametrize(("fps", "times"), [(8, [120, 130, 130, 120]), (16, [60, 60, 70, 60]), (10, [100] * 4)])
def test_a_gif_has_every_frame_and_loops_with_the_right_length(tmp_path: Path, fps: float, times: list[int]) -> None:
    write_clip(clip(4), tmp_path / "clip.gif", fps=fps)
    with Image.open(tmp_path / "clip.gif") as image:
        assert (image.n_frames, image.size, image.info["loop"]) == (4, (32, 48), 0)
        seen = []
        for f in range(4):
            image.seek(f)
            seen.append(image.info["duration"])
            assert image.convert("RGB").getpixel((2 * f + 4, 20)) == (255, 0, 0)
        assert seen == times == durations(4, fps, 10)


def test_durations_end_where_they_should() -> None:
    assert durations(3, 8, 1) == [125] * 3
    assert sum(durations(81, 16, 10)) == 5060  # 5062.5 ms
    assert durations(3, 60, 10) == [20, 10, 20]


def test_a_webp_sample_is_exact_and_equal_neighbours_come_apart(tmp_path: Path) -> None:
    frames = clip(6)
    frames[3] = frames[2]
    frames[5] = frames[4]
    assert save_samples(torch.stack([frames, frames[:1].expand(6, -1, -1, -1)]), tmp_path, "a") == [
        "samples/a-0.webp",
        "samples/a-1.webp",
    ]
    for name, expected in (("a-0", frames), ("a-1", frames[:1].expand(6, -1, -1, -1))):
        read = open_clip(tmp_path / "samples" / f"{name}.webp", "it", 6)
        for image, frame in zip(read, expected, strict=True):
            assert list(image.tobytes()) == (frame * 255).round().byte().permute(1, 2, 0).flatten().tolist()


def test_samples_of_pictures_are_png_files(tmp_path: Path) -> None:
    assert save_samples(clip(2), tmp_path, "p") == ["samples/p-0.png", "samples/p-1.png"]
    with Image.open(tmp_path / "samples" / "p-1.png") as image:
        assert (image.format, image.size, image.getpixel((4, 0))) == ("PNG", (32, 48), (255, 0, 0))


def test_the_python_of_the_docs_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parent.parent / "docs" / "clips.md").read_text()
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(block, "docs/clips.md", "exec"), {})
    with Image.open("clip.gif") as image:
        assert (image.n_frames, image.size) == (9, (48, 48))


def test_a_strip_has_five_frames_with_gaps() -> None:
    assert shown_frames(9) == [0, 2, 4, 6, 8]
    assert shown_frames(81) == [0, 20, 40, 60, 80]
    assert shown_frames(3) == [0, 1, 2] and shown_frames(1) == [0]
    frames = [Image.new("RGB", (32, 48), (n, n, n)) for n in range(9)]
    strip = side_by_side(frames)
    assert strip.size == (5 * 32 + 4 * 2, 48)
    assert [strip.getpixel((34 * n, 0)) for n in range(5)] == [(2 * n,) * 3 + (255,) for n in range(5)]
    assert strip.getpixel((32, 0)) == (0, 0, 0, 0)
    assert side_by_side(frames[:2]).size == (66, 48)


def test_a_picture_goes_to_no_clip_and_a_clip_to_no_picture(tmp_path: Path) -> None:
    for name in ("x.png", "x.jpg", "x"):
        with pytest.raises(InvalidArgument, match=rf"{name} would hold one picture, .*name a \.mp4 or \.gif file"):
            write_sample(clip(), tmp_path / name)
    for name in ("x.mp4", "x.GIF"):
        with pytest.raises(InvalidArgument, match=rf"{name} would hold a clip, .*name a \.png file"):
            write_sample(clip()[0], tmp_path / name)
    with pytest.raises(InvalidArgument, match=r"cannot write a picture to .*x\.what, whose kind is unknown"):
        write_image(clip()[0], tmp_path / "x.what")
    for fps in (0, -1, 61, float("nan")):
        with pytest.raises(InvalidArgument, match=rf"fps is {fps:g}; choose .*up to 60"):
            write_sample(clip(), tmp_path / "x.gif", fps=fps)
    assert not list(tmp_path.iterdir())
    # One frame is a picture too: image models of video pipelines give those.
    write_sample(clip(1), tmp_path / "x.png")
    write_sample(clip(1), tmp_path / "x.webp")
    assert Image.open(io.BytesIO((tmp_path / "x.png").read_bytes())).size == (32, 48)


def test_an_mp4_that_cannot_be_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_bytes(b"old")
    with pytest.raises(InvalidArgument, match=r"mp4 needs an even height and width, not 48 x 31; name a \.gif file"):
        write_clip(clip(width=31), tmp_path / "x.mp4")
    assert (tmp_path / "x.mp4").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_ffmpeg_that_fails_says_why(tmp_path: Path) -> None:
    # Neither a rate that rounds to 0 nor an empty clip can be written.
    with pytest.raises(InvalidArgument, match=r"ffmpeg cannot write .*x\.mp4 \(.+\); name a \.gif file"):
        write_clip(clip(), tmp_path / "x.mp4", fps=1e-12)
    assert not list(tmp_path.iterdir())


def test_mp4_without_ffmpeg_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    path = tmp_path / "x.mp4"
    with pytest.raises(MissingExtra) as missing:
        check_kind(path, clip=True)
    remedy = "install it with: pip install 'ertacache[video]', or name a .gif file"
    assert str(missing.value) == f"the mp4 file {path} needs imageio-ffmpeg; {remedy}"
    check_kind(tmp_path / "x.gif", clip=True)


def test_pipelines_of_clips_and_their_rates_are_known() -> None:
    assert [trained_fps(pipe) for pipe in (wan(), cogvideox(), flux())] == [16, 8, 8]
    assert makes_clips(wan(), {}) and makes_clips(cogvideox(), {"num_frames": 9})
    assert not makes_clips(wan(), {"num_frames": 1}) and not makes_clips(flux(), {})
