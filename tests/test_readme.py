"""The README's figures are those of the committed result files, and its Python runs."""

import json
import re
from typing import Any

import pytest

from benchmark_scripts import ROOT, load


@pytest.fixture(scope="module")
def script() -> Any:
    return load("readme_table")


PAGES = (
    "README.md",
    *(f"docs/{name}.md" for name in ("choosing-a-plan", "frontier", "quantised-models", "results", "split")),
    "docs/sizes-steps-guidance.md",
)


@pytest.mark.parametrize("page", PAGES)
def test_the_generated_parts_are_what_the_result_files_give(script: Any, page: str):
    assert set(PAGES) == set(script.parts())
    text = (ROOT / page).read_text()
    assert script.updated(text, script.parts()[page]) == text


def test_a_page_without_its_markers_is_named(script: Any):
    with pytest.raises(ValueError, match=r"no <!-- zoo: begin --> .* on the page; put both where its table belongs"):
        script.updated("<!-- speed: begin --><!-- speed: end -->", {"speed": "x", "zoo": "y"})


def test_every_cell_is_the_row_it_names(script: Any):
    """The table's arithmetic, on rows made up here."""
    row = {"group": "g", "site": "guided", "basis": "fitted", "stage": "uniform", "K": 14, "budget": 15}
    text = script.ablation_table([{**row, "psnr": {"mean": 31.26}}])
    assert "| uniform, fitted | 31.3 (K=14) |" in text


def test_every_relative_link_leads_somewhere():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize(("folder", "prompts"), [("ablation", 32), ("ablation-video", 16)])
def test_the_committed_rows_count_what_they_say(folder: str, prompts: int):
    lines = (ROOT / "benchmarks/results" / folder / "results.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines[1:]]
    assert len(json.loads(lines[0])["prompts"]) >= prompts
    for row in rows:
        per_context = set(row["calls"].values()) if row["stage"] not in ("no cache", "fewer steps") else {row["K"]}
        assert per_context == {row["K"]}


def test_the_clips_table_is_the_mean_of_the_rows(script: Any):
    """One cell of each model, from the lines of the result file."""
    row = next(line for line in script.clips_table().splitlines() if line.startswith("| fitted (ours) |"))
    cells = [cell.strip(" *") for cell in row.split("|")]
    for name, cell in (("tiny-wan", cells[2]), ("tiny-cogvideox", cells[5])):
        lines = (ROOT / "benchmarks/results/compare" / name / "results.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        values = [row["psnr"] for row in rows if row.get("entrant") == "fitted@0.5"]
        assert len(values) == 32
        assert cell == f"{sum(values) / len(values):.1f}"
