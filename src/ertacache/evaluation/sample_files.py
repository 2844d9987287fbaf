"""Pictures and clips as files: PNG, JPEG, WebP; mp4 by ffmpeg; gif and WebP that loop."""

import subprocess
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from ertacache.errors import InvalidArgument
from ertacache.extras import require
from ertacache.files import save_atomic, write_atomic
from ertacache.pipelines.pipeline_call import defaults_of

#: Frames per second of samples in result folders, and where no model says otherwise.
FPS = 8
#: Frames per second that models were trained for, by the beginning of their pipeline's name.
_TRAINED_FPS = {"Wan": 16, "CogVideoX": 8, "HunyuanVideo": 15, "LTX": 24, "Allegro": 15, "OpenSora": 24}
_FASTEST = 60
#: File kinds that can hold a clip; WebP holds pictures as well.
_CLIPS = (".mp4", ".gif", ".webp")
_ONLY_CLIPS = (".mp4", ".gif")
#: x264's quality: 0 is lossless, 23 its default. Small clips of few pixels show less.
_CRF = 12
#: Clips up to this side lose nothing as samples: a report enlarges them and subtracts them from one another.
LOSSLESS_SIDE = 128


def trained_fps(pipe: Any) -> int:
    """Frames per second that the pipeline's model was trained for; `FPS` where that is not known."""
    name = type(pipe).__name__
    return next((fps for start, fps in _TRAINED_FPS.items() if name.startswith(start)), FPS)


def makes_clips(pipe: Any, call: dict[str, Any]) -> bool:
    """Whether a call gives clips, not pictures: what all pipelines of clips take is a number of frames."""
    return "num_frames" in defaults_of(pipe) and call.get("num_frames") != 1


def check_kind(path: Path, *, clip: bool, fps: float = FPS) -> None:
    """Refuse a kind of file that cannot hold what is to be written, before it is made.

    Raises:
        InvalidArgument: a picture's file for a clip, a clip's file for a picture, or as `check_format`.
        MissingExtra: mp4 without ffmpeg.
    """
    kind = path.suffix.lower()
    if clip and kind not in _CLIPS:
        raise InvalidArgument(f"{path} would hold one picture, and this is a clip; name a .mp4 or .gif file")
    if not clip and kind in _ONLY_CLIPS:
        raise InvalidArgument(f"{path} would hold a clip, and this is one picture; name a .png file")
    check_format(path, fps)


def check_format(path: Path, fps: float = FPS) -> None:
    """Refuse a kind of file that can hold neither pictures nor clips.

    Raises:
        InvalidArgument: an unknown kind of file, or a rate out of range.
        MissingExtra: mp4 without ffmpeg.
    """
    kind = path.suffix.lower()
    if kind not in _CLIPS:
        picture_format(path)
    if not 0 < fps <= _FASTEST:
        raise InvalidArgument(f"fps is {fps:g}; choose frames per second above 0 and up to {_FASTEST}")
    if kind == ".mp4":
        require(f"the mp4 file {path}", "imageio_ffmpeg", instead="or name a .gif file")


def write_sample(sample: Tensor, path: Path, *, fps: float = FPS) -> None:
    """A picture [3, H, W] or a clip [F, 3, H, W] in [0, 1] as a file of the kind that its name says, all or nothing.

    Raises:
        InvalidArgument, MissingExtra: as `write_image`, `write_clip` and `check_kind`.
    """
    if sample.ndim == 4 and len(sample) == 1 and path.suffix.lower() not in _CLIPS:
        sample = sample[0]
    check_kind(path, clip=sample.ndim == 4)
    if sample.ndim == 4:
        write_clip(sample, path, fps=fps)
    else:
        write_image(sample, path)


def write_image(image: Tensor, path: Path, *, lossless: bool = False) -> None:
    """One image [3, H, W] in [0, 1] as a file of the kind that its name says; a WebP without loss, if asked for.

    Raises:
        InvalidArgument: an unknown kind of file.
    """
    from PIL import Image

    kind = picture_format(path)
    picture = Image.fromarray(eight_bit(image[None])[0].numpy())
    save_atomic(path, lambda file: picture.save(file, kind, optimize=True, lossless=lossless))


def write_clip(frames: Tensor, path: Path, *, fps: float = FPS, lossless: bool = False) -> None:
    """A clip [F, 3, H, W] in [0, 1] as mp4 (H.264), or as a gif or WebP that loops.

    Equal neighbours are one frame of a gif or WebP that stays for as long as all of them.

    Args:
        fps: frames per second, above 0 and up to 60. A gif counts in hundredths of a second: its frames' times
            differ by one where that is needed, and the clip's length is right.
        lossless: of a WebP; mp4 and gif (256 colours a frame) always lose something.

    Raises:
        InvalidArgument: another kind of file, a rate out of range, or an odd side of an mp4.
        MissingExtra: mp4 without ffmpeg.
    """
    check_kind(path, clip=True, fps=fps)
    pixels = eight_bit(frames)
    if path.suffix.lower() == ".mp4":
        write_atomic(path, mp4(pixels, path, fps))
        return
    from PIL import Image

    pictures = [Image.fromarray(frame.numpy()) for frame in pixels]
    options: dict[str, Any] = {"save_all": True, "append_images": pictures[1:], "loop": 0}
    if path.suffix.lower() == ".gif":
        kind, options = "GIF", options | {"duration": durations(len(pictures), fps, 10)}
    else:
        kind, more = (
            "WEBP",
            {"duration": durations(len(pictures), fps, 1), "lossless": lossless, "quality": 90, "method": 4},
        )
        options |= more
    save_atomic(path, lambda file: pictures[0].save(file, kind, **options))


def durations(count: int, fps: float, unit: int) -> list[int]:
    """Milliseconds that each of `count` frames stays: multiples of `unit`, whose sum is right at every frame."""
    ends = [unit * round(1000 * n / (fps * unit)) for n in range(count + 1)]
    return [end - start for start, end in pairwise(ends)]


def save_samples(samples: Tensor, out: Path, slug: str) -> list[str]:
    """Files under `out`/samples: PNG of pictures [N, 3, H, W], looping WebP of clips [N, F, 3, H, W], in [0, 1].

    Returns:
        Their paths relative to `out`.
    """
    clips = samples.ndim == 5
    names = [f"samples/{slug}-{n}.{'webp' if clips else 'png'}" for n in range(len(samples))]
    for name, sample in zip(names, samples, strict=True):
        save_clip_sample(sample, out / name) if clips else write_image(sample, out / name)
    return names


def save_clip_sample(frames: Tensor, path: Path) -> None:
    """A clip [F, 3, H, W] of a result folder: a WebP, without loss where the clip is small."""
    write_clip(frames, path, lossless=max(frames.shape[-2:]) <= LOSSLESS_SIDE)


def eight_bit(frames: Tensor) -> Tensor:
    """Frames [F, 3, H, W] in [0, 1] as uint8 [F, H, W, 3], rounded, on the CPU."""
    return (frames.clamp(0, 1) * 255).round().to("cpu", torch.uint8).permute(0, 2, 3, 1).contiguous()


def mp4(pixels: Tensor, path: Path, fps: float) -> bytes:
    """A clip uint8 [F, H, W, 3] as H.264.

    Args:
        path: where it will lie, for the message.

    Raises:
        InvalidArgument: an odd side, or whatever ffmpeg says.
    """
    from imageio_ffmpeg import get_ffmpeg_exe

    height, width = pixels.shape[1:3]
    if height % 2 or width % 2:
        raise InvalidArgument(f"mp4 needs an even height and width, not {height} x {width}; name a .gif file")
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps:g}", "-i", "-")
    # 4:2:0 and the index at the front: what browsers play.
    coded = ("-c:v", "libx264", "-crf", str(_CRF), "-pix_fmt", "yuv420p", "-movflags", "+faststart")
    with TemporaryDirectory() as folder:
        made = Path(folder) / "clip.mp4"
        command: Sequence[str] = (get_ffmpeg_exe(), "-v", "error", *raw, *coded, str(made))
        done = subprocess.run(command, input=pixels.numpy().tobytes(), capture_output=True, check=False)
        if done.returncode or not made.is_file():
            reason = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            raise InvalidArgument(f"ffmpeg cannot write {path} ({reason}); name a .gif file")
        return made.read_bytes()


def picture_format(path: Path) -> str:
    """Pillow's name for the kind of picture that a file's name says.

    Raises:
        InvalidArgument: one that it cannot write.
    """
    from PIL import Image

    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise InvalidArgument(f"cannot write a picture to {path}, whose kind is unknown; name a .png file")
    return kind
