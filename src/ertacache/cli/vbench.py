"""`ertacache vbench`: VBench's environment, and scores of generated videos."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ertacache.cli.command import command

Folder = Annotated[
    Path | None, typer.Option(help="Folder of VBench's environment; ~/.cache/ertacache/vbench by default.")
]


def vbench() -> typer.Typer:
    """The two commands."""
    app = typer.Typer(no_args_is_help=True, help="VBench, in an environment of its own: set it up, score videos.")
    app.command()(command(setup))
    app.command()(command(run))
    return app


def setup(
    folder: Folder = None,
    python: Annotated[
        str | None, typer.Option(help="Python 3.10 or 3.11 to make it with; the one that runs this by default.")
    ] = None,
) -> dict[str, Any]:
    """Install VBench beside, not into, the environment of this program; run it again to go on where it stopped."""
    from ertacache.evaluation.vbench.environment import VERSION, default_folder, setup
    from ertacache.files import check_output

    check_output(folder or default_folder(), "folder")
    made = setup(folder, python)
    done = "installed" if made["installed"] else "already installed"
    return {**made, "text": f"VBench {VERSION} is {done} in {made['folder']} (Python {made['python']})"}


def run(
    videos: Annotated[Path, typer.Argument(help="Folder of mp4 files.")],
    out: Annotated[Path, typer.Option(help="JSON file to write; finished dimensions are kept beside it in OUT.parts.")],
    mode: Annotated[
        str, typer.Option(help="standard ('{prompt}-{0..4}.mp4' of VBench's prompts) or custom.")
    ] = "standard",
    dimensions: Annotated[str | None, typer.Option(help="Separated by commas; all of the mode by default.")] = None,
    folder: Folder = None,
    device: Annotated[str, typer.Option(help="Where to run, as torch names it.")] = "cuda",
) -> dict[str, Any]:
    """Score videos, one dimension at a time; an interrupted run goes on without repeating a dimension."""
    from ertacache.evaluation.vbench.run import run
    from ertacache.files import check_output

    check_output(out, "JSON file")
    names = None if dimensions is None else [name.strip() for name in dimensions.split(",")]
    result = run(videos, out, mode, names, folder, device)
    return {**result, "text": f"{_described(result)}\n{out}"}


def _described(result: dict[str, Any]) -> str:
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
