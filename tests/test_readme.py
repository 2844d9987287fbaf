"""The README's figures are those of the committed result files, and its Python runs."""

import json
import re
from typing import Any

import pytest

from benchmark_scripts import ROOT, load


@pytest.fixture(scope="module")
def script() -> Any:
    return load("readme_table")


def test_the_generated_parts_are_what_the_result_files_give(script: Any):
    readme = (ROOT / "README.md").read_text()
    assert script.updated(readme) == readme


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


def test_the_five_lines_use_real_names():
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert code is not None
    import ertacache

    for name in re.findall(r"ertacache\.(\w+)", code[1]):
        assert hasattr(ertacache, name), name


@pytest.mark.parametrize(("folder", "prompts"), [("ablation", 32), ("ablation-video", 16)])
def test_the_committed_rows_count_what_they_say(folder: str, prompts: int):
    lines = (ROOT / "benchmarks/results" / folder / "results.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines[1:]]
    assert len(json.loads(lines[0])["prompts"]) >= prompts
    for row in rows:
        per_context = set(row["calls"].values()) if row["stage"] not in ("no cache", "fewer steps") else {row["K"]}
        assert per_context == {row["K"]}
