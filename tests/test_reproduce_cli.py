"""`ertacache reproduce`: what the command line passes on and prints."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from ertacache.cli import reproduce
from ertacache.cli.command import command
from ertacache.evaluation.reproduce import request, run
from ertacache.evaluation.reproduce.request import Request


@pytest.fixture
def invoke() -> Callable[..., Any]:
    app = typer.Typer()
    app.command()(command(reproduce.reproduce))
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


def test_the_command_passes_every_option_on(
    invoke: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    seen: list[Request] = []

    def answer(request: Request) -> dict[str, Any]:
        seen.append(request)
        return {"table": request.table, "text": "the table"}

    monkeypatch.setattr(run, "reproduce", answer)
    assert invoke("table3").stdout == "the table\n"
    assert seen[0] == Request("table3", "tiny-flux", Path("out/reproduce/table3-tiny-flux"))
    result = invoke(
        "figure5", "--model", "flux.1-dev", "--out", tmp_path, "--prompts", tmp_path / "a.txt", "--calibration-prompts",
        tmp_path / "b.txt", "--count", 9, "--seeds", 2, "--seed", 3, "--device", "cuda", "--dtype", "float16",
        "--offload", "--no-memory-check", "--site", "hidden", "--by", "steps", "--batch-size", 4, "--negative-prompt",
        "", "--samples", 1, "--num-inference-steps", 7, "--json",
    )  # fmt: skip
    assert json.loads(result.stdout) == {"table": "figure5"}
    assert seen[1] == Request(
        table="figure5", model="flux.1-dev", out=tmp_path, prompts=tmp_path / "a.txt",
        calibration_prompts=tmp_path / "b.txt", count=9, seeds=2, seed=3, device="cuda",
        dtype="float16", offload=True, memory_check=False, site="hidden", by="steps", batch_size=4, negative_prompt="",
        samples=1, num_inference_steps=7,
    )  # fmt: skip


def test_the_command_shows_printed_figures(invoke: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(request, "load", lambda *arguments, **options: pytest.fail("loaded"))
    result = invoke("table4", "--model", "flux.1-dev", "--show")
    assert "26988" in result.stdout and "here" not in result.stdout.split("\n\n")[1]
    assert json.loads(invoke("table4", "--model", "flux.1-dev", "--show", "--json").stdout)["title"].startswith(
        "Table 4"
    )
