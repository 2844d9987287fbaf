"""`ertacache vbench`: VBench's environment, and scores of generated videos."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

vbench = typer.Typer(no_args_is_help=True, help="VBench, in an environment of its own: set it up, score videos.")

Folder = Annotated[
    Path | None, typer.Option(help="Folder of VBench's environment; ~/.cache/ertacache/vbench by default.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def _print(result: Any, as_json: bool, text: str) -> None:
    if as_json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        Console(highlight=False, soft_wrap=True).print(text, markup=False)


@vbench.command()
def setup(
    folder: Folder = None,
    python: Annotated[
        str | None, typer.Option(help="Python 3.10 or 3.11 to make it with; the one that runs this by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Install VBench beside, not into, the environment of this program; run it again to go on where it stopped."""
    from ertacache.evaluation.vbench.environment import VERSION, setup

    made = setup(folder, python)
    done = "installed" if made["installed"] else "already installed"
    _print(made, as_json, f"VBench {VERSION} is {done} in {made['folder']} (Python {made['python']})")


@vbench.command()
def run(
    videos: Annotated[Path, typer.Argument(help="Folder of mp4 files.")],
    out: Annotated[Path, typer.Option(help="JSON file to write; finished dimensions are kept beside it in OUT.parts.")],
    mode: Annotated[
        str, typer.Option(help="standard ('{prompt}-{0..4}.mp4' of VBench's prompts) or custom.")
    ] = "standard",
    dimensions: Annotated[str | None, typer.Option(help="Separated by commas; all of the mode by default.")] = None,
    folder: Folder = None,
    device: Annotated[str, typer.Option(help="Where to run, as torch names it.")] = "cuda",
    as_json: Json = False,
) -> None:
    """Score videos, one dimension at a time; an interrupted run goes on without repeating a dimension."""
    from ertacache.evaluation.vbench.run import run

    names = None if dimensions is None else [name.strip() for name in dimensions.split(",")]
    result = run(videos, out, mode, names, folder, device)
    _print(result, as_json, f"{describe(result)}\n{out}")


def describe(result: dict[str, Any]) -> str:
    """The scores as a table, in percent as papers print them."""
    lines = [f"{'':24}{'score':>9}{'normalised':>12}{'videos':>8}{'missing':>9}"]
    for name, row in result["dimensions"].items():
        lines.append(f"{name:24}{row['score']:9.2%}{row['normalised']:12.2%}{row['videos']:8}{row['missing']:9}")
    for name in ("quality", "semantic", "total"):
        value = result[name]
        lines.append(f"{name:24}{'' if value is None else format(value, '.2%'):>21}")
    if any(row["missing"] for row in result["dimensions"].values()):
        lines.append("videos are missing: these scores compare only with scores of the same set of videos")
    return "\n".join(line.rstrip() for line in lines)
