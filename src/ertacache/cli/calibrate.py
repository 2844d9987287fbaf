"""`ertacache calibrate`: from a model and a few prompts to a profile."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ertacache.calibration.defaults import DEFAULTS, HOLDOUT, METHOD
from ertacache.cli import options as given
from ertacache.cli.command import shows_progress


def _rows(name: str, what: str) -> str:
    """The help of an option whose default is the method's."""
    values = (f"{method}: {getattr(row, name)}" for method, row in DEFAULTS.items() if getattr(row, name) is not None)
    return f"{what} Default of {', of '.join(values)}."


def calibrate(
    model: given.Model,
    out: Annotated[Path, typer.Option(help="Profile to write.")] = Path("profile.safetensors"),
    prompt: given.SeveralPrompts = None,
    prompts: given.PromptFile = None,
    method: Annotated[
        Literal["fitted", "ertacache"], typer.Option(help="The plan that measured best, or the paper's.")
    ] = METHOD,  # pyright: ignore[reportArgumentType]
    compute_steps: Annotated[int | None, typer.Option(callback=given.whole(2), help="K, steps to compute.")] = None,
    threshold: Annotated[
        float | None, typer.Option(callback=given.finite, help="λ of the paper, instead of K.")
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help=_rows("schedule", "uniform, policy, or text such as '#.#.##'."))
    ] = None,
    basis: Annotated[
        Literal["reuse", "residual", "fitted"] | None, typer.Option(help=_rows("basis", "What is predicted from."))
    ] = None,
    site: Annotated[
        Literal["output", "guided", "hidden"] | None, typer.Option(help=_rows("site", "Where it is predicted."))
    ] = None,
    history: Annotated[
        str | None, typer.Option(help=_rows("history", "Depth of the fitted predictor, or auto: measured."))
    ] = None,
    aim: Annotated[
        Literal["step", "trajectory", "auto"] | None, typer.Option(help=_rows("aim", "What is fitted to."))
    ] = None,
    timesteps: Annotated[
        str | None, typer.Option(help=_rows("timesteps", "none, paper, auto, or a strength from 0 to 1."))
    ] = None,
    rectifier: Annotated[
        Literal["none", "scalar", "channel", "element"] | None,
        typer.Option(help=_rows("rectifier", "Granularity of the correction.")),
    ] = None,
    activation: Annotated[
        Literal["linear", "sigmoid"] | None,
        typer.Option(help=_rows("activation", "Of the rectifier; sigmoid is the paper's literal one.")),
    ] = None,
    holdout: Annotated[
        float, typer.Option(callback=given.share, help="Share of the prompts that is never fitted.")
    ] = HOLDOUT,
    seed: given.Seed = 0,
    batch_size: given.BatchSize = None,
    checkpoint: Annotated[Path | None, typer.Option(help="File to continue an interrupted calibration from.")] = None,
    *,
    call: dict[str, Any],
    placement: given.Placement,
) -> dict[str, Any]:
    """Watch a pipeline on a few prompts and write a profile."""
    choices = {
        "method": method, "compute_steps": compute_steps, "threshold": threshold, "schedule": schedule, "basis": basis,
        "site": site, "history": given.number_or_word(history, int), "aim": aim,
        "timesteps": given.number_or_word(timesteps, float), "rectifier": rectifier, "activation": activation,
        "holdout": holdout, "seed": seed, "batch_size": batch_size, "checkpoint": checkpoint,
    }  # fmt: skip
    return _run(model, out, prompt or (), prompts, choices, call, placement)


def _run(
    model: str,
    out: Path,
    texts: Sequence[str],
    file: Path | None,
    choices: dict[str, Any],
    call: dict[str, Any],
    placement: given.Placement,
) -> dict[str, Any]:
    """Check, load, calibrate, save."""
    from ertacache.cli.model import check, load, prompts_of
    from ertacache.errors import InvalidArgument
    from ertacache.files import check_output, rescued
    from ertacache.pipelines import bundled
    from ertacache.pipelines.loading import call_arguments
    from ertacache.profile.profile_summary import summary_facts

    check(model, placement)
    prompts = prompts_of(model, file, bundled.calibration_prompts, "--prompts", texts)
    _check(prompts, choices)
    check_output(out, "profile")
    if (checkpoint := choices["checkpoint"]) is not None:
        check_output(checkpoint, "checkpoint")
        if checkpoint.resolve() == out.resolve():
            raise InvalidArgument(f"--checkpoint and --out are both {out}; name two files")
    pipe = load(model, placement)
    from ertacache.calibration.calibrate import calibrate as run

    profile = run(pipe, prompts, show_progress=shows_progress(), **choices, **call_arguments(model, call))
    rescued(out, profile.save)
    written = f"written to {out} ({out.stat().st_size} bytes)"
    # With progress on, the calibration has said it.
    text = written if shows_progress() else f"{profile.summary()}\n{written}"
    return {"profile": str(out), **summary_facts(profile), "text": text}


def _check(prompts: Sequence[str], choices: dict[str, Any]) -> None:
    """What is wrong with a choice or the prompts by themselves: said before anything is loaded."""
    from ertacache.calibration.choices import Budget, settle
    from ertacache.calibration.defaults import Choices
    from ertacache.calibration.prompts import split_prompts

    split_prompts(prompts, choices["holdout"], choices["seed"])
    of_method = {field.name: choices[field.name] for field in fields(Choices)}
    settle(choices["method"], Budget(choices["compute_steps"], choices["threshold"]), of_method)
