"""Result files of an ablation that cannot be shown, each named with its line."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ablation_results import default_rows, write
from ertacache.errors import InvalidArgument
from ertacache.evaluation.report.ablation import write_report


def test_a_missing_or_broken_sample_is_named(tmp_path: Path) -> None:
    results = write(tmp_path)
    path = tmp_path / "s" / "uniform-0.png"
    path.unlink()
    with pytest.raises(InvalidArgument, match=r"s/uniform-0\.png of 'residual, uniform' \(line 4\).*keep results"):
        write_report(results, tmp_path / "r.html")
    path.write_bytes(b"not an image")
    with pytest.raises(InvalidArgument, match=r"s/uniform-0\.png .*is not a readable image; run the comparison"):
        write_report(results, tmp_path / "r.html")
    Image.new("RGB", (9, 8)).save(path)
    with pytest.raises(InvalidArgument, match=r"\(9, 8\) pixels and its uncached reference \(8, 8\)"):
        write_report(results, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_a_malformed_line_is_named_by_number(tmp_path: Path) -> None:
    results = write(tmp_path)
    whole = results.read_text(encoding="utf-8")
    results.write_text(whole[: whole.rindex('"samples"')], encoding="utf-8")
    with pytest.raises(InvalidArgument, match=r"results\.jsonl, line 7 is not JSON .*run the comparison again"):
        write_report(results, tmp_path / "r.html")
    results.write_text(whole + "[1, 2]\n", encoding="utf-8")
    with pytest.raises(InvalidArgument, match="line 8 is not a JSON object"):
        write_report(results, tmp_path / "r.html")
    results.write_text(whole.split("\n", 1)[1], encoding="utf-8")
    with pytest.raises(InvalidArgument, match=r"line 1 is not a .*header"):
        write_report(results, tmp_path / "r.html")
    results.write_text(whole.split("\n", 1)[0], encoding="utf-8")
    with pytest.raises(InvalidArgument, match="has a header and no rows"):
        write_report(results, tmp_path / "r.html")
    with pytest.raises(InvalidArgument, match=r"nowhere is not there; pass a folder that"):
        write_report(tmp_path / "nowhere", tmp_path / "r.html")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("schedule", "#x.#", r"line 4: 'schedule' must be a text of '#'"),
        ("K", 3, r"line 4: 'K' must be the 2 computed steps of its schedule, found 3"),
        ("label", 5, "line 4: 'label' must be text, found 5"),
        ("latent_error", float("nan"), "line 4: 'latent_error' must be a finite number, found nan"),
        ("denoise_seconds", True, "'denoise_seconds' must be a finite number, found True"),
        ("psnr", None, "'psnr' must be an object, found None"),
        ("ssim", {"mean": 1.0, "values": []}, "line 4, ssim: 'std' must be a finite number, found nothing"),
        ("sigmas", [1.0, 0.0], "'sigmas' must be a list of 5 numbers"),
        (
            "decomposition",
            {"feature_shift": [0.1]},
            "decomposition: 'feature_shift' must be a list of 4 numbers",
        ),
        ("samples", ["a", "b", "c"], "'samples' must be at most one file for each of the 2 prompts"),
        ("calls", {"cond": 1.5}, "line 4, calls: 'cond' must be a whole number, found 1.5"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, key: str, value: Any, message: str) -> None:
    rows = default_rows()
    rows[2][key] = value
    with pytest.raises(InvalidArgument, match=message):
        write_report(write(tmp_path, rows), tmp_path / "r.html")
