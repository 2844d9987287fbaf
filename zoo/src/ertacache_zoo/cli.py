"""`ertacache zoo`: the bundled models."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ertacache_zoo import catalogue

zoo = typer.Typer(no_args_is_help=True, help="The bundled models: list, train, check.")

Name = Annotated[str, typer.Argument(help="tiny-flux, tiny-flux-base, tiny-wan or tiny-cogvideox.")]
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
    """Train all parts of a model, from nothing but its generator; resumable and deterministic by seed."""
    from ertacache_zoo.train import train_model

    folder = train_model(name, work, out or catalogue.folder(name), compiled)
    _print({"model": name, "folder": str(folder)}, as_json, f"{name} written to {folder}")


@zoo.command()
def check(
    name: Name,
    captions: Annotated[int, typer.Option(help="Number of held-out captions.")] = 200,
    sheet: Annotated[Path | None, typer.Option(help="Also write a sheet of samples with their captions.")] = None,
    as_json: Json = False,
) -> None:
    """Draw held-out captions and measure how often what they say is right: colour, place and shape, or motion."""
    from ertacache_zoo import check as images
    from ertacache_zoo import check_clips as videos

    result = (videos if name in catalogue.VIDEO_NAMES else images).check_model(name, captions, sheet)
    shares = [key for key in result if f"judge_{key}" in result]
    right = ", ".join(f"{key.replace('_', ' ')} right {result[key]:.1%}" for key in shares)
    judged = ", ".join(f"{result[f'judge_{key}']:.1%}" for key in shares)
    text = (
        f"{name}: {result['captions']} held-out captions, {result['objects']} objects: {right} "
        f"(on the generator's own {judged})"
    )
    _print(result, as_json, text)
