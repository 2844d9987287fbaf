"""`ertacache zoo`: the bundled models."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ertacache.zoo import catalogue

zoo = typer.Typer(no_args_is_help=True, help="The bundled models: list, train, check.")

Name = Annotated[str, typer.Argument(help="tiny-flux or tiny-flux-base.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def _print(result: dict[str, object], as_json: bool, text: str) -> None:
    if as_json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        Console(highlight=False, soft_wrap=True).print(text, markup=False)


@zoo.command("list")
def list_models(as_json: Json = False) -> None:
    """Names and folders."""
    folders: dict[str, object] = {name: str(catalogue.folder(name)) for name in catalogue.NAMES}
    _print(folders, as_json, "\n".join(f"{name}  {path}" for name, path in folders.items()))


@zoo.command()
def train(
    name: Name,
    work: Annotated[
        Path, typer.Option(help="Folder for checkpoints and the pool of latents; training resumes from it.")
    ] = Path(".zoo"),
    out: Annotated[
        Path | None, typer.Option(help="Folder for the finished model; the bundled place by default.")
    ] = None,
    compiled: Annotated[bool, typer.Option("--compile/--no-compile", help="torch.compile the transformer.")] = True,
    as_json: Json = False,
) -> None:
    """Train autoencoder, base model and (for tiny-flux) its distilled child; resumable and deterministic by seed."""
    from ertacache.zoo.train import train_model

    folder = train_model(name, work, out or catalogue.folder(name), compiled)
    _print({"model": name, "folder": str(folder)}, as_json, f"{name} written to {folder}")


@zoo.command()
def check(
    name: Name,
    captions: Annotated[int, typer.Option(help="Number of held-out captions.")] = 200,
    sheet: Annotated[Path | None, typer.Option(help="Also write a sheet of samples with their captions.")] = None,
    as_json: Json = False,
) -> None:
    """Draw held-out captions and measure how often colour, place and shape are right."""
    from ertacache.zoo.check import check_model

    result = check_model(name, captions, sheet)
    text = (
        f"{name}: {result['captions']} held-out captions, {result['objects']} objects: colour and place right "
        f"{result['colour_and_place']:.1%}, shape right {result['shape']:.1%} (on the generator's own images "
        f"{result['judge_colour_and_place']:.1%} and {result['judge_shape']:.1%})"
    )
    _print(result, as_json, text)
