import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from comparison_folder import small, with_clips, with_pictures
from ertacache.errors import InvalidArgument
from ertacache.report import comparison_samples
from ertacache.report.comparison import write_comparison_report
from report_page import Page, words


def test_pictures_and_differences_hold_the_right_pixels(tmp_path: Path) -> None:
    html = write_comparison_report(with_pictures(small(), tmp_path)).read_text(encoding="utf-8")
    images = {}
    for attributes in Page(html).all("img"):
        assert attributes["class"] == "pixels" and attributes["src"]
        with Image.open(io.BytesIO(base64.b64decode(attributes["src"].split(",")[1]))) as image:
            images[attributes["alt"]] = image.convert("RGB").getpixel((3, 3))
    assert images == {
        "no cache": (100, 100, 100),
        "fitted (ours)": (110, 20, 100),
        "difference from no cache, amplified ×4": (40, 255, 0),  # 4 · |110 − 100|, 4 · 80 clipped, 0
    }
    assert "36.0 dB, diff. ×4" in words(html)  # of the first prompt, not the mean


def test_a_missing_or_broken_sample_is_named_with_its_line(tmp_path: Path) -> None:
    folder = with_pictures(small(), tmp_path)
    path = folder / "samples" / "fitted@0.5-0-0.webp"
    path.unlink()
    name = r"sample samples/fitted@0\.5-0-0\.webp \(results\.jsonl, line 6\)"
    with pytest.raises(InvalidArgument, match=rf"{name} is not in .*samples; keep results.jsonl beside"):
        write_comparison_report(folder)
    path.write_bytes(b"nothing")
    with pytest.raises(InvalidArgument, match=rf"{name} is not a readable image"):
        write_comparison_report(folder)
    Image.new("RGB", (9, 8)).save(path)
    with pytest.raises(InvalidArgument, match=rf"{name} has \(9, 8\) pixels and its uncached reference \(8, 8\)"):
        write_comparison_report(folder)
    assert not (folder / "report.html").exists()


def test_clips_play_beside_stills_and_the_middle_difference(tmp_path: Path) -> None:
    folder = with_clips(small(), tmp_path)
    html = write_comparison_report(folder).read_text(encoding="utf-8")
    clips = Page(html).all("video")
    assert [a["aria-label"] for a in clips] == ["no cache", "fitted (ours)"]
    assert all({"muted", "loop", "playsinline"} <= a.keys() for a in clips)
    assert (
        base64.b64decode((clips[0]["src"] or "").removeprefix("data:video/mp4;base64,"))
        == (folder / "samples" / "no-cache-0-0.mp4").read_bytes()
    )
    values: dict[str, list[int]] = {}
    for a in Page(html).all("img"):
        with Image.open(io.BytesIO(base64.b64decode((a["src"] or "").split(",")[1]))) as image:
            values.setdefault(a["alt"] or "", []).append(image.convert("RGB").getpixel((16, 16))[1])
    difference = values.pop("difference from no cache, amplified ×4")
    assert difference == [pytest.approx(40, abs=12)]  # 4 · 10, through a lossy codec
    assert values["first frame"] == [pytest.approx(40, abs=4), pytest.approx(50, abs=4)]
    assert values["last frame"] == [pytest.approx(120, abs=4), pytest.approx(130, abs=4)]
    assert "No decoder was at hand" not in html


def test_without_a_decoder_clips_play_and_the_page_says_what_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = with_clips(small(), tmp_path)
    monkeypatch.setattr(comparison_samples, "find_spec", lambda name: None)
    html = write_comparison_report(folder).read_text(encoding="utf-8")
    assert len(Page(html).all("video")) == 2 and not Page(html).all("img")
    assert "install ertacache[video] to get them" in words(html)


def test_a_broken_clip_is_named(tmp_path: Path) -> None:
    folder = with_clips(small(), tmp_path)
    path = folder / "samples" / "fitted@0.5-0-0.mp4"
    path.write_bytes(b"\0\0\0\x20ftypisom" + b"\0" * 200)
    name = r"samples/fitted@0\.5-0-0\.mp4 \(results\.jsonl, line 6\)"
    with pytest.raises(InvalidArgument, match=rf"{name} cannot be decoded"):
        write_comparison_report(folder)
    path.write_bytes(b"something else")
    with pytest.raises(InvalidArgument, match=rf"{name} is not an mp4 file"):
        write_comparison_report(folder)
    path.unlink()
    with pytest.raises(InvalidArgument, match=rf"{name} is not in"):
        write_comparison_report(folder)
