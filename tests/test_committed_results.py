"""The scripts that make results small enough to commit and draw their reports, on folders made up here."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import ablation_results
from benchmark_scripts import ROOT, load
from comparison_folder import small, with_clips, with_pictures
from ertacache.evaluation.comparison.folder import Folder
from ertacache.evaluation.report.comparison_file import ComparisonFile, read_comparison


@pytest.fixture(scope="module")
def compact() -> Any:
    return load("compact")


def lines(folder: Path, name: str = "results.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().split("\n") if line]


def content(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def figures(comparison: ComparisonFile) -> list[Any]:
    """Everything that reports and tables take from a comparison, but the line and the sample of a row."""
    everyone = (comparison.reference, *comparison.results)
    return [
        [(row.key, row.metrics, row.cost, row.step_cost, row.sigmas, row.denoiser_calls) for row in result.rows]
        + [result.ratios, result.peak_bytes, result.decomposition]
        for result in everyone
    ]


def test_a_compact_comparison_says_the_same_in_fewer_letters(compact: Any, tmp_path: Path) -> None:
    fake = small()
    fake.rows[1]["psnr"] = 30.123456789
    folder = with_pictures(fake, tmp_path)
    size, before = (folder / "results.jsonl").stat().st_size, read_comparison(folder)
    compact.compact(folder)
    fake.rows[1]["psnr"] = 30.1235
    after = read_comparison(folder)
    assert (folder / "results.jsonl").stat().st_size < 0.75 * size
    assert lines(folder)[2]["psnr"] == 30.1235
    assert [r[1:] for r in figures(after)[2:]] == [r[1:] for r in figures(before)[2:]]
    # The second prompt's row has the first's schedule, but not where the method decides at run time.
    rows = {(row["entrant"], row["prompt"]): row for row in lines(folder)[1:]}
    assert "step_cost" not in rows["fewer-steps@0.5", 1] and "sigmas" not in rows["fewer-steps@0.5", 1]
    assert rows["teacache@0.5", 1]["step_cost"] == [1.0, 0.0, 1.0, 0.5]
    done = content(folder)
    compact.compact(folder)
    assert content(folder) == done
    # A comparison knows its finished rows again.
    kept = Folder(folder, fake.header)
    assert all(kept.has(n, row["entrant"], row["prompt"], row["seed"]) for n, row in enumerate(fake.rows))


def test_only_the_samples_that_are_shown_stay(compact: Any, tmp_path: Path) -> None:
    fake = small()
    fake.header["prompts"] = [f"prompt {n}" for n in range(5)]
    fake.rows = [{**row, "prompt": n} for n in range(5) for row in small().rows[:6]]
    fake.timings = []
    folder = with_pictures(fake, tmp_path / "pictures")
    for n, row in enumerate(fake.of("fitted@0.5")):
        row["sample"] = f"samples/fitted@0.5-{n}-0.webp"
        row["decomposition"] = fake.of("fitted@0.5")[0]["decomposition"]
        Image.new("RGB", (8, 8), (n, 20, 100)).save(folder / row["sample"], lossless=True)
    compact.compact(fake.write(folder))
    kept = [row for row in lines(folder)[1:] if row["entrant"] == "fitted@0.5" and "sample" in row]
    assert [row["prompt"] for row in kept] == list(range(compact.PICTURES))
    assert all("decomposition" in row for row in kept)
    names = {path.name for path in (folder / "samples").iterdir()}
    assert names == {"no-cache-0-0.webp", *(f"fitted@0.5-{n}-0.webp" for n in range(compact.PICTURES))}


def test_clips_lose_nothing(compact: Any, tmp_path: Path) -> None:
    from ertacache.evaluation.report.embedded import open_clip

    folder = with_clips(small(), tmp_path)
    path = folder / "samples" / "fitted@0.5-0-0.webp"
    before = [frame.tobytes() for frame in open_clip(path, "clip", 9)]
    compact.compact(folder)
    assert [frame.tobytes() for frame in open_clip(path, "clip", 9)] == before


def test_an_ablation_keeps_one_sample_of_the_rows_that_tables_name(compact: Any, tmp_path: Path) -> None:
    rows = ablation_results.default_rows()
    for name in ("none-0", "uniform-0"):
        rows[0 if name[0] == "n" else 2]["samples"] = [f"samples/{name}.png", f"samples/{name}.png"]
    rows[3]["samples"] = ["samples/uniform-0.png"]  # a stage that no table shows with pictures
    results = ablation_results.write(tmp_path, rows)
    (tmp_path / "s").rename(tmp_path / "samples")
    compact.compact(tmp_path)
    assert [row["samples"] for row in lines(tmp_path)[1:4]] == [["samples/none-0.webp"], [], ["samples/uniform-0.webp"]]
    assert lines(tmp_path)[4]["samples"] == []
    assert {path.name for path in (tmp_path / "samples").iterdir()} == {"none-0.webp", "uniform-0.webp"}
    with Image.open(tmp_path / "samples" / "uniform-0.webp") as image:
        assert image.convert("RGB").getpixel((3, 3)) == (110, 20, 100)
    page = load("reports").draw(results.parent, tmp_path / "site")
    assert page == [tmp_path / "site" / "report.html"] and "110" not in page[0].name


def test_every_folder_of_results_gets_a_report_at_its_place(tmp_path: Path) -> None:
    results = tmp_path / "results"
    with_pictures(small(), results / "compare" / "one")
    (results / "ablation").mkdir()
    ablation_results.write(results / "ablation")
    (results / "ablation" / "parts" / "0-15").mkdir(parents=True)
    ablation_results.write(results / "ablation" / "parts" / "0-15")  # of a run under way
    pages = load("reports").draw(results, tmp_path / "site")
    assert [page.relative_to(tmp_path / "site").as_posix() for page in pages] == [
        "ablation/report.html",
        "compare/one/report.html",
    ]
    assert all(page.is_file() for page in pages)


def test_the_committed_results_are_small_and_whole() -> None:
    results = ROOT / "benchmarks" / "results"
    files = [path for path in results.rglob("*") if path.is_file() and path.name != "report.html"]
    kept = [path for path in files if not {"parts", "references", "prepared"} & set(path.relative_to(results).parts)]
    assert sum(path.stat().st_size for path in kept) <= 9e6
    for file in results.rglob("results.jsonl"):
        if "parts" not in file.parts:
            named = {name for row in lines(file.parent)[1:] for name in [*row.get("samples", []), row.get("sample")]}
            assert named - {None} == {f"samples/{path.name}" for path in (file.parent / "samples").iterdir()}
