"""benchmarks/split.py: what it judges, that rows are made once, and that tables are what the files say."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmark_scripts import load
from ertacache.calibration.pipeline_run import call_pipeline
from ertacache.calibration.prompts import Prompts
from ertacache.metrics import psnr
from ertacache.split import split
from ertacache.split.recorded import SplitRuns
from ertacache_zoo import catalogue

script: Any = load("split")
page: Any = load("split_page")
plot: Any = load("split_plot")
T = 5
OPTIONS = ["--small", "tiny-flux:3", "--fitted", "1", "--chosen", "1", "--judged", "1", "--steps", str(T)]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("split")
    script.main([*OPTIONS, "--work", str(folder), "--rows", "switch,fewer,measured,times"])
    return folder


def rows_in(work: Path) -> dict[str, Any]:
    found = (json.loads(path.read_text()) for path in (work / "tiny-flux+tiny-flux-3").glob("* *.json"))
    return {row["row"]: row for row in found}


def test_every_row_is_there_and_none_is_made_twice(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_in(work)
    assert set(rows) == {name for name in script.rows_of(T) if name.split()[0] not in ("any", "target", "cached")}

    def again(*_: Any, **__: Any) -> None:
        raise AssertionError("run again")

    monkeypatch.setattr(SplitRuns, "run", again)
    script.main([*OPTIONS, "--work", str(work), "--rows", "switch,fewer,measured,times"])
    with pytest.raises(SystemExit, match=r"was made with .* choose another --work"):
        script.main([*OPTIONS, "--work", str(work), "--steps", "6"])


def test_a_row_is_what_a_split_run_gives(work: Path) -> None:
    row = rows_in(work)["switch 1"]
    setting = script.Setting("tiny-flux", "tiny-flux:3", 1, 1, 1, T, work)
    large, small = setting.pair
    assert [len(pipe.transformer.single_transformer_blocks) for pipe in (large, small)] == [4, 3]
    prompts = Prompts((setting.texts[-1],), script.SEED + 2)
    call = setting.options["call"]
    alone = call_pipeline(large, prompts, call)
    with split(large, small, switch=1):
        mixed = call_pipeline(large, prompts, call)
    assert row["psnr"] == pytest.approx(psnr(mixed, alone).tolist(), abs=1e-3)
    assert (row["steps"], row["share"]) == (1, 0.2)
    assert row["device"] == pytest.approx(4 * setting.ratio * row["cloud"], abs=2e-3) and 0.5 < setting.ratio < 1
    whole = rows_in(work)[f"switch {T}"]
    assert whole["error"][0] < -15 and math.isfinite(whole["psnr"][0]) and whole["device"] == 0
    assert setting.texts[-1] in catalogue.heldout_prompts(2, "tiny-flux")


def test_a_plan_over_both_sides(work: Path) -> None:
    setting = script.Setting("tiny-flux", "tiny-flux:3", 1, 1, 1, T, work)
    found = script.figures(setting, "cached 1")
    assert len(found["schedule"]) == T and found["steps"] == int(found["schedule"][0] == "#")
    plain = rows_in(work)["switch 1"]
    assert found["cloud"] == plain["cloud"] and found["device"] < plain["device"]


def made_up(kind: str, n: float, **more: Any) -> dict[str, Any]:
    share = more.pop("share", n / 10)
    given = {"colour_and_place": 0.9, "shape": 0.8, "psnr": [20.0 + n, 22.0 + n], "ssim": [0.5, 0.7], "error": [-1, -3]}
    costs = {"steps": int(n), "share": share, "cloud": 2.0 * n, "device": 1.0, "price": -1.5}
    return {"settings": {}, "row": f"{kind} {n:g}", **given, **costs, **more}


def test_the_tables_say_what_the_files_say(tmp_path: Path) -> None:
    models = [0, 0, 0, *[1] * 7]
    cells = [
        *(made_up("switch", s) for s in range(11)), made_up("fewer", 3), made_up("cached", 4, schedule="##", share=0.2),
        {"row": "measured 0.34", "models": models, "psnr": 24.0, "standard_error": 0.5},
        {"row": "any 0.34", "models": models[::-1], "psnr": 26.0, "standard_error": 0.25},
        {"row": "target 30", "refused": "none"}, {"row": "times 5", "milliseconds": {"large": 4.0, "small": 1.0}},
    ]  # fmt: skip
    files = [tmp_path / f"{cell['row']}.json" for cell in cells]
    for path, cell in zip(files, cells, strict=True):
        path.write_text(json.dumps(cell))
    result = page.merged(files, {"large": "a", "small": "b"})
    page.write(result, tmp_path / "split.json")
    assert json.loads((tmp_path / "split.json").read_text()) == result
    lines = page.switches_table(result).splitlines()
    priced = "15.0, in fact 20.0"
    assert lines[2] == f"| 0 (paper) | 0.00, 1.00 | 0, 10 | 21.00 ± 1.00 | 90.0%, 80.0% | {priced} |  |"
    quality = "24.00 ± 1.00"
    assert lines[5] == f"| 3 **measured** | 6.00, 1.00 | 12, 7 | {quality} | 90.0%, 80.0% | {priced} | {quality} |"
    assert lines[12] == "| 10 (paper) | 20.00, 1.00 | 40, 0 | – | 90.0%, 80.0% |  |  |"
    table = page.measured_table(result).splitlines()
    assert table[2:] == ["| 0.34 | 3 | 24.00 ± 0.50 | `1111111000` | 26.00 ± 0.25 |", "| 30 dB | none | – | | |"]
    cached = page.cached_table(result).splitlines()
    assert cached[2] == "| 4 `##` | 8.00, 1.00 | 25.00 ± 1.00 | 90.0%, 80.0% | 8.00 |"
    assert "captions within 2 points of the large model: **met** (cached 4: 25.0 dB" in page.goal(result)
    assert all(row["worst"] == row["psnr"] - 1 for row in page.of_kind(result, "switch"))


def test_the_picture_is_drawn_twice_alike(work: Path, tmp_path: Path) -> None:
    result = page.merged(sorted((work / "tiny-flux+tiny-flux-3").glob("* *.json")), {})
    drawn = list[tuple[bytes, bytes]]()
    for name in ("a", "b"):
        plot.draw(result, tmp_path / f"{name}.png")
        drawn.append(((tmp_path / f"{name}.png").read_bytes(), (tmp_path / f"{name}.svg").read_bytes()))
    assert drawn[0] == drawn[1] and b"the paper's grid" in drawn[0][1]


def test_nothing_measured_is_said(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"nothing is measured yet; run benchmarks/split\.py without --merge first"):
        page.write({"header": {}, "rows": []}, tmp_path / "split.json")
    assert torch.get_num_threads() == 1
