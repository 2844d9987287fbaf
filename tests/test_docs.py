"""The documentation does what it says: every block of every page runs, and every page is on the site."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmark_scripts import ROOT, load
from doc_blocks import blocks, commands, compiled, wrong_arguments, wrong_command

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "examples" / "README.md", *sorted(DOCS.glob("*.md"))]


def named(pages: list[Path]) -> list[Any]:
    return [pytest.param(page, id=page.relative_to(ROOT).as_posix()) for page in pages]


@pytest.mark.filterwarnings("ignore:the profile (was calibrated at|is retargeted):UserWarning")
@pytest.mark.filterwarnings("ignore:.*judged prompts cannot tell:UserWarning")  # pages run on few, to be quick
@pytest.mark.parametrize("page", named([page for page in PAGES if blocks(page, "python")]))
def test_every_python_block_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page, "python"):
        code = compiled(page, block)
        if block.why is None:
            exec(code, namespace)
        else:
            assert wrong_arguments(block.text, {**namespace}) == [], f"{page.name}, line {block.line}"


@pytest.mark.parametrize("page", named([page for page in PAGES if blocks(page, "sh")]))
def test_every_command_is_one(page: Path):
    wrong = {
        " ".join(words): reason
        for block in blocks(page, "sh")
        for words in commands(block)
        if (reason := wrong_command(words, ROOT)) is not None
    }
    assert wrong == {}


@pytest.mark.parametrize("page", named(PAGES))
def test_every_block_is_of_a_language_that_is_checked(page: Path):
    """A fence without a language, and an indented block, would pass by the tests above."""
    text = re.sub(r"^(`{3,})\w+[^\n]*\n.*?^\1$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert "```" not in text
    assert re.findall(r"\n\n(    (?!-|\d\.|options:)\S.*)", text) == []
    known = {"python", "sh", "text", "diff", "json", "toml", "ini"}
    assert {b for b in re.findall(r"^`{3,}(\w+)", page.read_text(), re.MULTILINE)} <= known


def test_every_link_into_this_repository_leads_somewhere():
    """Those that are written out, as the package index and the site need them."""
    places = {
        "https://ertacache.github.io/ertacache/": lambda path: DOCS / f"{path.strip('/') or 'index'}.md",
        "https://github.com/ertacache/ertacache/blob/main/": lambda path: ROOT / path,
        "https://raw.githubusercontent.com/ertacache/ertacache/main/": lambda path: ROOT / path,
    }
    found = 0
    for page in [*PAGES, ROOT / "mkdocs.yml", ROOT / "CITATION.cff"]:
        for start, place in places.items():
            for path in re.findall(rf"{re.escape(start)}([^\s)#\"]*)", page.read_text()):
                assert place(path).exists(), f"{page.name} links to {start}{path}"
                found += 1
    assert found > 20


def test_the_readme_is_short_and_shows_one_picture():
    text = (ROOT / "README.md").read_text()
    prose = [line for line in text.splitlines() if not line.startswith("|")]
    assert len(" ".join(prose).split()) <= 900
    assert len(re.findall(r"!\[", text)) == 1


def test_every_page_is_on_the_site_and_every_entry_leads_to_one():
    entries = set(re.findall(r"([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert entries == {page.name for page in DOCS.glob("*.md")}


def test_the_checks_of_blocks_that_do_not_run_see_what_is_wrong():
    source = (
        "import ertacache\nfrom diffusers import FluxPipeline\n"
        "pipe = FluxPipeline.from_pretrained('x', token=1)\n"
        "p = ertacache.calibrate(pipe, [], compute_step=3, height=8)\n"
        "pipe(prompt='a', heigth=8)\nertacache.apply(pipe, p, retargets=True)\n"
        "pipe.enable_sequential_cpu_offload(gpu=0)\n"
    )
    assert wrong_arguments(source, {}) == [
        "ertacache.calibrate(compute_step=...)",
        "pipe(heigth=...)",
        "ertacache.apply(retargets=...)",
        "pipe.enable_sequential_cpu_offload(gpu=...)",
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("ertacache calibrat tiny-flux", "no command 'calibrat'"),
        ("ertacache calibrate tiny-flux --compute-step 3", "No such option: --compute-step"),
        ("ertacache generate tiny-flux", "Missing option '--prompt'"),
        ("make nothing", "no make target ['nothing']"),
        ("python benchmarks/nothing.py", "no benchmarks/nothing.py"),
        ("pip install ertacache[nothing]", "no extra ['nothing']"),
    ],
)
def test_the_check_of_commands_sees_what_is_wrong(line: str, reason: str):
    found = wrong_command(line.split(), ROOT)
    assert found is not None and reason in found


def test_the_messages_page_is_what_the_source_says():
    script = load("messages_page")
    assert (DOCS / "messages.md").read_text() == script.page(), "run python benchmarks/messages_page.py"


ADDED = """
import torch
from ertacache.baselines.catalogue import method
from ertacache.metrics import SampleMetrics
from ertacache.pipelines.models import FAMILIES
from ertacache.pipelines.solvers import SOLVERS
assert method("uniform-guided").site == "guided"
assert FAMILIES[-1].denoiser == "QwenImageTransformer2DModel"
assert SOLVERS[-1].scheduler == "EulerDiscreteScheduler"
assert SampleMetrics(["mae"]).measure(torch.zeros(3, 16, 16), torch.full((3, 16, 16), 0.25), "") == {"mae": 0.25}
"""


def test_the_diffs_of_architecture_do_what_they_say(tmp_path: Path):
    shutil.copytree(ROOT / "src", tmp_path / "src")
    diffs = blocks(DOCS / "architecture.md", "diff")
    assert len(diffs) == 4
    for diff in diffs:
        subprocess.run(
            ["git", "apply", "--unidiff-zero", "-"], input=diff.text, text=True, cwd=tmp_path, check=True,
            env={**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path)},
        )  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src"), "TRANSFORMERS_VERBOSITY": "error"}
    subprocess.run([sys.executable, "-c", ADDED], env=environment, check=True)


def test_the_discretisation_figures_are_those_of_the_result_file():
    found = json.loads((ROOT / "benchmarks/results/discretisation.json").read_text())
    quoted = f"{found['tiny-flux']['rows'][0]['psnr']['mean']:.0f} dB"
    for page in (ROOT / "README.md", DOCS / "index.md"):
        assert f"only {quoted}" in page.read_text(), page.name
    table = (DOCS / "results.md").read_text()
    for name, model in found.items():
        for row in model["rows"]:
            figures = row["psnr"]
            assert f"{figures['mean']:.1f} ± {figures['standard_error']:.1f}" in table, (name, row["steps"])
