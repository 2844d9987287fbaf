"""What becomes of the frontier's figures: means, differences, tables, the picture, and the committed file."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmark_scripts import ROOT, load

cells: Any = load("frontier_cells")
merge: Any = load("frontier_merge")
page: Any = load("frontier_page")
plot: Any = load("frontier_plot")

RESULTS = ROOT / "benchmarks" / "results" / "frontier.json"
CELLS = [cells.Cell("tiny-flux", 10.0, split, 4, 2) for split in (0, 1)]
FACTS = {"machine": "one core", "versions": {"torch": "2", "diffusers": "1"}}
#: Method -> cost, and PSNR of the two prompts of each split.
FIGURES: dict[str, tuple[float, list[list[float]]]] = {
    "plan-balanced": (0.5, [[40.0, 44.0], [42.0, 50.0]]),
    "plan-fast": (0.5, [[39.0, 42.0], [42.0, 47.0]]),
    "uniform": (0.5, [[30.0, 34.0], [32.0, 34.0]]),
    "pab": (0.56, [[60.0, 60.0], [60.0, 60.0]]),
    "taylorseer": (0.54, [[34.0, 36.0], [34.0, 44.0]]),
    "fewer-steps": (0.49, [[33.0, 33.0], [33.0, 33.0]]),
}


def written(work: Path, budget: int = 2, **changes: Any) -> None:
    """The files of a run with the figures above."""
    for cell in CELLS:
        for method, (cost, psnr) in FIGURES.items():
            own = {"method": method, "title": method.upper(), "T": 30, "K": 15, "knob": f"share {cell.split}"}
            own |= {"psnr": psnr[cell.split], "ssim": [0.5, 0.75], "cost": [cost, cost], "settings": cell.settings}
            path = cell.file(work, method, budget)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(own | changes))
        refused = {"method": "t-gate", "title": "T-GATE", "T": 30, "K": 15, "refusal": "no gate"}
        cell.file(work, "t-gate", budget).write_text(json.dumps({**refused, "settings": cell.settings}))


@pytest.fixture
def result(tmp_path: Path) -> Any:
    written(tmp_path)
    found = merge.merged(CELLS, [2, 3], tmp_path, FACTS)
    merge.write(found, tmp_path / "frontier.json")
    assert json.loads((tmp_path / "frontier.json").read_text()) == json.loads(json.dumps(found))
    return json.loads((tmp_path / "frontier.json").read_text())


def test_a_row_is_the_mean_over_the_prompts_of_a_split_which_it_keeps(result: Any) -> None:
    first, second = result["settings"]
    assert [first["split"], second["split"]] == [0, 1] and first["refused"] == {"t-gate": "no gate"}
    rows = page.rows_of(result, first)
    assert list(rows) == ["pab", "plan-balanced", "plan-fast", "taylorseer", "fewer-steps", "uniform"]
    assert rows["plan-balanced"] == {
        "method": "plan-balanced", "cost": 0.5, "psnr": 42.0, "standard_error": 2.0, "p10": 40.4, "worst": 40.0,
        "ssim": 0.625, "knob": "share 0", "values": [40.0, 44.0],
    }  # fmt: skip
    assert page.rows_of(result, second)["plan-balanced"]["values"] == [42.0, 50.0]
    assert result["titles"]["uniform"] == "UNIFORM"


def test_the_lead_is_over_the_best_other_method_at_that_cost(result: Any) -> None:
    """Not over our own other plans, nor over who costs more than a tenth more; prompt by prompt."""
    assert [setting["gain"] for setting in result["settings"]] == [
        {"over": "taylorseer", "mean": 7.0, "standard_error": 1.0, "goal": 6.0},
        {"over": "taylorseer", "mean": 7.0, "standard_error": 1.0, "goal": 6.0},
    ]
    assert [setting["over_even"] for setting in result["settings"]] == [
        {"over": "plan-fast", "mean": 1.5, "standard_error": 0.5},
        {"over": "plan-fast", "mean": 1.5, "standard_error": 1.5},
    ]


def test_a_goal_belongs_to_its_budget() -> None:
    rows = [merge.Row(method, psnr[0], 0.5, cost, "k") for method, (cost, psnr) in FIGURES.items()]
    for budget, goal in ((2, 6.0), (3, 6.0), (5, 3.0)):
        assert merge.compared(rows, budget, 0.5)["gain"]["goal"] == goal
    assert "goal" not in merge.compared(rows, 4, 0.5)["gain"]
    assert merge.compared(rows, 2, 0.51)["gain"]["over"] == "pab"
    assert merge.compared([row for row in rows if row.method != "plan-balanced"], 2, 0.5) == {}


def test_what_is_measured_later_joins_what_the_result_has(result: Any, tmp_path: Path) -> None:
    work = tmp_path / "later"
    own = {"method": "gcache", "title": "GCACHE", "T": 30, "K": 15, "knob": "n", "settings": CELLS[1].settings}
    path = CELLS[1].file(work, "gcache", 2)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(own | {"psnr": [41.0, 45.0], "ssim": [0.5, 0.5], "cost": [0.5, 0.5]}))
    found = merge.merged(CELLS, [2], work, FACTS, result)
    first, second = found["settings"]
    assert first == result["settings"][0] and found["titles"] == {**result["titles"], "gcache": "GCACHE"}
    assert second["gain"] == {"over": "gcache", "mean": 3.0, "standard_error": 2.0, "goal": 6.0}
    assert [row for row in second["rows"] if row[0] != "gcache"] == result["settings"][1]["rows"]
    path.write_text(json.dumps(own | {"refusal": "none such"}))
    again = merge.merged(CELLS, [2], work, FACTS, found)["settings"][1]
    assert (
        again["refused"] == {"t-gate": "no gate", "gcache": "none such"}
        and again["rows"] == result["settings"][1]["rows"]
    )


@pytest.mark.parametrize("missing", ["taylorseer", "plan-fast", "plan-balanced"])
def test_a_row_without_its_prompts_is_not_compared(result: Any, tmp_path: Path, missing: str) -> None:
    for row in result["settings"][0]["rows"]:
        row[-1] = []
    written(work := tmp_path / "later")
    CELLS[0].file(work, missing, 2).unlink()
    said = f"split-0, T/2: {missing} without a value for each prompt; measure that, too"
    with pytest.raises(SystemExit, match=said):
        merge.merged(CELLS, [2], work, FACTS, result)
    assert merge.merged(CELLS, [2], tmp_path / "none", FACTS, result)["settings"] == result["settings"]


def test_a_row_without_its_prompts_stays_as_it_is(result: Any, tmp_path: Path) -> None:
    for row in result["settings"][0]["rows"]:
        row[-1] = []
    written(work := tmp_path / "later")
    CELLS[0].file(work, "uniform", 2).unlink()
    found = merge.merged(CELLS, [2], work, FACTS, result)["settings"][0]
    assert {row[0]: row for row in found["rows"]}["uniform"] == result["settings"][0]["rows"][-1]
    assert [row[0] for row in found["rows"] if not row[-1]] == ["uniform"]
    assert found["gain"] == result["settings"][0]["gain"]


@pytest.mark.parametrize(("name", "value"), [("judged", 9), ("diffusers", "0")])
def test_a_result_of_other_prompts_or_versions_is_not_added_to(
    result: Any, tmp_path: Path, name: str, value: Any
) -> None:
    header = result["header"]
    (header if name in header else header["versions"])[name] = value
    said = rf"made with \{{'{name}': {value!r}\}}, not \{{'{name}': .*\}}; choose another --out"
    with pytest.raises(SystemExit, match=said):
        merge.merged(CELLS, [2], tmp_path, FACTS, result)


def test_nothing_measured_is_said(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"nothing is measured yet; run benchmarks/frontier\.py without --merge first"):
        merge.write(merge.merged(CELLS, [2], tmp_path / "none", {}), tmp_path / "frontier.json")


def test_files_of_another_run_are_refused(tmp_path: Path) -> None:
    written(tmp_path, settings={"judged": 9})
    with pytest.raises(
        SystemExit, match=r"split-0, .*, T/2 was made with \{'judged': 9\}, not .*; merge with its options"
    ):
        merge.merged(CELLS, [2], tmp_path, {})


def test_two_splits_are_one_line_and_their_errors_are_independent(result: Any) -> None:
    (line,) = [line for line in page.goals_table(result).splitlines() if line.startswith("| tiny-flux, guidance 10 |")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    error = math.hypot(2.0, 4.0) / 2
    assert cells[1:5] == ["15 of 30", f"**44.0 ± {error:.1f}**", f"{(40.4 + 42.8) / 2:.1f} / 40.0", "0.625"]
    assert cells[5] == f"37.0 ± {math.hypot(1.0, 5.0) / 2:.1f}, TAYLORSEER"
    assert cells[8:] == ["+7.0 ± 0.7", "+7.0 ± 1.0 / +7.0 ± 1.0", "+6: met", "+1.5 ± 0.8", "4"]


def test_a_goal_is_met_by_the_mean_of_the_splits(result: Any) -> None:
    for mean, said in ((4.9, "+6: not met"), (5.0, "+6: met")):
        result["settings"][1]["gain"]["mean"] = mean
        assert f"| {said} |" in page.goals_table(result)


def test_the_best_other_is_named_for_each_split_and_the_tables_show_every_row(result: Any) -> None:
    second = result["settings"][1]
    second["gain"]["over"] = "uniform"
    second["rows"] = [row for row in second["rows"] if row[0] != "fewer-steps"]
    assert "| 34.0 ± 0.7, TAYLORSEER / UNIFORM |" in page.goals_table(result)
    text = page.part(result)
    assert "| **PLAN-BALANCED** | 42.0 ± 2.0 / 46.0 ± 4.0 | 0.500 |" in text
    assert "| FEWER-STEPS | 33.0 ± 0.0 / – | 0.490 |" in text
    assert "- T-GATE: no gate" in text and "4 calibration and 2 judged prompts in a split" in text
    (left_out,) = [line for line in text.splitlines() if line.startswith("Not measured here: ")]
    assert "TeaCache" in left_out and "T-GATE" not in left_out and left_out.endswith("in [Results](results.md).")


def test_the_readmes_table_has_plan_best_other_and_fewer_steps(result: Any) -> None:
    lines = page.readme_part(result).splitlines()
    assert lines[-3:] == [
        "| | T/2 |", "|---|---:|", "| tiny-flux, guidance 10 | **44.0** / 37.0 / 33.0 (+7.0 ± 0.7) |"
    ]  # fmt: skip
    assert "Means over 4 prompts that no calibration has seen." in lines[2]


def test_the_readmes_table_leaves_out_a_split_that_has_no_lead_yet(result: Any) -> None:
    del result["settings"][1]["gain"]
    text = page.readme_part(result)
    assert (
        text.endswith("| tiny-flux, guidance 10 | **42.0** / 35.0 / 33.0 (+7.0 ± 1.0) |") and "over 2 prompts" in text
    )


def test_the_picture_has_a_panel_for_every_setting_and_our_line(result: Any, tmp_path: Path) -> None:
    other = {**result["settings"][0], "guidance": 14.0}
    plot.draw(result, tmp_path / "one.png")
    plot.draw({**result, "settings": [*result["settings"], other, {**other, "model": "tiny-wan"}]}, tmp_path / "3.png")
    one, three = (opened(tmp_path / name) for name in ("one.png", "3.png"))
    assert one.width == three.width == 800 and three.height == 2 * one.height
    ours = np.array([int(plot.COLOUR[n : n + 2], 16) for n in (1, 3, 5)])
    seen = [(np.abs(np.asarray(image, dtype=int) - ours).max(-1) < 12).sum() for image in (one, three)]
    assert 0 < seen[0] < seen[1]


def opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def test_the_committed_result_is_whole_and_small() -> None:
    assert RESULTS.stat().st_size < 200_000
    found = json.loads(RESULTS.read_text())
    head = found["header"]
    assert head["judged"] >= 32
    assert all(len(row[-1]) in (0, head["judged"]) for setting in found["settings"] for row in setting["rows"])
    assert {(s["model"], s["guidance"], s["budget"], s["split"]) for s in found["settings"]} >= {
        (model, weight, budget, split)
        for model, (_, weights) in cells.GUIDANCE.items()
        for weight in weights
        for split in (0, 1)
        for budget in cells.BUDGETS
    }
    for setting in found["settings"]:
        rows = page.rows_of(found, setting)
        assert {"plan-balanced", "plan-fast", "uniform", "fewer-steps"} <= set(rows)
        assert rows["plan-balanced"]["cost"] <= setting["K"] / setting["T"] + 0.005
