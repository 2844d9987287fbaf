"""`ertacache zoo`: the bundled models."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ertacache.errors import InvalidArgument
from ertacache.files import check_output
from ertacache_zoo import catalogue

zoo = typer.Typer(no_args_is_help=True, help="The bundled models: list, train, check.")

Name = Annotated[
    str, typer.Argument(help="tiny-flux, tiny-flux-base, tiny-wan, tiny-cogvideox, tiny-open-sora or nano-flux.")
]
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
    out: Annotated[Path | None, typer.Option(help="Folder for the finished model; ./NAME by default.")] = None,
    overwrite_bundled: Annotated[
        bool, typer.Option("--overwrite-bundled", help="Put it in place of the bundled model instead.")
    ] = False,
    compiled: Annotated[bool, typer.Option("--compile/--no-compile", help="torch.compile the transformer.")] = True,
    as_json: Json = False,
) -> None:
    """Train all parts of a model, from nothing but its generator; resumable and deterministic by seed."""
    target = _destination(name, out, overwrite_bundled)
    for place in (work, target):
        check_output(place, "folder")
    from ertacache_zoo.train import train_model

    folder = train_model(name, work, target, compiled)
    _print({"model": name, "folder": str(folder)}, as_json, f"{name} written to {folder}")


@zoo.command()
def check(
    name: Name,
    captions: Annotated[int, typer.Option(min=1, help="Number of held-out captions.")] = 200,
    sheet: Annotated[Path | None, typer.Option(help="Also write a sheet of samples with their captions.")] = None,
    as_json: Json = False,
) -> None:
    """Draw held-out captions and measure how often what they say is right: colour, place and shape, or motion."""
    catalogue.folder(name)
    clips = name in catalogue.VIDEO_NAMES
    if sheet is not None:
        _check_sheet(sheet, clips)
    from ertacache_zoo import check as images
    from ertacache_zoo import check_clips as videos

    result = (videos if clips else images).check_model(name, captions, sheet)
    shares = [key for key in result if f"judge_{key}" in result]
    right = ", ".join(f"{key.replace('_', ' ')} right {result[key]:.1%}" for key in shares)
    judged = ", ".join(f"{result[f'judge_{key}']:.1%}" for key in shares)
    text = (
        f"{name}: {result['captions']} held-out captions, {result['objects']} objects: {right} "
        f"(on the generator's own {judged})"
    )
    _print(result, as_json, text)


def _destination(name: str, out: Path | None, overwrite_bundled: bool) -> Path:
    """Where a trained model goes: never into the installed package unless that was asked for."""
    bundled = catalogue.folder(name)
    if overwrite_bundled:
        if out is not None:
            raise InvalidArgument(f"--out {out} and --overwrite-bundled name two places; give one of them")
        return bundled
    folder = Path(name) if out is None else out
    if folder.resolve().is_relative_to(bundled.parent.resolve()):
        raise InvalidArgument(
            f"{folder} lies among the bundled models; name another folder with --out, or say --overwrite-bundled"
        )
    return folder


def _check_sheet(sheet: Path, clips: bool) -> None:
    """Refuse a sheet that could not be written in the end."""
    kinds = (".png", ".jpg", ".webp", ".gif") if clips else (".png", ".jpg", ".webp")
    if sheet.suffix.lower() not in kinds:
        raise InvalidArgument(f"cannot draw a sheet to {sheet}; name a {', '.join(kinds[:-1])} or {kinds[-1]} file")
    check_output(sheet, "picture")
