import json
from pathlib import Path
from typing import Any

import pytest

from comparison_folder import FakeComparison, make_row, small
from ertacache.errors import InvalidArgument
from ertacache.evaluation.report.comparison_file import Gain, Quartiles, Result, read_comparison
from ertacache.evaluation.report.comparison_rows import OutputChange


def read(fake: FakeComparison, folder: Path) -> dict[str, Result]:
    comparison = read_comparison(fake.write(folder))
    return {result.entrant.id: result for result in (comparison.reference, *comparison.results)}


def test_rows_are_added_up_per_entrant(tmp_path: Path) -> None:
    results = read(small(), tmp_path)
    teacache = results["teacache@0.5"]
    assert teacache.psnr.mean == 27.5 and teacache.psnr.values == (28.0, 27.0)
    assert teacache.psnr.std == pytest.approx(0.5**0.5)
    assert teacache.cost.values == (0.75, 0.625) and teacache.cost.mean == 0.6875
    assert teacache.metric("ssim").mean == pytest.approx(0.6375)
    assert teacache.stat(lambda row: row.denoiser_calls).values == (3, 2)
    assert teacache.step_cost == (1.0, 0.5, 1.0, 0.25)
    assert teacache.adaptive and not results["uniform@0.5"].adaptive
    assert [id for id, result in results.items() if result.equal and result.rows] == ["no-cache"]
    assert results["fitted@0.5"].peak_bytes == 2**31


def test_one_row_has_no_spread(tmp_path: Path) -> None:
    fake = small()
    fake.header["prompts"] = ["one"]
    fake.rows = [row for row in fake.rows if row["prompt"] == 0]
    fake.timings = fake.timings[: len(fake.rows)]
    fitted = read(fake, tmp_path)["fitted@0.5"]
    assert fitted.psnr.std == 0 and fitted.speedup == Quartiles(2.0, 2.0, 2.0)


def test_the_speed_up_is_paired_with_the_same_prompt(tmp_path: Path) -> None:
    fake = small()
    fake.header["prompts"] = ["a", "b", "c"]
    for prompt, seconds in ((0, 4.0), (1, 6.0), (2, 10.0)):
        for entrant, share in (("no-cache", 1.0), ("uniform@0.5", (0.5, 0.25, 0.1)[prompt])):
            if prompt == 2:
                fake.add(make_row(entrant, prompt, [1.0] * 4, 30.0), 0.0)
            times = next(t for t in fake.timings if (t["entrant"], t["prompt"]) == (entrant, prompt))
            times["seconds"] = seconds * share
    uniform = read(fake, tmp_path)["uniform@0.5"]
    assert uniform.ratios == (2.0, 4.0, 10.0)
    assert uniform.speedup == Quartiles(median=4.0, low=3.0, high=7.0)


def test_gains_are_paired_and_counted(tmp_path: Path) -> None:
    fake = small()
    results = read(fake, tmp_path / "all")
    assert results["fitted@0.5"].gain_over(results["uniform@0.5"]) == Gain(mean=3.5, wins=2, pairs=2)
    assert results["fewer-steps@0.5"].gain_over(results["fitted@0.5"]) == Gain(mean=-5.5, wins=0, pairs=2)
    # Where one row is missing, only the prompt that both have counts, whatever the means are.
    last = fake.of("uniform@0.5")[1]
    fake.timings.pop(fake.rows.index(last))
    fake.rows.remove(last)
    results = read(fake, tmp_path / "part")
    assert results["fitted@0.5"].gain_over(results["uniform@0.5"]) == Gain(mean=4.0, wins=1, pairs=1)
    assert results["fitted@0.5"].gain_over(results["pab@0.5"]) is None


def test_a_missed_cost_is_seen_and_does_not_win(tmp_path: Path) -> None:
    fake = small()
    for row in fake.of("teacache@0.5"):
        row["psnr"] = 50.0
    comparison = read_comparison(fake.write(tmp_path))
    section, published = comparison.sections
    teacache, best = section.of("teacache"), section.best
    assert teacache is not None and teacache.missed and teacache.too_dear
    assert best is not None and best.entrant.id == "fitted@0.5" and not best.missed
    assert published.best is None and published.results[0].entrant.label == "TeaCache, very slow"
    for row in fake.of("teacache@0.5"):
        row["cost"] = 0.469
    cheap = read_comparison(fake.write(tmp_path)).sections[0].of("teacache")
    assert cheap is not None and cheap.missed and not cheap.too_dear
    for row in fake.of("teacache@0.5"):
        row["cost"] = 0.529
    close = read_comparison(fake.write(tmp_path)).sections[0].of("teacache")
    assert close is not None and not close.missed


def test_sections_follow_the_header_and_hold_who_is_absent(tmp_path: Path) -> None:
    fake = small()
    fake.header["costs"] = [0.33, 0.5]
    sections = read_comparison(fake.write(tmp_path)).sections
    assert [section.target for section in sections] == [0.5, None]
    assert [entrant.refusal for entrant in sections[0].absent] == ["its blocks are not known"]
    assert [result.entrant.method for result in sections[0].results] == ["fewer-steps", "uniform", "teacache", "fitted"]


def test_the_decomposition_is_the_rms_over_sampled_rows(tmp_path: Path) -> None:
    fake = small()
    fake.of("fitted@0.5")[1]["decomposition"] = {
        "feature_shift": [0.0, 0.4, 0.0, 0.3],
        "amplified": [0.0] * 4,
        "deviation": [0.0, 0.0, 0.1, 0.7, 0.2],
    }
    results = read(fake, tmp_path)
    parts = results["fitted@0.5"].decomposition
    assert parts is not None
    assert parts.feature_shift == pytest.approx((0, 0.125**0.5, 0, 0.125**0.5))
    assert parts.deviation == pytest.approx((0, 0, 0.1, 0.5, 0.2))
    assert results["uniform@0.5"].decomposition is None


def test_a_folder_under_way_says_what_is_missing(tmp_path: Path) -> None:
    fake = small()
    assert read_comparison(fake.write(tmp_path)).unfinished == 0
    fake.rows, fake.timings = fake.rows[:8], fake.timings[:9]  # times are written before their row
    folder = fake.write(tmp_path)
    with (folder / "results.jsonl").open("a") as file:
        file.write('{"kind": "row", "entr')  # half a line, as a killed process leaves it
    comparison = read_comparison(folder)
    assert (comparison.rows_found, comparison.rows_expected, comparison.unfinished) == (8, 12, 4)
    assert comparison.timed == 8


def test_without_times_there_is_no_speed_up(tmp_path: Path) -> None:
    folder = small().write(tmp_path)
    (folder / "timings.jsonl").unlink()
    comparison = read_comparison(folder)
    assert comparison.timed == 0 and comparison.results[0].speedup is None


def test_the_most_frequent_number_of_steps_makes_the_schedule(tmp_path: Path) -> None:
    fake = small()
    fake.header["prompts"] = ["a", "b", "c"]
    fake.add(make_row("uniform@0.5", 2, [1.0, 0.5], 31.0), 1.0)
    uniform = read(fake, tmp_path)["uniform@0.5"]
    assert uniform.schedules == ((1.0, 0.0, 1.0, 0.0),) * 2 and uniform.step_cost == (1.0, 0.0, 1.0, 0.0)


def test_l1_curves_are_read_by_context(tmp_path: Path) -> None:
    fake = small()
    tables = {"distances": [], "truth": [[0.3, 0.2, 0.1]] * 2, "predicted": [[0.2, 0.2, 0.2]] * 2}
    fake.l1 = {"contexts": {"cond": tables}}
    changes = read_comparison(fake.write(tmp_path)).changes
    assert changes == {"cond": OutputChange(((0.3, 0.2, 0.1),) * 2, ((0.2, 0.2, 0.2),) * 2)}
    for key, value, message in (
        ("truth", [[0.3, 0.2]], r"l1\.json, contexts, cond: 'truth\[0\]' must be a list of 3 numbers, not 2"),
        ("predicted", [[0.2] * 3], "'predicted' must be a list of 2 lists, one for each prompt"),
        ("truth", [], "'truth' must be a list with at least one list"),
    ):
        fake.l1 = {"contexts": {"cond": {**tables, key: value}}}
        with pytest.raises(InvalidArgument, match=message):
            read_comparison(fake.write(tmp_path))


def test_a_malformed_file_is_named_with_its_line(tmp_path: Path) -> None:
    folder = small().write(tmp_path)
    results = folder / "results.jsonl"
    whole = results.read_text(encoding="utf-8")
    lines = whole.splitlines(keepends=True)
    for text, message in (
        (whole.replace('"ssim"', '"ssim', 1), r"results\.jsonl, line 1 is not JSON \(.* at column"),
        (whole + "[1]\n", r"results\.jsonl, line 14 is not a JSON object"),
        ("".join(lines[1:]), r"results\.jsonl, line 1 is not a .*header"),
        (lines[0], r"results\.jsonl has a header and no rows yet; let the comparison run on"),
        ("", r"line 1 is not a .*header"),
        (lines[0] + lines[2], r"results\.jsonl has no row of 'no-cache'"),
    ):
        results.write_text(text, encoding="utf-8")
        (folder / "timings.jsonl").unlink(missing_ok=True)
        with pytest.raises(InvalidArgument, match=message):
            read_comparison(folder)
    results.write_bytes(b"\xff\n")
    with pytest.raises(InvalidArgument, match=r"results\.jsonl is not text in UTF-8"):
        read_comparison(folder)
    results.write_text(whole, encoding="utf-8")
    (folder / "entrants.json").write_text('{"entrants": [\n]', encoding="utf-8")
    with pytest.raises(InvalidArgument, match=r"entrants\.json, line 2 is not JSON"):
        read_comparison(folder)
    with pytest.raises(InvalidArgument, match=r"results\.jsonl is not there; pass a folder that"):
        read_comparison(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("psnr", float("nan"), "line 3: 'psnr' must be a finite number, found nan"),
        ("ssim", None, "line 3: 'ssim' must be a finite number, found None"),
        ("cost", True, "line 3: 'cost' must be a finite number, found True"),
        ("steps", 3, "line 3: 'step_cost' must be a list of 3 numbers, not 2"),
        ("steps", 0, "line 3: 'steps' must be a whole number of at least 1, found 0"),
        ("sigmas", [1.0, 0.0], "line 3: 'sigmas' must be a list of 3 numbers, not 2"),
        ("denoiser_calls", 1.5, "line 3: 'denoiser_calls' must be a whole number"),
        ("prompt", 2, "line 3: 'prompt' must be a whole number from 0 to 1, found 2"),
        ("seed", 1, "line 3: 'seed' must be a whole number from 0 to 0, found 1"),
        ("entrant", "else", r"line 3: 'entrant' must be an id of entrants\.json, found 'else'"),
        ("entrant", "pab@0.5", "line 3: 'entrant' must be one that was not refused"),
        ("entrant", "no-cache", "line 3: 'entrant' must be another one: prompt 0, seed 0 is on line 2 already"),
        ("decomposition", {"feature_shift": [0.1]}, "decomposition: 'feature_shift' must be a list of 4 numbers"),
        ("sample", "../secret.webp", "line 3: 'sample' must be a path inside of the folder"),
        ("sample", "/etc/secret.mp4", "line 3: 'sample' must be a path inside of the folder"),
        ("sample", 5, "line 3: 'sample' must be text"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, key: str, value: Any, message: str) -> None:
    fake = small()
    fake.rows[1][key] = value
    with pytest.raises(InvalidArgument, match=rf"results\.jsonl, {message}" if message[0] == "l" else message):
        read_comparison(fake.write(tmp_path))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("prompts", [], "line 1: 'prompts' must be at least one text"),
        ("metrics", ["ssim"], "line 1: 'metrics' must be a list with 'psnr' in it"),
        ("sigmas", [1.0, 0.0], "line 1: 'sigmas' must be a list of 5 numbers, not 2"),
        ("missing_metrics", {"lpips": 3}, "line 1, missing_metrics: 'lpips' must be text, found 3"),
        ("video", "no", "line 1: 'video' must be true or false, found 'no'"),
        ("seeds", 0, "line 1: 'seeds' must be a whole number of at least 1"),
    ],
)
def test_a_wrong_header_is_named(tmp_path: Path, key: str, value: Any, message: str) -> None:
    fake = small()
    fake.header[key] = value
    with pytest.raises(InvalidArgument, match=message):
        read_comparison(fake.write(tmp_path))


@pytest.mark.parametrize(
    ("index", "key", "value", "message"),
    [
        (1, "id", "no-cache", "entrant 2: 'id' must be another one than those before it"),
        (0, "id", "plain", "entrant 1: 'id' must be 'no-cache' for the first entrant and for no other"),
        (2, "title", None, "entrant 3: 'title' must be text, found None"),
        (2, "settings", [], r"entrant 3: 'settings' must be an object, found \[\]"),
        (2, "target", "half", "entrant 3: 'target' must be a finite number, found 'half'"),
    ],
)
def test_a_wrong_entrant_is_named(tmp_path: Path, index: int, key: str, value: Any, message: str) -> None:
    fake = small()
    fake.entrants[index][key] = value
    with pytest.raises(InvalidArgument, match=rf"entrants\.json, {message}"):
        read_comparison(fake.write(tmp_path))
    (tmp_path / "entrants.json").write_text(json.dumps({"entrants": []}))
    with pytest.raises(InvalidArgument, match=r"entrants\.json names no entrants"):
        read_comparison(tmp_path)


def test_times_that_fit_no_row_are_named(tmp_path: Path) -> None:
    fake = small()
    fake.timings[3]["entrant"] = "uniform@0.5"
    with pytest.raises(InvalidArgument, match=r"timings\.jsonl, line 4: 'entrant' must be another one.*timed before"):
        read_comparison(fake.write(tmp_path))
    fake.timings[3]["entrant"] = "pab@0.5"
    with pytest.raises(InvalidArgument, match=r"line 4: 'entrant' must be one with a row for prompt 0, seed 0"):
        read_comparison(fake.write(tmp_path))
    fake.timings[3] |= {"entrant": "teacache@0.5", "seconds": 0}
    with pytest.raises(InvalidArgument, match="line 4: 'seconds' must be more than 0, found 0"):
        read_comparison(fake.write(tmp_path))
