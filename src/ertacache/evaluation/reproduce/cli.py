"""`ertacache reproduce`: the paper's tables and Figure 5."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console


def reproduce(
    table: Annotated[str, typer.Argument(help="table1, table2, table3, table4 or figure5.")],
    model: Annotated[
        str,
        typer.Option(
            help="flux.1-dev, wan2.1-1.3b, cogvideox-2b, open-sora-1.2 (printed figures only), tiny-flux or "
            "tiny-flux-base."
        ),
    ] = "tiny-flux",
    out: Annotated[
        Path | None, typer.Option(help="Folder for all results; out/reproduce/TABLE-MODEL by default.")
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Print what the paper prints; nothing is run.")] = False,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts to measure: a text file, one a line, or VBench_full_info.json.")
    ] = None,
    calibration_prompts: Annotated[
        Path | None, typer.Option(help="Prompts that methods are calibrated on; none of them may be in --prompts.")
    ] = None,
    count: Annotated[int | None, typer.Option(help="Measure the first COUNT prompts only.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Runs per prompt; the paper's number by default.")] = None,
    seed: Annotated[int | None, typer.Option(help="Prompt n starts from the noise of seed + n.")] = None,
    device: Annotated[str | None, typer.Option(help="Where to run, as torch names it.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16; the model's by default.")] = None,
    offload: Annotated[bool, typer.Option("--offload", help="Let components take turns on the GPU.")] = False,
    memory_check: Annotated[
        bool, typer.Option("--memory-check/--no-memory-check", help="Look at free memory before loading.")
    ] = True,
    site: Annotated[
        Literal["output", "hidden"], typer.Option(help="Where ERTACache predicts: as printed, or TeaCache's place.")
    ] = "output",
    by: Annotated[
        Literal["threshold", "steps"] | None,
        typer.Option(help="Schedules by the printed λ, or by the number of steps that the printed speed-up implies."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Prompts per call of a calibration.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="Negative prompt; '' is one too.")] = None,
    samples: Annotated[int, typer.Option(help="Prompts that keep their picture or clip.")] = 6,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Measure a table of the ERTACache paper, or its Figure 5, and hold it against what is printed."""
    from ertacache.evaluation.reproduce import run

    if show:
        result = run.show(table, model)
    else:
        request = run.Request(
            table, model, out or Path("out") / "reproduce" / f"{table}-{model}", prompts, calibration_prompts, count,
            seeds, seed, device, dtype, offload, memory_check, site, by, batch_size, negative_prompt, samples,
        )  # fmt: skip
        result = run.reproduce(request)
    if as_json:
        text = {name: value for name, value in result.items() if name != "text"}
        sys.stdout.write(json.dumps(text) + "\n")
    else:
        Console(highlight=False, soft_wrap=True).print(result["text"], markup=False)
