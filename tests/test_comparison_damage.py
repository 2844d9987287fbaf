"""Folders of comparisons that are damaged, foreign or in use are named with the remedy, and mended ones go on."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from ertacache.baselines.uniform import Uniform
from ertacache.errors import InvalidArgument, ProfileInvalid
from ertacache.evaluation.comparison.entrant import entrants_at
from ertacache.evaluation.comparison.job import Job
from ertacache.evaluation.comparison.run import run_comparison
from ertacache.evaluation.report.comparison import write_comparison_report
from pipelines import CALL, PROMPTS, flux

JOB = Job(("a small red ring",), tuple(PROMPTS[:2]), {**CALL, "num_inference_steps": 4}, seeds=2, costs=(0.5,))
ENTRANTS = entrants_at([Uniform()], [0.5])


def compare(folder: Path) -> None:
    run_comparison(flux(), ENTRANTS, JOB, folder, metrics=["psnr"], show_progress=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a whole comparison, by their names in its folder."""
    folder = tmp_path_factory.mktemp("finished")
    compare(folder)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def half(finished: dict[str, bytes], tmp_path: Path) -> Path:
    """One that was cut off after its third row of four: the last one needs the second reference."""
    for name, content in finished.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        kept = {"results.jsonl": 4, "timings.jsonl": 3}.get(name)
        path.write_bytes(content if kept is None else b"".join(content.splitlines(keepends=True)[:kept]))
    return tmp_path


def refusal(folder: Path) -> str:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises((InvalidArgument, ProfileInvalid)) as caught:
        compare(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    return str(caught.value)


def foreign(path: Path) -> None:
    save_file({"x": flux().transformer.x_embedder.weight.detach().clone()}, path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(path.read_bytes()[:10]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff" * 1000),
        foreign,
        lambda path: path.write_bytes(path.read_bytes().replace(b'\\"seconds\\"', b'\\"secundes\\"', 1)),
        lambda path: path.write_bytes(
            path.read_bytes().replace(b'\\"facts', b'\\"farts').replace(b'"facts"', b'"farts"')
        ),
    ],
    ids=["cut", "header cut", "empty", "noise", "foreign", "renamed fact", "renamed facts"],
)
def test_a_damaged_reference_is_named_and_made_again(
    half: Path, finished: dict[str, bytes], damage: Callable[[Path], Any]
):
    path = half / "references" / "0-1.safetensors"
    damage(path)
    said = refusal(half)
    assert said.startswith(f"{path} is no uncached run of this comparison (") and said.endswith(
        "delete it: it is made again"
    )
    path.unlink()
    compare(half)
    assert (half / "results.jsonl").read_bytes() == finished["results.jsonl"]


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"kind": "row"}', "is no row of a comparison (entrant, prompt and seed are wanted)"),
        (
            '{"entrant": "x", "prompt": "0", "seed": 0}',
            "is no row of a comparison (entrant, prompt and seed are wanted)",
        ),
        ('[["entrant", "x"]]', "is no JSON object (a list where an object belongs)"),
        ('{"entrant": NaN}', "is no JSON object (NaN is no number of JSON)"),
        (DEEP, "is no JSON object (nested too deeply)"),
        (f'{{"prompt": {"9" * 5000}}}', "is no JSON object (Exceeds the limit (4300 digits) for integer"),
        ("hello", "is no JSON object (Expecting value"),
        ("\x00", "is no JSON object (Expecting value"),
    ],
)
def test_a_line_that_is_no_row_is_named(half: Path, line: str, why: str):
    text = (half / "results.jsonl").read_text().splitlines()
    (half / "results.jsonl").write_text("\n".join([*text[:2], line, *text[3:]]) + "\n")
    assert refusal(half).startswith(f"{half / 'results.jsonl'}, line 3 {why}")


def test_a_foreign_file_and_missing_times_are_named(half: Path):
    results = (half / "results.jsonl").read_text()
    (half / "results.jsonl").write_text('{"some": "other file"}\n')
    assert refusal(half).startswith(f"{half} holds a comparison with kind = None, not header; choose another folder")
    (half / "results.jsonl").write_text(results)
    (half / "timings.jsonl").write_text("")
    assert refusal(half).startswith(f"{half / 'timings.jsonl'} has 0 lines where 3 rows are finished; choose another")


UNIFORM = {"id": "uniform@0.5", "method": "uniform", "target": 0.5, "tuned_cost": 0.5, "refusal": None}


@pytest.mark.parametrize(
    "content",
    ["{", DEEP, "[]", '{"entrants": 1}', '{"entrants": [1]}', {"id": "uniform@0.5"}, {**UNIFORM, "settings": [1]},
     {**UNIFORM, "settings": {"speed": 1}}, {**UNIFORM, "settings": {"profile": {"file": 1}}}],
)  # fmt: skip
def test_a_damaged_list_of_entrants_is_named_and_tuned_again(half: Path, finished: dict[str, bytes], content: Any):
    path = half / "entrants.json"
    first = json.loads(finished["entrants.json"])["entrants"][0]
    path.write_text(content if isinstance(content, str) else json.dumps({"entrants": [first, content]}))
    said = refusal(half)
    assert said.startswith(f"{path} is damaged (")
    assert said.endswith("delete it: every method is tuned again")
    path.unlink()
    compare(half)
    for name in ("entrants.json", "results.jsonl"):
        assert (half / name).read_bytes() == finished[name]


def test_a_damaged_profile_of_an_entrant_is_named(half: Path):
    path = half / "prepared" / "uniform@0.5.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    assert refusal(half).startswith(f"{path}: header: claims ")


def test_the_report_names_what_is_nested_too_deeply(half: Path):
    whole = (half / "results.jsonl").read_text()
    (half / "results.jsonl").write_text(f"{whole}{DEEP}\n")
    with pytest.raises(InvalidArgument, match=r"results.jsonl, line 5 is nested too deeply; run the comparison again"):
        write_comparison_report(half)
    (half / "results.jsonl").write_text(whole)
    (half / "entrants.json").write_text(DEEP)
    with pytest.raises(InvalidArgument, match=r"entrants.json is nested too deeply; run the comparison again"):
        write_comparison_report(half)


_SLOW = """
import sys
from pathlib import Path
import test_comparison_damage as here
from ertacache.evaluation.comparison import run
real = run.Folder.add
def slow(self, line, times):
    real(self, line, times)
    print("row", flush=True)
    sys.stdin.readline()
run.Folder.add = slow
here.compare(Path(sys.argv[1]))
"""


def test_of_two_processes_on_one_folder_one_is_refused_and_the_other_ends_well(
    finished: dict[str, bytes], tmp_path: Path
):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    command = [sys.executable, "-c", _SLOW, str(tmp_path)]
    with subprocess.Popen(command, **pipes) as first:
        assert first.stdout is not None and first.stdout.readline() == "row\n"
        begun = (tmp_path / "results.jsonl").read_bytes()
        assert f"{tmp_path} is in use by process {first.pid} on " in refusal(tmp_path)
        assert (tmp_path / "results.jsonl").read_bytes() == begun
        first.send_signal(signal.SIGKILL)
    compare(tmp_path)
    assert (tmp_path / "results.jsonl").read_bytes() == finished["results.jsonl"]
    assert not (tmp_path / ".lock").exists()
    assert json.loads((tmp_path / "entrants.json").read_bytes()) == json.loads(finished["entrants.json"])
