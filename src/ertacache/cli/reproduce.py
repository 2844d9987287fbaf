"""`ertacache reproduce`: the paper's tables and figures."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ertacache.cli import options as given


def reproduce(
    table: Annotated[str, typer.Argument(help="table1 to table4, or figure2 to figure6.")],
    model: Annotated[
        str,
        typer.Option(
            help="flux.1-dev, wan2.1-1.3b, cogvideox-2b, open-sora-1.2, tiny-flux, tiny-flux-base, tiny-wan, "
            "tiny-cogvideox or tiny-open-sora."
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
    count: Annotated[
        int | None, typer.Option(callback=given.whole(1), help="Measure the first COUNT prompts only.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(callback=given.whole(1), help="Runs per prompt; the paper's number by default.")
    ] = None,
    seed: given.OptionalSeed = None,
    device: given.Device = None,
    dtype: given.Dtype = None,
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
    batch_size: given.BatchSize = None,
    negative_prompt: given.Negative = None,
    samples: given.Samples = 6,
    num_inference_steps: given.Steps = None,
) -> dict[str, Any]:
    """Measure a table or draw a figure of the ERTACache paper, and hold it against what is printed."""
    from ertacache.evaluation.reproduce import run
    from ertacache.runtime.folder_lock import check_results

    if show:
        return run.show(table, model)
    run.setting_of(table, model)
    out = out or Path("out") / "reproduce" / f"{table}-{model}"
    check_results(out)
    return run.reproduce(run.Request(
        table, model, out, prompts, calibration_prompts, count, seeds, seed, device, dtype, offload, memory_check, site,
        by, batch_size, negative_prompt, samples, num_inference_steps,
    ))  # fmt: skip
