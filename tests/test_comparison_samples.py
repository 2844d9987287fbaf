import base64
import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from comparison_folder import small, with_clips, with_pictures
from ertacache.errors import InvalidArgument
from ertacache.evaluation.report.comparison import write_comparison_report
from ertacache.evaluation.sample_files import save_clip_sample
from report_page import Page, words


def test_pictures_and_differences_hold_the_right_pixels(tmp_path: Path) -> None:
    html = write_comparison_report(with_pictures(small(), tmp_path)).read_text(encoding="utf-8")
    images = {}
    for attributes in Page(html).all("img"):
        assert (attributes["class"] or "").split()[1:] == ["pixels"] and attributes["src"]
        with Image.open(io.BytesIO(base64.b64decode(attributes["src"].split(",")[1]))) as image:
            images[attributes["alt"]] = image.convert("RGB").getpixel((3, 3))
    assert images == {
        "no cache": (100, 100, 100),
        "fitted (ours)": (110, 20, 100),
        "Difference from no cache, amplified ×2": (20, 160, 0),  # 2 · |110 − 100|, 2 · 80, 0
    }
    assert "36.0 dB, difference ×2" in words(html)  # of the first prompt, not the mean


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


def pixels(uri: str | None, x: int) -> list[int]:
    """The green of one column of pixels of every frame in a data URI, at mid-height."""
    with Image.open(io.BytesIO(base64.b64decode((uri or "").split(",")[1]))) as image:
        values: list[int] = []
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            values.append(image.convert("RGB").getpixel((x, 16))[1])
        return values


def test_clips_play_above_their_frames_and_the_difference_of_those(tmp_path: Path) -> None:
    html = write_comparison_report(with_clips(small(), tmp_path)).read_text(encoding="utf-8")
    images = Page(html).all("img")
    assert [(a["alt"], a["class"]) for a in images] == [
        ("no cache", "loop pixels"),
        ("no cache, frames", "shown frames pixels"),
        ("fitted (ours)", "loop pixels"),
        ("fitted (ours), frames", "shown frames pixels"),
        ("Difference from no cache, amplified ×16", "difference frames pixels"),
    ]
    assert pixels(images[2]["src"], 16) == [pytest.approx(50 + 10 * n, abs=3) for n in range(9)]
    # Frames 0, 2, 4, 6 and 8, 32 pixels wide and 2 apart, without loss.
    assert [pixels(images[1]["src"], 34 * n + 16)[0] for n in range(5)] == [40, 60, 80, 100, 120]
    assert [pixels(images[3]["src"], 34 * n + 16)[0] for n in range(5)] == [50, 70, 90, 110, 130]
    assert [pixels(images[4]["src"], 34 * n + 16)[0] for n in range(5)] == [160] * 5
    assert '<p class="clips" hidden><button type="button"></button></p>' in html
    assert 'class="sheet clips-apart"' in html


def test_the_quality_of_each_frame_is_drawn_for_clips_only(tmp_path: Path) -> None:
    html = write_comparison_report(with_clips(small(), tmp_path / "clips")).read_text(encoding="utf-8")
    assert "<title>fitted (ours): 27.0 to 35.0 dB</title>" in html  # 36 and 34 dB, less 0 to 8
    assert 'aria-label="PSNR of each frame; highest: fitted (ours)"' in html
    assert len(Page(html).all("a", href="#frames")) == len(Page(html).all("h2", id="frames")) == 1
    html = write_comparison_report(with_pictures(small(), tmp_path / "pictures")).read_text(encoding="utf-8")
    assert "Quality of each frame" not in html and 'class="clips"' not in html and "sheet clips-apart" not in html


def test_a_broken_clip_is_named(tmp_path: Path) -> None:
    folder = with_clips(small(), tmp_path)
    path = folder / "samples" / "fitted@0.5-0-0.webp"
    name = r"samples/fitted@0\.5-0-0\.webp \(results\.jsonl, line 6\)"
    save_clip_sample(torch.rand(4, 3, 32, 32), path)
    with pytest.raises(InvalidArgument, match=rf"{name} has 4 frames and its row 9; run the comparison again"):
        write_comparison_report(folder)
    save_clip_sample(torch.rand(9, 3, 32, 16), path)
    with pytest.raises(InvalidArgument, match=rf"{name} has \(16, 32\) pixels and its uncached reference \(32, 32\)"):
        write_comparison_report(folder)
    path.write_bytes(b"something else")
    with pytest.raises(InvalidArgument, match=rf"{name} is not a readable image"):
        write_comparison_report(folder)
    path.unlink()
    with pytest.raises(InvalidArgument, match=rf"{name} is not in"):
        write_comparison_report(folder)


def test_clips_of_unequal_length_are_refused(tmp_path: Path) -> None:
    folder = with_clips(small(), tmp_path)
    lines = (folder / "results.jsonl").read_text().splitlines()
    lines[5] = json.dumps({**json.loads(lines[5]), "frame_psnr": [30.0] * 4})
    (folder / "results.jsonl").write_text("\n".join(lines) + "\n")
    save_clip_sample(torch.rand(4, 3, 32, 32), folder / "samples" / "fitted@0.5-0-0.webp")
    with pytest.raises(InvalidArgument, match=r"line 6\) has 4 frames and its uncached reference 9; generate equally"):
        write_comparison_report(folder)
